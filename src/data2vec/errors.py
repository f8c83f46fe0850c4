"""The errors of the package. Each message is one line that a user can act on."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user error: the message names the wrong value, what is allowed, and how to fix it. The command exits with 2."""


class RunStopped(Exception):
    """A run that had to stop: a collapse, too many corrupt files, a full disk. The command exits with 1."""


class Unhealthy(RunStopped):
    """A run stopped by its own health checks. With several processes, all stop at the same step."""


class Interrupted(RunStopped):
    """A run stopped by a signal after it saved a checkpoint. The command exits with 128 + `signal`, as shells do."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


class CorruptExample(Exception):
    """One example that cannot be decoded: it is skipped, counted and named. `str(error)` is "name: reason"."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of the known words, or "" where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
