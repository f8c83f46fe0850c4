# %% [markdown]
# # Pre-train in Accelerate
#
# The objective in a loop of Hugging Face Accelerate, which brings devices and precision. Needs `pip install accelerate`.

# %%
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_digits

import data2vec

WORK = Path("runs/example-accelerate")
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
accelerator = Accelerator(cpu=True)
rank, processes = accelerator.process_index, accelerator.num_processes
loader = data2vec.build_loader("vision/v2-tiny", WORK / "digits", small, rank=rank, world_size=processes)

# %% [markdown]
# `prepare` gets the module and the optimizer, but not the loader, which has shared out the batches already.

# %%
optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
wrapped, optimizer = accelerator.prepare(objective, optimizer)
batches = iter(loader)
for step in range(1, STEPS + 1):
    objective.before_step(step)
    for _ in range(loader.accumulate):
        loss = wrapped(next(batches).to(accelerator.device)).mean_loss
        accelerator.backward(loss / loader.accumulate)
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step)  # the teacher follows the student

# %%
model = data2vec.Model(objective.cpu().student.eval(), objective.modality, loader.recipe)
model.save_pretrained(WORK / "model")
print(f"loss {loss.item():.3f} after {STEPS} steps")
