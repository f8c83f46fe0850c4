"""Recordings of a wrist watch from the package seglearn, written as npz files with an index.

Ten people did seven physiotherapy exercises of the shoulder (Burns et al., 2018, arXiv 1802.01489; BSD-3): three axes of
acceleration in g and three of rotation in rad/s, at 50 Hz, 140 recordings, 81 minutes."""

import csv
import hashlib
import importlib.util
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data2vec.errors import UserError

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
"""Of the file, which is pickled: no other content is opened."""
RATE = 50.0
CHANNELS, UNITS = ("ax", "ay", "az", "wx", "wy", "wz"), ("g", "g", "g", "rad/s", "rad/s", "rad/s")
HELD_OUT = (8, 9, 10)
"""The subjects whose recordings are held out."""


def require_watch_data() -> Path:
    """The file of the recordings. Raises UserError if seglearn is not installed, or has other content."""
    found = importlib.util.find_spec("seglearn")
    path = Path(next(iter(found.submodule_search_locations or ()), "")) / "data" / "watch_dataset.npy" if found else None
    if path is None or not path.is_file():
        raise UserError("the demo needs seglearn for its recordings of a watch: pip install 'data2vec[demo]'")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{path}: not the recordings of seglearn 1.2.5, so it is not opened; install that version")
    return path


def write_recordings(out: Path, held_out: Collection[int] = HELD_OUT) -> tuple[Path, Path]:
    """Write the recordings of the other subjects, and of those held out, each as a folder of npz files with metadata.csv."""
    content = np.load(require_watch_data(), allow_pickle=True).item()  # its content is known
    folders = out / "train", out / "heldout"
    rows: dict[Path, list[tuple[str, str, int, str]]] = {folder: [] for folder in folders}
    for index, (samples, label, subject, side) in enumerate(
        zip(content["X"], content["y"], content["subject"], content["side"], strict=True)
    ):
        folder = folders[int(subject) in held_out]
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{index:03d}.npz"
        np.savez(folder / name, x=samples.astype(np.float32), fs=RATE, channels=np.array(CHANNELS), units=np.array(UNITS))
        rows[folder].append((name, content["y_labels"][label], int(subject), "right" if side else "left"))
    for folder, listed in rows.items():
        if not listed:
            continue
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("file_name", "label", "subject", "side"), *listed])
    return folders
