"""The run folder: what `RUN/` contains, and creating, resuming, locking and reading it.

`RUN/checkpoints/step-N/` is written by `data2vec.train.checkpoint`. Its file `complete.json` lists all other files with their
sizes and checksums: a checkpoint is complete when every one of them is as listed.
"""

import errno
import fcntl
import itertools
import json
import os
import stat
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from data2vec.atomic_io import write_text
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.local_path import split_weights
from data2vec.recipe.joint import JointRecipe, own_key
from data2vec.recipe.loading import load_recipe, read_recipe, validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.settings import JsonDict, JsonMapping, flatten
from data2vec.untrusted import Boundary, NotRegular, parse_json, read_regular

CHANGEABLE_ON_RESUME = (
    "train.steps",
    "train.device",
    "train.shard",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.async_checkpoints",
    "train.timeout_minutes",
    "data.workers",
    "data.timeout_minutes",
    "data.valid",
    "data.allow_changes",
    "objective.patience",
    "log",
    "probe",
)
"""Settings that may change when a run is resumed: they affect neither the steps already made nor the steps to come."""
MAX_BYTES = 2**26
"""The largest size of a small file of a run folder; a file of metrics may have MAX_METRICS_BYTES."""
MAX_METRICS_BYTES = 2**32
MAX_STEP = 2**53
SMALL_FILES = (
    *("recipe.yaml", "metrics.jsonl", "log.txt", "machine.json", "corrupt_files.txt", "report.html", "tracking_id.txt"),
    "validation.json",
)
"""What a run writes into its folder besides `checkpoints/` and `model/`."""
PARTS = "parts"
"""The folder of a joint run that holds a run folder for each part."""
MODEL_FILES = ("config.json", "model.safetensors", "head.safetensors", "pretraining.safetensors", "README.md", "tokenizer.json")
"""What a run writes into `model/`."""


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
    def parts(self) -> "list[Run]":
        """Of a joint run its parts, each a folder as of a run of its own; [] of any other run, and before the first end."""
        found = (Run(path) for path in sorted((self.folder / PARTS).glob("*")))
        return [run for run in found if run.recipe.is_file()]

    @property
    def has_model(self) -> bool:
        """Whether the trained model, or that of each part, is written."""
        return all((run.model / "config.json").is_file() for run in self.parts or [self])

    @property
    def report(self) -> Path:
        """The report, an HTML page. Written at the end of the run, and by `data2vec report`."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> list[JsonDict]:
        """The logged steps, oldest first. A damaged line, such as a last one cut short by a crash, is left out."""
        return [line for _, line in read_metrics(self.folder / "metrics.jsonl")]

    @property
    def starts(self) -> list[JsonDict]:
        """When and on which machine the run was started or resumed, and how that ended (`RUN/machine.json`), oldest first."""
        try:
            starts = json.loads(read_small_file(self.folder / "machine.json") or "[]")
        except (DamagedFile, ValueError, RecursionError):
            return []
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, complete or not, newest first."""
        folders = (path for path in (self.folder / "checkpoints").glob("step-*") if is_checkpoint_name(path.name))
        return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def default_run_dir(recipe: str | Path | Recipe) -> Path:
    """runs/ and the name of the recipe: a shipped one's with "-" for "/", a file's without its ending, a Recipe's modality."""
    if isinstance(recipe, Recipe):
        name = recipe.modality.name
    else:
        name = str(recipe).replace("/", "-") if str(recipe) in recipe_names() else Path(recipe).stem
    return Path("runs") / name


class DamagedFile(Exception):
    """A file of a run folder that cannot be what a run has written; `str(error)` is the reason."""


