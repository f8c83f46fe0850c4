"""A lock that another process holds: locks of the same process do not exclude each other."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[3]), int(sys.argv[2]))
print("locked", flush=True)
input()
"""


@contextmanager
def locked_by_another_process(path: Path, first: int = 0, length: int = 0) -> Iterator[None]:
    """A block during which another process holds the lock file `path`, all of it or `length` bytes from `first` on."""
    command = [sys.executable, "-c", CODE, str(path), str(first), str(length)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "locked\n"
        yield
        child.kill()
