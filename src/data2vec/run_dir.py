"""The run folder: what `RUN/` holds, opening it anew, and taking it up again."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from data2vec.atomic_io import atomic_write
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe

FREE = (
    "train.steps",
    "train.device",
    "train.shard",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "data.workers",
    "data.valid",
    "log",
    "probe",
)
"""What may change when a run is resumed: none of it touches the steps already made or how the next ones are made."""


@dataclass(frozen=True)
class Run:
    """A run on disk, finished or not."""

    folder: Path
    """Where everything is."""

    @property
    def recipe(self) -> Path:
        """The complete recipe: running it again is the same run."""
        return self.folder / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The trained model, for use: `data2vec.load(run.model)`. Written at the end of the run."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """A page that tells how it went, for a browser. Written at the end of the run, and by `data2vec report`."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first. A last line cut short by a crash is left out."""
        return [line for _, line in read_lines(self.folder / "metrics.jsonl")]


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a metrics file, as text and parsed."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield text, json.loads(text)
        except ValueError:
            return


def check(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Raises UserError when `folder` cannot be the folder of this run.

    A new run needs an empty place; to resume there must be a run, and `recipe` must not make another one of it."""
    there = (folder / "recipe.yaml").is_file()
    if not resume:
        if there:
            raise UserError(f"--out {folder}: already holds a run; go on with it by --resume, or choose another --out")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: there is a file of this name; choose another --out")
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out {folder}: is not empty; choose another --out")
        return
    if not there:
        raise UserError(f"--resume: there is no run in {folder} (no recipe.yaml); leave out --resume to start one")
    if changed := differences(load_recipe(folder / "recipe.yaml"), recipe):
        raise UserError(
            "\n".join(
                f"--resume: {key} is {now!r}, but the run in {folder} has {then!r}; keep that, or start another run by --out"
                for key, then, now in changed
            )
        )


@contextmanager
def only_one(folder: Path, process: Process) -> Iterator[None]:
    """Nobody else trains in this folder meanwhile, such as a process of a run that was thought to be dead.

    Raises UserError on every process when somebody does."""
    files: list[TextIO] = []

    def lock() -> None:
        files.append((folder / ".lock").open("a"))
        try:
            fcntl.lockf(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, whatever its workers hold
        except OSError:
            raise UserError(f"--out {folder}: another process trains in it still; wait until it has ended, or end it") from None

    try:
        process.on_main_process(lock)
        yield
    finally:
        for file in files:
            file.close()


def open_run(folder: Path, recipe: Recipe) -> Run:
    """Make the run folder where it is not there yet, and write the complete recipe into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "recipe.yaml") as tmp:
            tmp.write_text(recipe.to_yaml(), encoding="utf-8")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another --out") from None
    return Run(folder)


def differences(then: Recipe, now: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every setting that differs and may not when a run goes on."""
    old, new = then.flat(), now.flat()
    free = tuple(f"{key}." for key in FREE)
    return [
        (key, old.get(key), new.get(key))
        for key in (old | new)
        if old.get(key) != new.get(key) and not f"{key}.".startswith(free)
    ]
