# %% [markdown]
# # Features in Dask
#
# Each worker loads the model once, and takes parts of the list of paths. The client decides where workers are: processes of
# this machine, as here, or a cluster by its address. `data2vec features` alone does the same by `torchrun` or `--shard`, and
# can be resumed.

# %%
from pathlib import Path

import numpy as np
from dask.distributed import Client, get_worker

import data2vec


def features(model: str, paths: list[str]) -> np.ndarray:
    """Pooled features (files, width)."""
    worker = get_worker()
    if not hasattr(worker, "encoder"):  # once in each worker
        worker.encoder = data2vec.load(model)
    return worker.encoder.features(paths, pool=True).hidden[0].numpy()


# %%
def main() -> None:
    """Make a model and clips, and compute their features in two processes."""
    WORK = Path("runs/example-dask")
    MODEL, CLIPS = WORK / "run", WORK / "clips"

    if not MODEL.exists():  # clips of noise, and a model that has hardly learned anything
        import soundfile

        CLIPS.mkdir(parents=True)
        for number in range(80):
            noise = np.random.default_rng(number).normal(0, 0.1, 8000 + 100 * number)
            soundfile.write(CLIPS / f"{number:02}.flac", noise, 16000)
        small = {"train.steps": 2, "data.batch_seconds": 8, "data.workers": 0, "log.report": False}
        data2vec.pretrain("speech/v2-tiny", data=CLIPS, out=MODEL, overrides=small)

    files = sorted(str(path.resolve()) for path in CLIPS.glob("*.flac"))
    parts = [files[start : start + 16] for start in range(0, len(files), 16)]
    with Client(n_workers=2, threads_per_worker=1) as client:
        found = client.gather(client.map(features, [str(MODEL.resolve())] * len(parts), parts))
    np.save(WORK / "features.npy", np.concatenate(found))  # in the order of the files
    print(f"features of {len(files)} files in {WORK / 'features.npy'}")


if __name__ == "__main__":  # workers import this file
    main()
