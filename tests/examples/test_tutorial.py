"""The tutorial's commands do what the page shows."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def commands() -> Iterator[tuple[list[str], str]]:
    """Each command of the page as arguments, and the output that is printed below it."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            words = shlex.split(line)
            python = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "data2vec"]
            yield [*python, *words[1:]], output


def run(command: list[str], folder: Path, interrupt: bool) -> tuple[int, str]:
    """The exit status and the output of a command, which gets Ctrl-C after its step 25 if `interrupt`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **output) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if interrupt and line.startswith("step 25/"):
                process.send_signal(signal.SIGINT)
        return process.wait(timeout=600), "".join(lines)


@pytest.mark.slow
def test_every_command_of_the_tutorial_works_in_order(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    outputs = {}
    for command, shown in commands():
        interrupt = "^C" in shown
        status, output = run(command, tmp_path, interrupt)
        assert status == (130 if interrupt else 0), f"{shlex.join(command)}\n{output[-2000:]}"
        outputs[shlex.join(command[1:])] = output
    found = list(outputs.values())
    assert len(found) == 12
    interrupted = next(output for output in found if "stopped: interrupted" in output)
    assert "resume with: data2vec pretrain --resume runs/digits" in interrupted
    probe = next(output for output in found if "untrained" in output and "kNN" in output)
    linear = re.search(r"best of\s+([\d.]+)%\s+[\d.]+%\s+([\d.]+)%", probe)
    assert linear is not None
    assert float(linear[1]) > float(linear[2]) + 20
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 298
    assert "{0: '0', 1: '1'" in found[-1]
