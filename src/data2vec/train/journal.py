"""What a run tells while it goes on: metrics.jsonl, the list of bad files, a progress bar, TensorBoard."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data2vec.errors import UserError
from data2vec.train.folder import read_lines


class Journal:
    """Writes what the first process learns about the run. `step` is where the run stands when the journal is opened;
    `writer` is TensorBoard's class, or None."""

    def __init__(self, folder: Path, step: int, steps: int, writer: Any = None):
        self.path = folder / "metrics.jsonl"
        _forget_after(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")
        self.bad_path = folder / "bad_files.txt"
        self.board = writer(str(folder / "tensorboard"), purge_step=step + 1) if writer else None
        self.bar = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(), file=sys.stderr
        )
        self.steps = steps

    def step(self) -> None:
        """One more step is done."""
        self.bar.update()

    def log(self, line: dict[str, Any], bad: list[str]) -> None:
        """Write one logged step, and the examples that cannot be read ("name: reason"), and show how it goes."""
        if bad or self.bad_path.exists():
            self.bad_path.write_text("".join(f"{name}\n" for name in bad), encoding="utf-8")
        numbers = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
        self.file.write(json.dumps(numbers) + "\n")
        self.file.flush()
        shown = f"loss {line['loss']:.4f}, {line['samples_per_second']:.1f} samples/s"
        shown += "".join(
            f", {name} std {line[f'{name}_std']:.3f}" for name in ("target", "prediction") if f"{name}_std" in line
        )
        shown += f", waiting for data {line['data_wait']:.0%}" + (f", {line['bad']} bad files" if line["bad"] else "")
        if self.bar.disable:
            self.say(f"step {line['step']}/{self.steps}: {shown}")
        else:
            self.bar.set_postfix_str(shown)
        if self.board:
            for key in line.keys() - {"step"}:
                self.board.add_scalar(key, line[key], line["step"])

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar and the files."""
        self.bar.close()
        self.file.close()
        if self.board:
            self.board.close()


class Silence:
    """The journal of every process but the first."""

    def step(self) -> None: ...
    def log(self, line: dict[str, Any], bad: list[str]) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def _forget_after(path: Path, step: int) -> None:
    """Remove the lines of steps that will be made again."""
    kept = [text for text, line in read_lines(path) if line["step"] <= step]
    aside = path.with_name(".metrics.jsonl.part")
    aside.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
    aside.replace(path)


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard events. Raises UserError when the package is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("log.tensorboard: true needs the package tensorboard: pip install 'data2vec[log]'") from None
    return SummaryWriter
