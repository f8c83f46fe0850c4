"""Where else the lines of metrics.jsonl go, as they are written: TensorBoard, Weights & Biases, Trackio.

Each is imported only when it is switched on. What it stores, and where, is its own business; a run that is taken up again goes
on in the same place.
"""

import importlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from data2vec.errors import UserError
from data2vec.recipe.recipe import Recipe


class Tracker(Protocol):
    """A sink for numbers. `log` and `close` raise an OSError when it cannot go on, such as without a network."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Store what is left."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases: its server, or files in `RUN/wandb`, by its own settings."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        import wandb

        with told("wandb", wandb.Error, OSError):
            self.run = wandb.init(
                project=recipe.log.project,
                name=folder.name,
                id=_identity(folder),
                resume="allow",
                dir=folder,
                config=recipe.model_dump(mode="json"),
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step, commit=True)  # else it is held back until the next step comes

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """Trackio: a data base on this machine, or a server, by its own settings. It knows a run only by its name."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        import trackio

        with told("trackio", OSError, ValueError):
            trackio.init(
                project=recipe.log.project,
                name=f"{folder.name}-{_identity(folder)}",
                resume="allow",
                config=recipe.model_dump(mode="json"),
            )
        self.trackio = trackio

    def log(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(values, step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, tuple[Callable[[Path, Recipe, int], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "SummaryWriter"),
    "wandb": (WandB, "wandb", "init"),
    "trackio": (Trackio, "trackio", "init"),
}
"""By the name in `log.trackers`: the sink, and what it needs of which module."""


def check(names: Sequence[str]) -> None:
    """Raises UserError when the package of a tracker is not there or not whole."""
    for name in names:
        _, module, needed = TRACKERS[name]
        try:
            getattr(importlib.import_module(module), needed)
        except (ImportError, AttributeError) as error:  # a folder called like it passes for an empty module
            raise UserError(f"log.trackers: {name} cannot be used ({error}): pip install 'data2vec[{name}]'") from None


def open_trackers(folder: Path, recipe: Recipe, step: int) -> dict[str, Tracker]:
    """The trackers that the recipe names, for the run in `folder`, which stands at `step`.

    Raises UserError when one cannot start."""
    return {name: TRACKERS[name][0](folder, recipe, step) for name in recipe.log.trackers}


@contextmanager
def told(name: str, *failures: type[Exception]) -> Iterator[None]:
    """Turns a tracker's word for why it cannot start into a UserError."""
    try:
        yield
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"log.trackers: {name} cannot start ({reason}); mend that, or leave it out, and go on by --resume"
        ) from None


def _identity(folder: Path) -> str:
    """What tells this run from all others of its name; the same when it is taken up again."""
    path = folder / "tracking_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")
