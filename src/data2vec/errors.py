"""What can go wrong, told in one line."""


class UserError(Exception):
    """A mistake the user can mend: names the wrong value, what is allowed, and the mend. The command exits with 2."""


class RunStopped(Exception):
    """A run that ended for a reason of its own: collapsed representations, too many bad files, a full disk. Exit 1."""


class Unhealthy(RunStopped):
    """A run that its own measurements ended; of many processes, all end at the same step."""


class Interrupted(RunStopped):
    """A run that was asked to stop by a signal, and saved a checkpoint first. Exit 128 + `signal`, as shells have it."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


class BadExample(Exception):
    """One example that will not decode: skipped, counted and named. `str(error)` is "name: reason"."""
