"""The logs of a run: metrics.jsonl, the list of corrupt files, a progress bar or status lines on stderr, trackers."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from data2vec.atomic_io import write_text
from data2vec.settings import JsonDict
from data2vec.train.trackers import Tracker


class RunLogger:
    """The logger of the main process, opened at step `step` of `steps`.

    A tracker that fails, for example for lack of a network, is disabled for the rest of the run."""

    def __init__(self, folder: Path, step: int, steps: int, trackers: dict[str, Tracker]):
        self.path = folder / "metrics.jsonl"
        self.file = self.path.open("a", encoding="utf-8")
        self.corrupt_path = folder / "corrupt_files.txt"
        self.corrupt_listed = self.corrupt_path.read_text(encoding="utf-8") if self.corrupt_path.exists() else ""
        self.trackers = trackers
        self.bar = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(), file=sys.stderr
        )
        self.steps = steps

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        with self._terminal():
            self.bar.update()

    def log(self, line: JsonDict, corrupt: list[str]) -> None:
        """Log the metrics of one step; `corrupt`: the corrupt examples so far, each "name: reason"."""
        listed = "".join(f"{name}\n" for name in corrupt)
        if listed != self.corrupt_listed:
            write_text(self.corrupt_path, listed)
            self.corrupt_listed = listed
        numbers = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
        self.file.write(json.dumps(numbers) + "\n")
        self.file.flush()
        if self.bar.disable:
            self.info(f"step {line['step']}/{self.steps}: {_status(line)}")
        else:
            with self._terminal():
                self.bar.set_postfix_str(_status(line))
        values = {key: value for key, value in line.items() if key != "step" and value is not None}
        self._track(lambda tracker: tracker.log(line["step"], values))

    def info(self, text: str) -> None:
        """Print a line on stderr, above the progress bar."""
        with self._terminal():
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Close the progress bar, the files and the trackers."""
        with self._terminal():
            self.bar.close()
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
    def log(self, line: JsonDict, corrupt: list[str]) -> None: ...
    def info(self, text: str) -> None: ...
    def close(self) -> None: ...


def _status(line: JsonDict) -> str:
    parts = [f"loss {line['loss']:.4f}", f"{line['samples_per_second']:.1f} samples/s"]
    parts += [f"{name} std {line[key]:.3f}" for name in ("target", "prediction") if (key := f"{name}_std") in line]
    if "valid_loss" in line:
        parts.insert(1, f"held out {line['valid_loss']:.4f}")
    if "probe_linear" in line:
        parts.append(f"probe {line['probe_linear']:.1%} linear, {line['probe_knn']:.1%} kNN")
    parts.append(f"data wait {line['data_wait']:.0%}")
    return ", ".join(parts + ([f"{line['corrupt']} corrupt files"] if line["corrupt"] else []))