def is_checkpoint_name(name: str) -> bool:
    """Whether a checkpoint has this name, step-N."""
    return name.startswith("step-") and name[5:].isascii() and name[5:].isdigit()


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder of a checkpoint, complete or not."""
    return is_checkpoint_name(path.name) and (path / "complete.json").is_file()


def run_of_model(model: str | Path) -> Path:
    """The folder of the run that a model is named by: RUN of RUN@last and of RUN/checkpoints/step-N; else the path itself."""
    path = Path(split_weights(model)[0])
    return path.parent.parent if is_checkpoint(path) and path.resolve().parent.name == "checkpoints" else path


def result_file(model: str | Path, name: str) -> Path | None:
    """Where a result of a model is written by default, in its folder: NAME.json, or NAME-step-N.json of a checkpoint; None for
    what is no folder."""
    run, (path, which) = run_of_model(model), split_weights(model)
    which = Path(path).name if run != Path(path) else which
    return run / f"{name}{'-' * bool(which)}{which}.json" if run.is_dir() else None


def read_small_file(path: Path, max_bytes: int = MAX_BYTES) -> str | None:
    """The text of a file of a run folder; None if there is none. Raises DamagedFile for what is no regular file of text, and
    for a link to a file elsewhere."""
    if leads_elsewhere(path):
        raise DamagedFile("is a link that leads out of the folder of the run")
    try:
        return read_regular(path, max_bytes).decode()
    except FileNotFoundError:
        return None
    except (NotRegular, IsADirectoryError):
        raise DamagedFile("is not a regular file") from None
    except UnicodeDecodeError:
        raise DamagedFile("is not text in UTF-8") from None
    except ValueError as error:  # it is too large
        raise DamagedFile(f"cannot be read ({error})") from None
    except OSError as error:
        raise DamagedFile(f"cannot be read ({error.strerror or error})") from None


def leads_elsewhere(path: Path) -> bool:
    """Whether a file of a run folder is a link to one outside of it, which a stranger could aim at a private file."""
    return path.is_symlink() and Boundary(str(path.parent), path.parent).is_outside(str(path))


def read_metrics(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The lines of a metrics.jsonl file, as text and parsed, without damaged ones."""
    try:
        text = read_small_file(path, MAX_METRICS_BYTES) or ""
    except DamagedFile:
        return
    for line in text.splitlines():
        if (metrics := _parse_metrics(line)) is not None:
            yield line, metrics


def part_run(run: Run, part: str) -> Run:
    """The folder of a part of a joint run."""
    return Run(run.folder / PARTS / part)


def write_part_runs(run: Run, recipe: JointRecipe) -> None:
    """Write recipe, metrics and corrupt examples of each part of a joint run as a run of its own has them."""
    corrupt, lines = (read_small_file(run.folder / "corrupt_files.txt") or "").splitlines(), run.metrics
    for name, part in recipe.parts.items():
        folder = part_run(run, name).folder
        folder.mkdir(parents=True, exist_ok=True)
        metrics = metrics_of_part(lines, name)
        own = [line.removeprefix(f"{name}/") for line in corrupt if line.startswith(f"{name}/")]
        write_text(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in metrics))
        write_text(folder / "corrupt_files.txt", "".join(f"{line}\n" for line in own))
        write_text(folder / "recipe.yaml", part.to_yaml())


STEP_METRICS = ("step", "seconds", "samples_per_second", "data_wait")
"""Metrics of a step of a joint run that are not of its part."""


def of_part(line: JsonMapping, part: str) -> JsonDict:
    """The metrics of a step of a joint run, those of the part behind its name: loss of speech is speech/loss."""
    return {key if key in STEP_METRICS else f"{part}/{key}": value for key, value in line.items()}


def metrics_of_part(lines: Iterable[JsonMapping], part: str) -> list[JsonDict]:
    """The steps of a part of a joint run, as a run of its own would log them."""
    own = [line for line in lines if f"{part}/loss" in line]
    return [{key.removeprefix(f"{part}/"): value for key, value in line.items()} for line in own]


def _parse_metrics(line: str) -> JsonDict | None:
    try:
        metrics = parse_json(line)
    except ValueError:
        return None
    is_step = isinstance(metrics, dict) and type(metrics.get("step")) is int and 0 <= metrics["step"] <= MAX_STEP
    return metrics if is_step and all(map(_is_measurement, metrics.values())) else None


