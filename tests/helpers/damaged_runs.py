"""Damage to the small files of a run folder."""

import os
from pathlib import Path

FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "log.txt",
    "machine.json",
    "corrupt_files.txt",
    "tracking_id.txt",
    ".lock",
    "model/config.json",
    "checkpoints/step-8/complete.json",
    "checkpoints/step-8/state.json",
)
"""Of a run whose last checkpoint is that of step 8."""


def damage_missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if path.exists() else b'{"st')


def damage_hostile(path: Path) -> None:
    path.write_bytes(b"[" * 100_000 + b'\n{"step": "x"}\n[1]\n\xff\x00\n')


def damage_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def damage_endless(path: Path) -> None:
    """A FIFO or a link to a device: reading it would never end, and writing it would write elsewhere."""
    path.unlink(missing_ok=True)
    os.mkfifo(path) if path.name.endswith("n") else path.symlink_to("/dev/zero")


DAMAGES = (damage_missing, damage_empty, damage_torn, damage_hostile, damage_folder, damage_endless)
