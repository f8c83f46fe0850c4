# %% [markdown]
# # Pre-train in Lightning
#
# The objective in a `LightningModule`: the loop, the devices and the logging are Lightning's. Needs `pip install lightning`.

# %%
from pathlib import Path

import lightning
import torch
from PIL import Image
from sklearn.datasets import load_digits

import data2vec

WORK = Path("runs/example-lightning")
STEPS = 10

# %% [markdown]
# The data: handwritten digits as images. The objective is a torch module; the loader gives its masked batches without end.

# %%
if not (WORK / "digits").exists():
    (WORK / "digits").mkdir(parents=True)
    for number, digit in enumerate(load_digits().images[:200]):
        Image.fromarray((digit * 15.9).astype("uint8")).convert("RGB").resize((32, 32)).save(WORK / "digits" / f"{number}.png")

small = {"train.steps": STEPS, "data.batch_size": 32, "data.micro_batch_size": 16, "data.flip": 0, "data.workers": 0}
objective = data2vec.build_objective("vision/v2-tiny", WORK / "digits", small)
loader = data2vec.build_loader("vision/v2-tiny", WORK / "digits", small)

# %% [markdown]
# The teacher follows the student after every optimizer step, not after every batch.


# %%
class Pretraining(lightning.LightningModule):
    """data2vec in a LightningModule."""

    def __init__(self):
        super().__init__()
        self.objective = objective

    def training_step(self, batch, index):
        """The mean loss of one micro-batch."""
        self.objective.before_step(self.global_step + 1)
        loss = self.objective(batch).mean_loss
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def optimizer_step(self, *arguments, **options):
        """An optimizer step, and that of the teacher."""
        super().optimizer_step(*arguments, **options)
        self.objective.after_step(self.global_step + 1)

    def configure_optimizers(self):
        """Of what is trained; the teacher is not."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


trainer = lightning.Trainer(
    max_steps=STEPS,
    accelerator="cpu",
    devices=1,
    accumulate_grad_batches=loader.accumulate,
    use_distributed_sampler=False,  # the loader has shared out the batches
    logger=False,
    enable_checkpointing=False,
)
trainer.fit(Pretraining(), loader)

# %%
model = data2vec.Model(objective.cpu().student.eval(), objective.modality, loader.recipe)
model.save_pretrained(WORK / "model")
print(f"loss {float(trainer.callback_metrics['loss']):.3f} after {trainer.global_step} steps")
