"""Hostile inputs: a small function makes each kind, so that every kind is tried at every entry point (`entries.py`).

    @case("pictures", "image")
    def postscript_as_png(folder: Path) -> Path: ...

writes the input into an empty folder and returns what a user would give to a command. `signal` says which model and which
objective fit it. Data is written beside a few good examples (`good`), so that a run can go on without the bad one.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Signal = Literal["image", "audio", "text"]
PRIVATE = "PRIVATE_WORDS"
"""In the private file of a user, which no entry point may open; its path is in the environment, under this name."""
IMPORTED = "HOSTILE_IMPORTED"
"""The environment variable with the path of a file that exists once code of a hostile input has run."""


class Hostile(NamedTuple):
    """One hostile input."""

    kind: str
    """data: pictures, audio, texts, tables, archives, links; or settings, models, runs, official files, …"""
    name: str
    signal: Signal
    make: Callable[[Path], Path]
    """Writes it into an empty folder; returns what a user gives to a command."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


CASES: list[Hostile] = []
DATA = ("pictures", "audio", "texts", "tables", "archives", "links")
"""Kinds that are a dataset; the others are given to entry points of their own (`entries.ENTRIES`)."""


def add(kind: str, name: str, signal: Signal, make: Callable[[Path], Path]) -> None:
    """Add one input."""
    assert all((kind, name) != (case.kind, case.name) for case in CASES), f"{kind}/{name} exists"
    CASES.append(Hostile(kind, name, signal, make))


def case(kind: str, signal: Signal = "image") -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add the decorated function as an input, under its name."""

    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(kind, make.__name__, signal, make)
        return make

    return register


def cases(*kinds: str) -> list[Hostile]:
    """The inputs of these kinds; all without any."""
    return [case for case in CASES if not kinds or case.kind in kinds]


def private_file() -> Path:
    """A file of the user outside of every dataset."""
    return Path(os.environ[PRIVATE])


def payload() -> str:
    """A line of Python that leaves a trace, to put where something may run it."""
    return f"open({os.environ[IMPORTED]!r}, 'w').close()\n"


def good(folder: Path, signal: Signal, count: int = 12) -> Path:
    """Write `count` good examples in two classes: a folder per class; for texts, lines of documents."""
    rng = np.random.default_rng(0)
    for number in range(count):
        part = folder / ("a" if number % 2 else "b")
        part.mkdir(parents=True, exist_ok=True)
        if signal == "image":
            from PIL import Image

            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(part / f"{number:03}.png")
        elif signal == "audio":
            import soundfile

            soundfile.write(part / f"{number:03}.wav", 0.1 * rng.standard_normal(16000).astype(np.float32), 16000)
            (part / f"b-{number}.trans.txt").write_text(f"{number:03} SOME WORDS\n")
        else:
            words = rng.choice(["sun", "rain", "wind", "snow", "fog", "ice"], 300)
            (part / f"{number:03}.txt").write_text(" ".join(words) + "\n")
    return folder


def beside_good(folder: Path, signal: Signal, name: str, content: bytes) -> Path:
    """A dataset of good examples and one file of this content."""
    (good(folder, signal) / "a" / name).write_bytes(content)
    return folder


# Pictures


@case("pictures")
def postscript_named_png(folder: Path) -> Path:
    return beside_good(folder, "image", "evil.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n")


# Audio


@case("audio", "audio")
def flac_that_claims_1e10_samples(folder: Path) -> Path:
    rate_channels_bits_samples = 16000 << 44 | 0 << 41 | 15 << 36 | 10**10
    info = bytes([0x10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]) + rate_channels_bits_samples.to_bytes(8, "big") + bytes(16)
    return beside_good(folder, "audio", "evil.flac", b"fLaC" + b"\x80\x00\x00\x22" + info + bytes(20))


# Links


@case("links", "text")
def text_that_links_to_a_private_file(folder: Path) -> Path:
    (good(folder, "text") / "a" / "evil.txt").symlink_to(private_file())
    return folder


@case("links", "text")
def text_that_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(good(folder, "text") / "a" / "evil.txt")
    return folder


# Archives


@case("archives")
def archive_that_links_to_a_private_file(folder: Path) -> Path:
    good(folder / "good", "image")
    with tarfile.open(folder / "data.tar", "w") as tar:
        for path in sorted((folder / "good").rglob("*.png")):
            tar.add(path, f"{path.parent.name}/{path.name}")
        link = tarfile.TarInfo("a/evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(private_file())
        tar.addfile(link)
    shutil.rmtree(folder / "good")
    return folder / "data.tar"


# Tables


@case("tables", "text")
def parquet_column_that_names_a_private_file(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"bytes": b"sun and rain " * 200, "path": f"{i}.txt"} for i in range(12)]
    rows.append({"bytes": None, "path": str(private_file())})
    labels = [["a", "b"][i % 2] for i in range(len(rows))]
    parquet.write_table(pa.table({"text": rows, "label": labels}), folder / "data.parquet")
    return folder / "data.parquet"


# Recipes and models


@case("settings")
def yaml_that_expands(folder: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (folder / "evil.yaml").write_text("\n".join(lines) + "\n")
    return folder / "evil.yaml"


def model_folder(folder: Path, signal: Signal = "image", change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """A model folder; `change` edits its config.json, or returns another text of it."""
    shutil.copytree(os.environ[f"HOSTILE_MODEL_{signal.upper()}"], folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    changed = change(config) if change is not None else None
    (folder / "model" / "config.json").write_text(
        changed if isinstance(changed, str) else json.dumps(config), encoding="utf-8", errors="surrogatepass"
    )
    return folder / "model"


@case("models")
def modality_in_a_module_beside_the_model(folder: Path) -> Path:
    (folder / "evil_modality.py").write_text(payload())
    return model_folder(folder, change=lambda config: config["recipe"]["modality"].update(name="evil_modality:Evil"))
