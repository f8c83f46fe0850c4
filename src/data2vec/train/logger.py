"""What a run tells while it goes on: metrics.jsonl, the list of corrupt files, a progress bar, trackers."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data2vec.atomic_io import atomic_write
from data2vec.run_dir import read_lines
from data2vec.train.trackers import Tracker


class Journal:
    """Writes what the first process learns about the run. `step` is where the run stands when the journal is opened;
    a tracker that fails, say because the network is gone, is left out from then on."""

    def __init__(self, folder: Path, step: int, steps: int, trackers: dict[str, Tracker]):
        self.path = folder / "metrics.jsonl"
        _forget_after(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")
        self.corrupt_path = folder / "corrupt_files.txt"
        self.trackers = trackers
        self.bar = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(), file=sys.stderr
        )
        self.steps = steps

    def step(self) -> None:
        """One more step is done."""
        self.bar.update()

    def log(self, line: dict[str, Any], corrupt: list[str]) -> None:
        """Write one logged step, and the examples that cannot be read ("name: reason"), and show how it goes."""
        if corrupt or self.corrupt_path.exists():
            self.corrupt_path.write_text("".join(f"{name}\n" for name in corrupt), encoding="utf-8")
        numbers = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
        self.file.write(json.dumps(numbers) + "\n")
        self.file.flush()
        shown = f"loss {line['loss']:.4f}, {line['samples_per_second']:.1f} samples/s"
        shown += "".join(
            f", {name} std {line[f'{name}_std']:.3f}" for name in ("target", "prediction") if f"{name}_std" in line
        )
        if "probe_linear" in line:
            shown += f", probe {line['probe_linear']:.1%} linear, {line['probe_knn']:.1%} kNN"
        shown += f", waiting for data {line['data_wait']:.0%}" + (
            f", {line['corrupt']} corrupt files" if line["corrupt"] else ""
        )
        if self.bar.disable:
            self.say(f"step {line['step']}/{self.steps}: {shown}")
        else:
            self.bar.set_postfix_str(shown)
        values = {key: value for key, value in line.items() if key != "step" and value is not None}
        self._track(lambda tracker: tracker.log(line["step"], values))

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar, the files and the trackers."""
        self.bar.close()
        self.file.close()
        self._track(lambda tracker: tracker.close())

    def _track(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except OSError as error:
                self.say(f"log.trackers: {name} failed ({error}) and is left out from here on; metrics.jsonl has everything")
                del self.trackers[name]


class Silence:
    """The journal of every process but the first."""

    def step(self) -> None: ...
    def log(self, line: dict[str, Any], corrupt: list[str]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def _forget_after(path: Path, step: int) -> None:
    """Remove the lines of steps that will be made again."""
    kept = [text for text, line in read_lines(path) if line["step"] <= step]
    with atomic_write(path) as tmp:
        tmp.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
