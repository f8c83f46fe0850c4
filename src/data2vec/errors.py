"""The errors of the package. Each message is one line that a user can act on.

Names, labels and values in messages were often written by others: `printable` and `quoted` show them as text.
"""

import difflib
import logging
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MAX_LINE = 2000
"""Characters of a line of a message; the rest is left out."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks, marks that reverse the direction of text, and halves of surrogate pairs."""
_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = _QUOTE.maxlong = 120


def printable(text: str) -> str:
    """Text as one line that any terminal, file or page can show: what would change the rest of it is escaped, as in `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def quoted(value: object) -> str:
    """A value of any size and kind for a message: its `repr`, shortened."""
    try:
        return printable(_QUOTE.repr(value))
    except ValueError:  # an integer of more digits than Python converts to text
        return f"a {type(value).__name__} too large to show"


class _Message(Exception):
    """An error whose message, one line for each argument, is shown as text."""

    def __init__(self, *lines: str):
        super().__init__(*(_shortened(printable(line)) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"


class UserError(_Message):
    """A user error: the message names the wrong value, what is allowed, and how to fix it. The command exits with 2."""


class MissingPackage(UserError):
    """An optional package that the data needs is not installed; the message names what installs it."""


class RunStopped(_Message):
    """A run that had to stop: a collapse, too many corrupt files, a full disk. The command exits with 1."""


class Unwritable(RunStopped):
    """A run stopped because its folder cannot be written any more: a full disk, or one that became read-only."""


class Unhealthy(RunStopped):
    """A run stopped by its own health checks. With several processes, all stop at the same step."""


class Interrupted(RunStopped):
    """A run stopped by a signal after it saved a checkpoint. The command exits with 128 + `signal`, as shells do."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal, str(self))


class Unfinished(_Message):
    """This process has done its share of some work, and others have the rest; or another one writes the result. The command
    exits with 0."""


class CorruptExample(_Message):
    """One example that cannot be decoded: it is skipped, counted and named. `str(error)` is "name: reason"."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known words, or "" where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6) if len(word) < 100 else []
    return f"; did you mean {close[0]!r}?" if close else ""


_logged: ContextVar[set[str] | None] = ContextVar("logged", default=None)


@contextmanager
def without_repeats(logged: set[str]) -> Iterator[None]:
    """A block in which the package logs only messages that are not in `logged`, to which they are added."""
    token = _logged.set(logged)
    try:
        yield
    finally:
        _logged.reset(token)


class _ShowArguments(logging.Filter):
    """Shows the arguments of log messages, such as names of files, as text, and no message again in `without_repeats`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(printable(item) if isinstance(item, str) else item for item in record.args)
        if (logged := _logged.get()) is None:
            return True
        new = (message := record.getMessage()) not in logged
        logged.add(message)
        return new


_SHOW_ARGUMENTS = _ShowArguments()


@contextmanager
def only_errors(name: str) -> Iterator[None]:
    """A block in which the logger `name`, and those below it that have no level of their own, log errors only."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. What it logs is shown as text, whoever wrote the names in it."""
    logger = logging.getLogger(name)
    logger.addFilter(_SHOW_ARGUMENTS)
    return logger
