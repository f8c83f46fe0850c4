"""Corrupt examples: named with a reason, skipped, counted and logged; too many of them stop the run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import numpy as np

from data2vec.data.dataset import UNREADABLE, ExampleDataset, Signal
from data2vec.errors import CorruptExample, MissingPackage, RunStopped, UserError, get_logger
from data2vec.untrusted import open_regular

log = get_logger(__name__)


@contextmanager
def decoding(signal: Signal | None, unnamed: str) -> Iterator[None]:
    """A block that decodes a signal: whatever it raises becomes a CorruptExample with the path, or `unnamed`, and a reason; it
    is not entered if the signal itself says why it cannot be read (`UNREADABLE`).

    Decoders raise anything on damaged content, so no type of error is left out but MissingPackage, which passes."""
    signal = signal or {}
    name = signal.get("path") or unnamed
    if why := signal.get(UNREADABLE):
        raise CorruptExample(f"{name}: {why}")
    try:
        yield
    except MissingPackage:
        raise
    except Exception as error:
        raise CorruptExample(f"{name}: {_reason(error, signal)}") from None


def load_example(examples: ExampleDataset, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
    """`examples.load(index, limit, rng)`, where whatever goes wrong with one example is a CorruptExample, too: it must not end
    a run.

    Raises UserError for what is wrong with all examples."""
    try:
        return examples.load(index, limit, rng)
    except (CorruptExample, UserError):
        raise
    except Exception as error:
        raise CorruptExample(f"example {index + 1}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _reason(error: Exception, signal: Signal) -> str:
    if not isinstance(error, CorruptExample) and (problem := _file_problem(signal)):
        return problem
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    text = " ".join(text.split()).rstrip(".")
    if isinstance(error, MemoryError):
        return "decoding it needs more memory than there is"
    plain = isinstance(error, CorruptExample | OSError | RuntimeError | ValueError) and text
    return text if plain else f"{type(error).__name__}: {text}"


def _file_problem(signal: Signal) -> str | None:
    """Why the file of a signal cannot be opened; None if it can, or if the signal has its content."""
    if any(signal.get(content) is not None for content in ("bytes", "array")):
        return None
    if signal.get("path") is None:
        return "neither content nor a path is given"
    try:
        with open_regular(signal["path"]):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except IsADirectoryError:
        return "a folder, not a file"
    except (OSError, ValueError, TypeError) as error:
        return getattr(error, "strerror", None) or str(error)


class CorruptExamples:
    """Counts distinct corrupt examples. A single one is always tolerated; beyond that at most `max_fraction` of all.

    `total`: the number of examples. None: the total grows with the examples read so far. These are a sample, so three standard
    deviations more are tolerated; otherwise a fraction just below the limit would stop the run sooner or later."""

    def __init__(self, max_fraction: float, total: int | None = None):
        self.max_fraction = max_fraction
        self.total = total or 0
        self.sampled = total is None
        self.names: dict[str, None] = {}
        """ "name: reason" of each, in the order in which they were found."""

    def add(self, names: Iterable[str]) -> None:
        """Count and log those ("name: reason") not seen before. Raises RunStopped when there are too many."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(dict.fromkeys(new))
        for name in new[:20]:
            log.warning("skipped: %s", name)
        if len(new) > 20:
            log.warning("skipped: %d more", len(new) - 20)
        expected = self.max_fraction * self.total
        limit = max(1, int(expected + (3 * sqrt(expected) if self.sampled else 0))) if self.max_fraction > 0 else 0
        if len(self.names) > limit:
            shown = "; ".join(list(self.names)[:3])
            more = f"; and {len(self.names) - 3} more" if len(self.names) > 3 else ""
            raise RunStopped(
                f"{len(self.names)} of {self.total} examples cannot be read, more than data.max_corrupt: {self.max_fraction:g} "
                f"allows: {shown}{more}. Repair or remove them, or raise data.max_corrupt"
            )
