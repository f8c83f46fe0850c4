"""The logs of a run: metrics.jsonl, log.txt, the list of corrupt files, a progress bar or status lines on stderr, trackers."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data2vec.atomic_io import write_text
from data2vec.console.progress import has_bars, label_of_lines, progress, say
from data2vec.console.quantities import format_duration
from data2vec.errors import printable
from data2vec.run_dir import of_part
from data2vec.settings import JsonDict
from data2vec.tasks.validation import describe_scores
from data2vec.train.trackers import Tracker

MAX_LOG_BYTES = 2**24
"""A longer file loses its older half."""


class RunLog(logging.Handler):
    """RUN/log.txt. Appends what the package logs, at any level but debug, and status lines. That the disk is full ends no run
    here."""

    def __init__(self, folder: Path):
        super().__init__(logging.INFO)
        self.path = folder / "log.txt"
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
        logging.getLogger("data2vec").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message. Without other handlers it is printed as well, as if this one was not there."""
        self._append(record)
        handlers = [*logging.getLogger("data2vec").handlers, *logging.getLogger().handlers]
        alone, last = all(isinstance(each, RunLog) for each in handlers), logging.lastResort
        if alone and last is not None and record.levelno >= last.level:
            last.handle(record)

    def _append(self, record: logging.LogRecord) -> None:
        """Append a message, one line for each of its own."""
        begin, *lines = (printable(line) for line in self.format(record).split("\n"))
        with suppress(OSError):
            self._shorten()
            # Not through a link or a pipe, which a stranger's folder may have in its place.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            with open(handle, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in (begin, *(f"  {line}" for line in lines))))

    def status(self, text: str) -> None:
        """Append a status line."""
        self._append(logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "STATUS"}))

    def close(self) -> None:
        """Append nothing any more."""
        logging.getLogger("data2vec").removeHandler(self)
        super().close()

    def _shorten(self) -> None:
        if self.path.is_file() and self.path.stat().st_size > MAX_LOG_BYTES:
            with self.path.open("rb") as file:
                file.seek(-MAX_LOG_BYTES // 2, os.SEEK_END)
                kept = file.read().partition(b"\n")[2]
            write_text(self.path, kept.decode("utf-8", errors="replace"))


class RunLogger:
    """The logger of the main process, opened at step `step` of `steps`.

    A tracker that fails, for example for lack of a network, is disabled for the rest of the run."""

    def __init__(self, folder: Path, step: int, steps: int, trackers: dict[str, Tracker]):
        self.path = folder / "metrics.jsonl"
        self.file = self.path.open("a", encoding="utf-8")
        self.corrupt_path = folder / "corrupt_files.txt"
        self.corrupt_listed = self.corrupt_path.read_text(encoding="utf-8") if self.corrupt_path.exists() else ""
        self.trackers = trackers
        self.log_file = RunLog(folder)
        self.bar = progress(desc=label_of_lines().removesuffix(": "), total=steps, unit="step", initial=step, lines=False)
        self.validation = ""
        """The last scores on validation data, which stay in the bar."""
        self.steps, self.first_step, self.opened = steps, step, time.monotonic()

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        with self._terminal():
            self.bar.update()

    def log(self, line: JsonDict, corrupt: list[str], part: str = "") -> None:
        """Log the metrics of one step; `corrupt`: the corrupt examples so far, each "name: reason". `part`: what makes the step
        in a joint run; its name is put before those of its metrics."""
        listed = "".join(f"{name}\n" for name in corrupt)
        if listed != self.corrupt_listed:
            write_text(self.corrupt_path, listed)
            self.corrupt_listed = listed
        named = of_part(line, part) if part else line
        infinite = {key for key, value in named.items() if isinstance(value, float) and not math.isfinite(value)}
        numbers = {key: None if key in infinite else value for key, value in named.items()}
        self.file.write(json.dumps(numbers) + "\n")
        self.file.flush()
        scores = describe_scores(line)
        self.validation = scores or self.validation
        done = f"step {line['step']}/{self.steps}: {f'{part}, ' if part else ''}"
        status = f"{done}{_status(line, scores)}{self._time_left(line['step'])}"
        if has_bars():
            with self._terminal():
                self.bar.set_postfix_str(_status(line, self.validation))
        if has_bars() and not scores:
            self.log_file.status(status)
        else:
            self.info(status)
        values = {key: value for key, value in named.items() if key != "step" and value is not None}
        self._track(lambda tracker: tracker.log(line["step"], values))

    def info(self, text: str) -> None:
        """Print a line on stderr, above the progress bar, and write it to log.txt."""
        self.log_file.status(text)
        with self._terminal():
            say(text)

    def _time_left(self, step: int) -> str:
        """The time to the end at the speed so far, evaluations included; "" at the first and at the last step."""
        made = step - self.first_step
        if made < 2 or step >= self.steps:
            return ""
        return f", {format_duration((time.monotonic() - self.opened) / made * (self.steps - step))} left"

    def close(self) -> None:
        """Close the progress bar, the files and the trackers."""
        with self._terminal():
            self.bar.close()
        self.log_file.close()
        with suppress(OSError):  # every line was flushed when it was logged, or that failed
            self.file.close()
        self._track(lambda tracker: tracker.close())

    @contextmanager
    def _terminal(self) -> Iterator[None]:
        """A block that prints: that the terminal is closed ends no run."""
        try:
            yield
        except OSError:
            self.bar.disable = True

    def _track(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                call(tracker)
            except OSError as error:
                self.info(f"log.trackers: {name} failed ({error}) and is disabled for this run; metrics.jsonl is complete")
                del self.trackers[name]


class NullLogger:
    """The logger of all other processes: does nothing."""

    def advance(self) -> None: ...
    def log(self, line: JsonDict, corrupt: list[str], part: str = "") -> None: ...
    def info(self, text: str) -> None: ...
    def close(self) -> None: ...


def _status(line: JsonDict, scores: str) -> str:
    parts = [f"loss {line['loss']:.4f}", f"{line['samples_per_second']:.1f} samples/s"]
    parts += [f"{name} std {line[key]:.3f}" for name in ("target", "prediction") if (key := f"{name}_std") in line]
    if "valid_loss" in line:
        parts.insert(1, f"held out {line['valid_loss']:.4f}")
    if "probe_linear" in line:
        parts.append(f"probe {line['probe_linear']:.1%} linear, {line['probe_knn']:.1%} kNN")
    parts += [scores] if scores else []
    if "drift_features" in line:
        parts.append(f"drift {line['drift_features']:.3f}")
    parts.append(f"data wait {line['data_wait']:.0%}")
    return ", ".join(parts + ([f"{line['corrupt']} corrupt files"] if line["corrupt"] else []))