def _is_measurement(value: Any) -> bool:
    """Whether a value is what a run logs: a number, or null for one that is not finite."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def load_run_recipe(folder: Path, overrides: JsonMapping | None = None) -> Recipe:
    """The recipe of a run, which may be a stranger's and name no class to import.

    Raises UserError if it is not valid, with one line if another version of data2vec wrote it."""
    run = Run(folder)
    if leads_elsewhere(run.recipe):
        raise UserError(f"{run.recipe}: a link that leads out of the folder of the run; put the file itself there")
    with _other_version(folder, str(run.recipe)):
        return load_recipe(run.recipe, overrides or {}, trusted=False)


@contextmanager
def _other_version(folder: Path, source: str) -> Iterator[None]:
    """Turns errors of the recipe of a run that another version of data2vec wrote into one line that says so."""
    from data2vec import __version__

    try:
        yield
    except UserError as error:
        starts = Run(folder).starts
        writer = starts[-1].get("data2vec") if starts else None
        if writer is None or writer == __version__:
            raise
        problem = str(error).splitlines()[0].removeprefix(f"{source}: ")
        raise UserError(
            f"{folder}: written by data2vec {writer}; this is {__version__}, which cannot read its recipe ({problem}); "
            f"use data2vec {writer}, or train again"
        ) from None


SEVERAL = {"folds.json": "a cross-validation", "sweep.json": "a sweep", "results.json": "a comparison"}
"""What a folder of several runs is, by the file in it with their scores."""


def runs_below(folder: Path) -> str:
    """ "; it is the folder of …", with one of its runs, of a folder of several runs; "" for any other."""
    kind = next((f"{kind}, whose scores are in {name}" for name, kind in SEVERAL.items() if (folder / name).is_file()), None)
    depths = range(1, 3 if kind is None else 5)  # of what may be any folder, not all of it
    places = (place for depth in depths for place in sorted(folder.glob(f"{'*/' * depth}recipe.yaml")))
    if (recipe := next(places, None)) is None:
        return ""
    return f"; it is the folder of {kind or 'several runs'}; name one of its runs, such as {recipe.parent}"


def check_run_dir(folder: Path, resume: bool) -> None:
    """Raises UserError when `folder` cannot be the folder of this run: a new run needs a new or empty folder, and to resume
    there must be a run."""
    run = Run(folder)
    is_run = run.recipe.is_file() or bool(run.checkpoints)
    if not resume:
        if is_run:
            raise UserError(
                f"--out {folder}: already contains a run; resume it with --resume {folder}, or choose another --out"
            )
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder}: is a file; choose another --out")
        if folder.is_dir() and any(path.name not in (".lock", ".recipe.yaml.tmp") for path in folder.iterdir()):
            raise UserError(f"--out {folder}: is not empty; choose another --out")
    elif not is_run:
        several = runs_below(folder)
        fix = f"{several}, or repeat the command that made it" if several else "; omit --resume to start a new run"
        raise UserError(f"--resume: {folder} is not a run folder (no recipe.yaml){fix}")


def read_recorded_recipe(folder: Path) -> Recipe:
    """The recipe of a run, to resume it by: recipe.yaml, or where that is damaged, what the latest checkpoint has recorded.

    Raises UserError if there is neither."""
    try:
        recipe = load_run_recipe(folder)
        if missing := sorted({*flatten(read_recipe(recipe))} - {*flatten(read_recipe(Run(folder).recipe))}):
            raise UserError(f"{Run(folder).recipe}: is cut short, or a run has not written it: it has no {missing[0]}")
        return recipe
    except UserError:
        for checkpoint in Run(folder).checkpoints:
            with suppress(DamagedFile, OSError, ValueError, RecursionError, UserError):
                if isinstance(raw := read_state(checkpoint).get("recipe"), dict):
                    return validate_recipe(raw, f"{checkpoint}/state.json")
        raise


@dataclass(frozen=True)
class ResumePoint:
    """What a run is resumed from."""

    checkpoint: Path | None
    """The latest complete checkpoint; None for a run that ended before its first step."""
    recipe: Recipe
    """The recipe that the run has had up to there."""

    @property
    def step(self) -> int:
        """The optimizer steps that are made."""
        return 0 if self.checkpoint is None else int(self.checkpoint.name[5:])


def open_checkpoint(folder: Path, recipe: Recipe, source: JsonDict | None = None) -> ResumePoint:
    """Where to resume a run from, by a recipe that may differ from the run's in settings that are CHANGEABLE_ON_RESUME.

    `source`: the recipe that the caller has named, as it is written; None: none. Raises UserError when a run that has begun has
    no complete checkpoint, when it was started with another recipe than `source`, when `recipe` differs from its own in other
    settings, and when the run has made more steps than `recipe` has."""
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None and (begun := _record(folder)):
        raise UserError(
            f"--resume: {folder} has no complete checkpoint to resume from; its {begun} is left as it is; "
            "start again with another --out"
        )
    point = ResumePoint(checkpoint, _recorded_recipe(folder, checkpoint))
    if source is not None:
        _check_source(folder, checkpoint, source)
    if changed := changed_settings(point.recipe, recipe):
        raise UserError(
            *(
                f"--resume: {key} is {new!r}, but {old!r} in the run in {folder}; keep {old!r}, or start a new run with --out"
                for key, old, new in changed
            )
        )
    if point.step > recipe.train.steps:
        raise UserError(
            f"--resume: train.steps is {recipe.train.steps}, but the run in {folder} has made {point.step}; set "
            f"train.steps={point.step} to end it there, or more"
        )
    return point


def _check_source(folder: Path, checkpoint: Path | None, source: JsonDict) -> None:
    """Raises UserError if a run was started with another recipe than this one."""
    recorded = None if checkpoint is None else read_state(checkpoint).get("source")
    if not isinstance(recorded, dict):
        return
    before, after = flatten(recorded), flatten(source)
    for key in before | after:
        if before.get(key) != after.get(key):
            raise UserError(
                f"--resume: {folder} was started with another recipe: {key} is {after.get(key)!r} in the one named, "
                f"{before.get(key)!r} in that; omit the recipe (--resume {folder}), and give what is to change as key=value"
            )


def _record(folder: Path) -> str | None:
    """What a run that has begun has written, which starting again would replace; None if there is nothing."""
    for name in ("metrics.jsonl", "checkpoints", "model"):
        path = folder / name
        if path.is_dir() and any(not each.name.startswith(".") for each in path.iterdir()):
            return name
        if not path.is_dir() and path.exists() and (not path.is_file() or path.stat().st_size):
            return name
    return None


def _recorded_recipe(folder: Path, checkpoint: Path | None) -> Recipe:
    """The recipe of a run: that of its checkpoint, which is known to be complete, or of recipe.yaml if there is none in it."""
    state = {} if checkpoint is None else read_state(checkpoint)
    if isinstance(raw := state.get("recipe"), dict):
        with _other_version(folder, f"{checkpoint}/state.json"):
            return validate_recipe(raw, f"{checkpoint}/state.json")
    return load_run_recipe(folder)


def set_aside_damaged(folder: Path, step: int) -> None:
    """Rename the files of a run folder that are not what a run has written, so that a run can go on; reported on stderr.

    The lines of metrics.jsonl that are whole are kept, up to `step`."""
    run = Run(folder)
    for path in (*(folder / name for name in SMALL_FILES), *(run.model / name for name in MODEL_FILES)):
        _set_aside_unless_regular(path)
    for path in (run.model, *run.checkpoints):
        if os.path.lexists(path) and not path.is_dir():
            _set_aside(path, "is not a folder")
    _set_aside_unless(folder / "machine.json", lambda text: isinstance(json.loads(text), list))
    _set_aside_unless(folder / "tracking_id.txt", lambda text: text.isascii() and text.isalnum())
    _set_aside_unless(folder / "corrupt_files.txt", lambda text: True)
    metrics = folder / "metrics.jsonl"
    try:
        lines = (read_small_file(metrics, MAX_METRICS_BYTES) or "").splitlines()
    except DamagedFile as error:
        _set_aside(metrics, str(error))
        lines = []
    parsed = [_parse_metrics(line) for line in lines]
    if any(line is None for line in parsed[:-1]):  # a last one is cut short by a kill
        _set_aside(metrics, f"has {parsed.count(None)} damaged lines; the others are kept")
    kept = [line for line, found in zip(lines, parsed, strict=True) if found is not None and found["step"] <= step]
    write_text(metrics, "".join(f"{line}\n" for line in kept))


def _set_aside_unless_regular(path: Path) -> None:
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        _set_aside(path, "is not a regular file")


def _set_aside_unless(path: Path, is_valid: Callable[[str], bool]) -> None:
    try:
        text = read_small_file(path)
        if text is not None and not is_valid(text):
            raise DamagedFile("has another content")
    except (DamagedFile, ValueError, RecursionError) as error:
        _set_aside(path, str(error) if isinstance(error, DamagedFile) else "is torn or damaged")


def _set_aside(path: Path, reason: str) -> None:
    names = (path.with_name(f"{path.name}.damaged{i or ''}") for i in itertools.count())
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    print(f"data2vec: {path} {reason}; renamed to {free.name}", file=sys.stderr)


def changed_settings(old: Recipe, new: Recipe) -> list[tuple[str, object, object]]:
    """(key, old value, new value) of every setting that differs and may not change on resume."""
    before, after = old.flat(), new.flat()
    changeable = tuple(f"{key}." for key in CHANGEABLE_ON_RESUME)  # also of a part of a joint run
    return [
        (key, before.get(key), after.get(key))
        for key in (before | after)
        if before.get(key) != after.get(key) and not f"{own_key(key)}.".startswith(changeable)
    ]


def create_run_dir(folder: Path, recipe: Recipe) -> Run:
    """Write the complete recipe into the run folder."""
    try:
        _set_aside_unless_regular(folder / "recipe.yaml")
        write_text(folder / "recipe.yaml", recipe.to_yaml())
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror or error}); choose another --out") from None
    return Run(folder)


@contextmanager
def exclusive_lock(folder: Path, process: Process, holder: str = "another process is training") -> Iterator[None]:
    """Create an output folder unless it exists, and lock it against other processes, such as one that was believed dead.

    A folder that was created and stays empty is removed at the end. `holder` says who has the lock, in errors. Raises UserError
    on every process when it is locked already, or cannot be written."""
    locked: list[int] = []
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / ".lock"

    def lock() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _set_aside_unless_regular(file)
            locked.append(open_lock_file(file))
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be written ({error.strerror or error}); choose another --out") from None
        lock_bytes(locked[0], file, holder)

    def unlock() -> None:
        if created and folder.is_dir() and [path.name for path in folder.iterdir()] == [file.name]:
            file.unlink()
            for path in created:
                path.rmdir()
        for handle in locked:
            os.close(handle)

    try:
        process.on_main_process(lock)
        yield
    finally:
        unlock()


def open_lock_file(file: Path) -> int:
    """The descriptor of a lock file, which is created unless it exists. Raises OSError."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)


