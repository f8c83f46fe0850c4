# %% [markdown]
# # Pre-train and probe
#
# Pre-train a tiny image model on unlabelled pictures, then measure what its features are worth: a linear probe and nearest
# neighbours on frozen features, beside the same encoder with its initial weights. To use your own pictures, set `UNLABELLED`
# to any folder of images, and `TRAIN` and `VALID` to folders with one sub-folder per class.
#
# Takes seconds on two CPU cores: few steps of small batches, to show the calls. For a result, raise `STEPS` to 400 and use
# the batch of the recipe.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import data2vec

WORK = Path("runs/example-probe")
UNLABELLED = TRAIN = WORK / "digits" / "train"
VALID = WORK / "digits" / "valid"
RECIPE = "vision/v2-tiny"
STEPS = 20

# %% [markdown]
# The data of this example: 650 of the handwritten digits that come with scikit-learn, as PNG files.

# %%
digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images[:650], digits.target, strict=False)):
    folder = (TRAIN if number < 500 else VALID) / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32)).save(folder / f"{number}.png")

# %% [markdown]
# Pre-training never sees the labels. Any key of the recipe can be overridden; here the run is shortened, and the
# augmentations that suit photographs are turned off. A script without `if __name__ == "__main__":` needs `data.workers=0`
# where processes are spawned (macOS).

# %%
run = data2vec.pretrain(
    RECIPE,
    data=UNLABELLED,
    out=WORK / "run",
    overrides={
        "train.steps": STEPS,
        "data.batch_size": 16,
        "data.micro_batch_size": 16,
        "data.flip": 0,
        "data.color_jitter": 0,
        "data.crop_scale": [0.8, 1.0],
        "data.workers": 0,
    },
)
print(f"loss {run.metrics[0]['loss']:.3f} -> {run.metrics[-1]['loss']:.3f}; report: {run.report}")

# %%
result = data2vec.probe(run.folder, data=TRAIN, valid=VALID)
print(result)
