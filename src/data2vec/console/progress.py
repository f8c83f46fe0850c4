"""What is shown while work goes on, on stderr: progress bars, or lines now and then where there is no terminal; and how much.

There is one level for all of it. `debug`: also what is of use to a developer. `info`: progress and status, by default.
`warning`: only warnings and errors.
"""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, get_args

from tqdm import tqdm

Level = Literal["debug", "info", "warning"]
LEVELS: tuple[Level, ...] = get_args(Level)
SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal."""
_LINE = "{desc}: {n_fmt} of {total_fmt} %s, {elapsed} elapsed, {remaining} left"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} %s, {elapsed} elapsed"
_shown: dict[str, Level] = {"level": "info"}
"""Of the whole process, threads included."""
_label: ContextVar[str] = ContextVar("label", default="")


def set_level(level: Level) -> None:
    """Show as much as this level says. With debug, all messages of the package are shown."""
    _shown["level"] = level
    if level == "debug":
        logger = logging.getLogger("data2vec")
        logger.setLevel(logging.DEBUG)
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())


def shown_level() -> Level:
    """The level that `set_level` has set."""
    return _shown["level"]


def is_shown() -> bool:
    """Whether progress and status are shown."""
    return _shown["level"] != "warning"


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """A block whose status lines begin with a label, such as the settings of one run of a sweep."""
    token = _label.set(label)
    try:
        yield
    finally:
        _label.reset(token)


def label_of_lines() -> str:
    """The label of the block, with the colon that separates it from a line; "" outside of `labelled`."""
    return f"{label}: " if (label := _label.get()) else ""


def say(text: str) -> None:
    """Print a status line on stderr, above progress bars. That the terminal is closed is no error."""
    if not is_shown():
        return
    with suppress(OSError):
        tqdm.write("\n".join(label_of_lines() + line for line in text.split("\n")), file=sys.stderr)


def has_bars() -> bool:
    """Whether stderr shows bars, which are drawn over and over: a terminal or a notebook does."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(
    items: Any = None,
    desc: str = "",
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    delay: float = 0.0,
    hidden: bool = False,
    lines: bool = True,
) -> Any:
    """A `tqdm` over `items`, as wide as the terminal, with the time that is left if their number is known.

    Where there are no bars, a line is printed every SECONDS_BETWEEN_LINES, or nothing without `lines`. `delay`: seconds before
    it is first shown; `hidden`: show nothing."""
    settings = {"desc": desc, "total": total, "unit": unit, "initial": initial, "file": sys.stderr, "leave": False}
    if has_bars():
        return _Bar(items, dynamic_ncols=True, delay=delay, disable=hidden or not is_shown(), **settings)
    disable = hidden or not lines or not is_shown()
    often = {"mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES}
    has_total = total is not None or hasattr(items, "__len__")
    line = (_LINE if has_total else _LINE_WITHOUT_TOTAL) % f"{unit}{'es' if unit.endswith(('ch', 's', 'x')) else 's'}"
    return _Lines(items, bar_format=line, delay=SECONDS_BETWEEN_LINES, disable=disable, **often, **settings)


class _Bar(tqdm):
    """Progress for which a closed terminal is no error."""

    def update(self, n: float | None = 1) -> bool | None:
        with suppress(OSError):
            return bool(super().update(n))
        return None


class _Lines(_Bar):
    """Progress as whole lines, for files and pipes."""

    cleared = False
    """Whether `tqdm.write` is writing, which clears bars and draws them again: here is none."""

    def clear(self, nolock: bool = False) -> None:
        self.cleared = True

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.cleared:
            self.cleared = False
        elif msg is None and self.n > self.initial:
            print(f"{label_of_lines()}{self}", file=self.fp, flush=True)
        return True

    def close(self) -> None:
        if not self.disable:
            self.fp = io.StringIO()  # it would clear the line of a bar
        super().close()
