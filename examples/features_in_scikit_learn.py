# %% [markdown]
# # Features in scikit-learn
#
# Use a pre-trained encoder as a feature extractor: one vector per input, from the layer that a cross-validation picks, and
# any scikit-learn estimator on top. Set `MODEL` to a run, a model folder, an official `.pt` or a hub name; inputs may be
# arrays, as here, or file paths.

# %%
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import data2vec

WORK = Path("runs/example-sklearn")
MODEL = WORK / "run"
IMAGES = 300

# %% [markdown]
# The data: handwritten digits as 32 × 32 RGB arrays, and a model pre-trained on them for a few steps where there is none yet.

# %%
digits = load_digits()
pixels = (digits.images[:IMAGES] * 15.9).astype("uint8")
images = np.kron(pixels, np.ones((1, 4, 4), "uint8"))[..., None].repeat(3, axis=-1)
labels = digits.target[:IMAGES]

if not MODEL.exists():
    from PIL import Image

    (WORK / "digits").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(WORK / "digits" / f"{number}.png")
    small = {"train.steps": 10, "data.batch_size": 16, "data.micro_batch_size": 16, "data.flip": 0, "data.workers": 0}
    small |= {"log.report": False}
    data2vec.pretrain("vision/v2-tiny", data=WORK / "digits", out=MODEL, overrides=small)

# %%
model = data2vec.load(MODEL)
hidden = model.features(list(images), layers="all", pool=True).hidden.squeeze(-2).numpy()
print(f"features: {hidden.shape} (layers, images, width)")

# %% [markdown]
# Standardise before a linear model: the scale of hidden states differs between layers and dimensions.

# %%
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
scores = [cross_val_score(classifier, layer, labels, cv=5).mean() for layer in hidden]
for number, score in enumerate(scores, 1):
    print(f"layer {number}: {score:.1%}")
best = int(np.argmax(scores))
classifier.fit(hidden[best], labels)
