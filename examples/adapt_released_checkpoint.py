# %% [markdown]
# # Adapt a released checkpoint
#
# Continue pre-training from an official checkpoint on your own unlabelled data (domain adaptation), then compare features
# before and after. Set `CHECKPOINT` to a fairseq `.pt`, a transformers folder or a hub name, and `DATA` to your files.
#
# So that the script runs anywhere in seconds, it makes a tiny stand-in for the released file where there is none.

# %%
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import data2vec

WORK = Path("runs/example-adapt")
CHECKPOINT = WORK / "released.pt"
DATA = WORK / "digits"
STEPS = 10

# %%
DATA.mkdir(parents=True, exist_ok=True)
for number, pixels in enumerate(load_digits().images[:500]):
    Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32)).save(DATA / f"{number}.png")

small_batches = {"data.batch_size": 16, "data.micro_batch_size": 16, "data.workers": 0, "log.every": 5}
if not CHECKPOINT.exists():
    tiny = {"modality.image": 32, "modality.patch": 4, "train.steps": 2, "train.device": "cpu"}
    tiny |= {"encoder.width": 32, "encoder.layers": 2, "encoder.prenet_layers": 0, "encoder.heads": 2, "encoder.ffn_width": 64}
    tiny |= {
        "objective.target.top_k": 2,
        "objective.masks_per_sample": 4,
        "objective.decoder.width": 32,
        "objective.decoder.groups": 4,
    }
    stand_in = data2vec.pretrain("vision/v2-base", data=DATA, out=WORK / "stand-in", overrides=tiny | small_batches)
    data2vec.convert(stand_in.folder, CHECKPOINT, to="fairseq")

# %% [markdown]
# Opening an official file needs neither fairseq nor OmegaConf, and runs no code from the file. The recipe of the loaded model
# has the settings of its encoder and objective, read from the file.

# %%
released = data2vec.load(CHECKPOINT)
print(f"{released.recipe.objective.name}, {len(released.encoder.transformer.blocks)} blocks")

# %% [markdown]
# `adapt` starts from the checkpoint: its encoder, and its teacher and prediction head where the file has them. A tenth of the
# data is held out; the table has the loss on it before and after, and how far the features have drifted. `labels` and `keep`
# add probes of the new data and of what may be forgotten.

# %%
result = data2vec.adapt(CHECKPOINT, DATA, overrides=small_batches, steps=STEPS, out=WORK / "run")
print(result)

# %%
adapted = data2vec.load(result.run.folder)
pictures = sorted(DATA.glob("*.png"))[:50]
before = released.features(pictures, pool=True).hidden.flatten(0, -2).numpy()
after = adapted.features(pictures, pool=True).hidden.flatten(0, -2).numpy()
cosine = np.sum(before * after, axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
print(f"cosine similarity of features before and after: {cosine.mean():.3f}")
