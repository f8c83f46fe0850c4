"""The run folder: what `RUN/` contains, and creating, resuming, locking and reading it.

`RUN/checkpoints/step-N/` is written by `data2vec.train.checkpoint`. Its file `complete.json` lists all other files with their
sizes and checksums: a checkpoint is complete when every one of them is as listed.
"""

import fcntl
import json
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError
from torch import Tensor, nn

from data2vec.atomic_io import write_text
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe, recipe_names
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict, JsonMapping

CHANGEABLE_ON_RESUME = (
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
"""Settings that may change when a run is resumed: they affect neither the steps already made nor the steps to come."""


@dataclass(frozen=True)
class Run:
    """A run on disk, finished or not."""

    folder: Path
    """Where everything is."""

    @property
    def recipe(self) -> Path:
        """The complete recipe: running it again gives the same run."""
        return self.folder / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The trained model: `data2vec.load(run.model)`. Written at the end, or whenever validation improves."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The report, an HTML page. Written at the end of the run, and by `data2vec report`."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> list[JsonDict]:
        """The logged steps, oldest first. A last line cut short by a crash is left out."""
        return [line for _, line in read_metrics(self.folder / "metrics.jsonl")]

    @property
    def starts(self) -> list[JsonDict]:
        """When and on which machine the run was started or resumed, and how that ended (`RUN/machine.json`), oldest first."""
        path = self.folder / "machine.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, complete or not, newest first."""
        folders = (path for path in (self.folder / "checkpoints").glob("step-*") if path.name[5:].isdigit())
        return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def default_run_dir(recipe: str | Path | Recipe) -> Path:
    """runs/ and the name of the recipe: a shipped one's with "-" for "/", a file's without its ending, a Recipe's modality."""
    if isinstance(recipe, Recipe):
        name = recipe.modality.name
    else:
        name = str(recipe).replace("/", "-") if str(recipe) in recipe_names() else Path(recipe).stem
    return Path("runs") / name


def read_metrics(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The lines of a metrics.jsonl file, as text and parsed; ends at a line cut short."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield text, json.loads(text)
        except ValueError:
            return


def load_run_recipe(folder: Path, overrides: JsonMapping | None = None) -> Recipe:
    """The recipe of a run, which may be a stranger's and name no class to import.

    Raises UserError if it is not valid, with one line if another version of data2vec wrote it."""
    from data2vec import __version__

    run = Run(folder)
    try:
        return load_recipe(run.recipe, overrides or {}, trusted=False)
    except UserError as error:
        writer = run.starts[-1].get("data2vec") if run.starts else None
        if writer is None or writer == __version__:
            raise
        problem = str(error).splitlines()[0].removeprefix(f"{run.recipe}: ")
        raise UserError(
            f"{folder}: written by data2vec {writer}; this is {__version__}, which cannot read its recipe ({problem}); "
            f"use data2vec {writer}, or train again"
        ) from None


def check_run_dir(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Raises UserError when `folder` cannot be the folder of this run.

    A new run needs a new or empty folder; to resume, there must be a run whose recipe differs from `recipe` only in settings
    that are CHANGEABLE_ON_RESUME."""
    is_run = (folder / "recipe.yaml").is_file()
    if not resume:
        if is_run:
            raise UserError(f"--out {folder}: already contains a run; resume it with --resume, or choose another --out")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: is a file; choose another --out")
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out {folder}: is not empty; choose another --out")
        return
    if not is_run:
        raise UserError(f"--resume: {folder} is not a run folder (no recipe.yaml); omit --resume to start a new run")
    if changed := changed_settings(load_run_recipe(folder), recipe):
        raise UserError(
            *(
                f"--resume: {key} is {new!r}, but {old!r} in the run in {folder}; keep {old!r}, or start a new run with --out"
                for key, old, new in changed
            )
        )


def changed_settings(old: Recipe, new: Recipe) -> list[tuple[str, object, object]]:
    """(key, old value, new value) of every setting that differs and may not change on resume."""
    before, after = old.flat(), new.flat()
    changeable = tuple(f"{key}." for key in CHANGEABLE_ON_RESUME)
    return [
        (key, before.get(key), after.get(key))
        for key in (before | after)
        if before.get(key) != after.get(key) and not f"{key}.".startswith(changeable)
    ]


def create_run_dir(folder: Path, recipe: Recipe) -> Run:
    """Create the run folder unless it exists, and write the complete recipe into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another --out") from None
    return Run(folder)


@contextmanager
def exclusive_lock(folder: Path, process: Process, holder: str = "another process is training") -> Iterator[None]:
    """Lock an output folder against other processes, such as one that was believed dead; `holder` says who has it, in errors.

    Raises UserError on every process when it is locked already."""
    files: list[TextIO] = []

    def lock() -> None:
        files.append((folder / ".lock").open("a"))
        try:
            # fcntl.lockf, not filelock: a flock would live on in forked data workers after this process is killed.
            fcntl.lockf(files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {folder}: {holder} in this folder; wait until it ends, or stop it") from None

    try:
        process.on_main_process(lock)
        yield
    finally:
        for file in files:
            file.close()


def latest_checkpoint(run: Path) -> Path | None:
    """The latest complete checkpoint of a run, or None. Damaged ones that are skipped are reported on stderr."""
    for folder in Run(run).checkpoints:
        damage = checkpoint_damage(folder)
        if damage is None:
            return folder
        print(f"data2vec: skipping damaged checkpoint {folder}: {damage}", file=sys.stderr)
    return None


def checkpoint_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is complete."""
    try:
        files = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if crc32(folder / name) != expected["crc32"]:
                return f"{name} has a wrong checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"complete.json cannot be read ({error})"
    return None


def load_checkpoint_weights(folder: Path, objective: nn.Module) -> None:
    """Load the student, head and teacher of a checkpoint into `objective`. Raises UserError if they do not fit."""
    read_checkpoint_tensors(folder, objective_tensors(objective))


def objective_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """All weights by name, without copying them."""
    return {name: tensor.detach() for name, tensor in objective.state_dict().items()}


def read_checkpoint_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, or this process's shards of them, from the files of a checkpoint, sharded or not."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        missing = tensors.keys() - reader.read_metadata().state_dict_metadata.keys()
        if missing:
            raise ValueError(f"it has no {min(missing)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads for itself
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (RuntimeError, ValueError, SafetensorError, dcp.CheckpointException) as error:
        failures = getattr(error, "failures", None)
        cause = next(iter(failures.values()))[0] if failures else error
        raise UserError(f"checkpoint {folder} does not fit this recipe: {str(cause).splitlines()[0]}") from None


def crc32(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
