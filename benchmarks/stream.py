"""Memory while streaming more data than fits into memory. `python benchmarks/stream.py --gigabytes 24`

Creates one tar shard of FLAC clips (2 to 20 s of voice-like sound in noise, all different) and as many hard links to it as the
size needs: every shard is a file to open, read and decode, while the disk holds one of them. Streams it as pre-training
does and prints at regular points what was read and the memory of this process and its workers (PSS: shared pages counted
once). Removes the data afterwards. Linux only.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from data2vec.data.loader import Loader
from data2vec.data.streaming import count_rows_read
from data2vec.recipe.loading import load_recipe

CLIPS = 1000
"""Clips per shard."""
RATE = 16000


def write_shard(path: Path) -> int:
    """Write one shard; returns its size in bytes."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(CLIPS):
            length = int(rng.uniform(2, 20) * RATE)
            pitch = 150 * np.repeat(rng.uniform(0.8, 1.2, length // 1600 + 1), 1600)[:length]
            loud = np.repeat(rng.random(length // 1600 + 1), 1600)[:length]
            wave = 0.3 * loud * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.01 * rng.standard_normal(length)
            file = io.BytesIO()
            soundfile.write(file, wave, RATE, format="FLAC")
            info = tarfile.TarInfo(f"{i:04d}.flac")
            info.size = file.seek(0, io.SEEK_END)
            file.seek(0)
            tar.addfile(info, file)
    return path.stat().st_size


def family(pid: int) -> Iterator[int]:
    """This process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS in MB."""
    fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss:"]) / 1024, int(fields["Pss:"]) / 1024


def main() -> None:
    """Print a line for every twenty-fourth of the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=24.0, help="size of the data set (default 24)")
    parser.add_argument("--workers", type=int, default=2, help="data.workers (default 2)")
    parser.add_argument("--folder", type=Path, default=None, help="where to make the data (default: the temporary folder)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        size = write_shard(Path(folder) / "shard-0000.tar")
        shards = round(asked.gigabytes * 1e9 / size)
        for i in range(1, shards):
            os.link(Path(folder) / "shard-0000.tar", Path(folder) / f"shard-{i:04d}.tar")
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        print(f"{shards} shards of {size / 1e6:.0f} MB, {shards * size / 1e9:.1f} GB; this machine's memory: {there:.1f} GB")
        stream(folder, shards, size, asked.workers)


def stream(folder: str, shards: int, size: int, workers: int) -> None:
    """Read each row once."""
    recipe = load_recipe("speech/v2-base", {"data.train": folder, "data.streaming": True, "data.workers": workers})
    modality = recipe.build_modality()
    loader = Loader(modality, recipe.objective.mask, modality.rows(folder), seed=1, masks=recipe.objective.masks_per_sample)
    settings = recipe.data
    print(f"data.num_streams: {settings.num_streams}, data.shuffle_buffer: {settings.shuffle_buffer}")
    print(f"data.workers: {loader.workers}")
    print("GB read  clips/s  seconds of audio/s  memory of all, MB (PSS)  of each process, MB (RSS)")
    begin, seconds, clips, shown = time.monotonic(), 0.0, 0, 0
    for batches in loader.steps():
        seconds += sum(batch.input.numel() for batch in batches) / RATE
        clips += sum(len(batch) for batch in batches)
        done = count_rows_read(loader.stream_states) / CLIPS / shards
        if int(24 * done) > shown or done >= 1:
            shown = int(24 * done)
            taken, each = time.monotonic() - begin, [memory(pid) for pid in family(os.getpid())]
            print(
                f"{done * shards * size / 1e9:7.2f}  {clips / taken:7.0f}  {seconds / taken:18.0f}  "
                f"{sum(pss for _, pss in each):23.0f}  {', '.join(f'{rss:.0f}' for rss, _ in each)}",
                flush=True,
            )
        if done >= 1:
            return


if __name__ == "__main__":
    main()
