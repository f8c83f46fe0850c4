# %% [markdown]
# # Features in Ray Data
#
# Each actor loads the model once, and takes batches of paths; Ray spreads the actors over its cluster. With GPUs, give
# `num_gpus=1` to `map_batches`. `data2vec features` alone does the same by `torchrun` or `--shard`, and can be resumed.

# %%
from pathlib import Path

import numpy as np
import ray

import data2vec

WORK = Path("runs/example-ray")
MODEL, CLIPS = WORK / "run", WORK / "clips"

if not MODEL.exists():  # clips of noise, and a model that has hardly learned anything
    import soundfile

    CLIPS.mkdir(parents=True)
    for number in range(80):
        noise = np.random.default_rng(number).normal(0, 0.1, 8000 + 100 * number)
        soundfile.write(CLIPS / f"{number:02}.flac", noise, 16000)
    small = {"train.steps": 2, "data.batch_seconds": 8, "data.workers": 0, "log.report": False}
    data2vec.pretrain("speech/v2-tiny", data=CLIPS, out=MODEL, overrides=small)


# %%
class Features:
    """Pooled features of a batch of files, by one actor."""

    def __init__(self, model: str):
        self.model = data2vec.load(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        hidden = self.model.features(list(batch["path"]), pool=True).hidden[0]  # (files, width)
        return {"path": batch["path"], "features": hidden.numpy()}


files = ray.data.from_items([{"path": str(path.resolve())} for path in sorted(CLIPS.glob("*.flac"))])
options = {"fn_constructor_args": (str(MODEL.resolve()),), "batch_size": 16, "compute": ray.data.ActorPoolStrategy(size=2)}
files.map_batches(Features, **options).write_parquet(str((WORK / "features").resolve()))

# %%
table = ray.data.read_parquet(str((WORK / "features").resolve()))
print(f"features of {table.count()} files in {WORK / 'features'}")