def lock_bytes(handle: int, file: Path, holder: str, spans: Iterable[tuple[int, int]] = ((0, 0),)) -> None:
    """Lock an open lock file against other processes; or only `spans` of it, each the number of bytes and the first one.

    Raises UserError, which names the folder and the `holder`, when it is locked already, or cannot be."""
    try:
        for length, start in spans:
            # fcntl.lockf, not flock: a flock would live on in forked data workers after this process is killed.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        if not os.path.samestat(os.fstat(handle), file.stat()):  # its holder has ended, and removed it
            raise BlockingIOError(errno.EAGAIN, "locked")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.ENOENT):
            raise UserError(f"--out {file.parent}: {holder} in this folder; wait until it ends, or stop it") from None
        raise UserError(f"--out {file.parent}: cannot be locked ({error.strerror or error}); choose another --out") from None


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
        files = _listed_files(folder)
        for name, expected in files.items():
            status = (folder / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is not a regular file"
            if status.st_size != expected["bytes"]:
                return f"{name} has {status.st_size} bytes of {expected['bytes']}"
            if crc32(folder / name) != expected["crc32"]:
                return f"{name} has a wrong checksum"
        if extra := {path.name for path in folder.glob("*.safetensors")} - files.keys():
            return f"{min(extra)[:100]} is not of it"
        if "state.json" in files and read_state(folder).get("step") != int(folder.name[5:]):
            return "state.json is of another step"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (DamagedFile, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"complete.json cannot be read ({error})"
    return None


def remove_checkpoint(folder: Path) -> None:
    """Delete what a run has written into a checkpoint, and its folder unless it holds anything else."""
    try:
        names = set(_listed_files(folder))
    except (DamagedFile, OSError, ValueError, AttributeError, RecursionError):
        names = {path.name for path in folder.glob("*.safetensors")} | {"state.json"}
    for name in (*names, "complete.json"):  # the list goes last, so that a kill leaves no unknown files
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _listed_files(folder: Path) -> JsonDict:
    """The files of a checkpoint, by name, as complete.json lists them."""
    text = read_small_file(folder / "complete.json")
    if text is None:
        raise FileNotFoundError(errno.ENOENT, "missing", str(folder / "complete.json"))
    files: JsonDict = json.loads(text)
    if wrong := [name for name in files if name in ("", ".", "..") or Path(name).name != name]:
        raise ValueError(f"it lists {wrong[0][:100]!r}, outside the checkpoint")
    return files


def read_state(folder: Path) -> JsonDict:
    """`state.json` of a complete checkpoint."""
    state = json.loads(read_small_file(folder / "state.json", MAX_METRICS_BYTES) or "{}")
    if not isinstance(state, dict):
        raise ValueError("state.json is no object")
    return state


def load_checkpoint_weights(folder: Path, objective: nn.Module) -> None:
    """Load the student, head and teacher of a checkpoint into `objective`. Raises UserError if they do not fit."""
    read_checkpoint_tensors(folder, objective_tensors(objective))


def objective_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """All weights by name, without copying them; those that several parts share, by their first name."""
    tensors = objective.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor.detach() for name, tensor in tensors.items() if first[id(tensor)] == name}


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
