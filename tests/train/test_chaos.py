"""Real processes, and what ends them: each says why in one line, saves what it can, and prints a command that resumes."""

import fcntl
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data2vec.run_dir import Run, checkpoint_damage

pytestmark = pytest.mark.slow
LONG = {"train.steps": 100_000, "train.checkpoint_every": 100_000, "log.every": 1, "data.workers": 1}
DATA2VEC = [sys.executable, "-m", "data2vec"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
NEEDS_MOUNT = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")


class Started:
    """A run in a process of its own, with its stderr in a file."""

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        processes: int = 1,
        before: tuple[str, ...] = (),
        log: Path | None = None,
        **options: Any,
    ):
        words = [f"{key}={json.dumps(value)}" for key, value in (settings | {"train.schedule": CONSTANT}).items()]
        start = DATA2VEC if processes == 1 else [*TORCHRUN, f"--nproc_per_node={processes}", *DATA2VEC[1:]]
        command = [*before, *start, "pretrain", "vision/v1-tiny", "--out", str(out), *words]
        self.processes = processes
        self.run, self.log = Run(out), log or out.with_suffix(".log")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, **options)

    def at_step(self, step: int) -> "Started":
        """Wait until this step is logged."""
        while len(self.run.metrics) < step:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return self

    def end(self, status: int | None = None) -> str:
        """Wait for the end; the line that says why."""
        ended = self.process.wait(300)
        text = self.log.read_text()
        assert "Traceback" not in text or self.processes > 1, text  # torchrun prints one of its own
        assert ended == status if status is not None else ended != 0, text
        lines = [line for line in text.splitlines() if re.match(r"data2vec: (stopped|failed|error|rank \d+):", line)]
        assert len(lines) >= 1, text
        return lines[-1]


CONSTANT = {"name": "tri_stage", "warmup": 0, "hold": 1}


def children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


def ranks(started: Started) -> list[int]:
    """The processes of a distributed run, by rank: the children of torchrun."""
    by_rank = {}
    for child in children(started.process.pid):
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        by_rank.update({int(word[5:]): child for word in words if word.startswith(b"RANK=")})
    return [by_rank[rank] for rank in sorted(by_rank)]


def assert_resumes(line: str, run: Run, saved: bool = True) -> None:
    """The command that the line ends with makes one more step."""
    command = shlex.split(line.rpartition("resume with: ")[2])
    checkpoint = next(path for path in run.checkpoints if checkpoint_damage(path) is None)
    step = int(checkpoint.name[5:])
    if saved:
        assert f"checkpoint saved at step {step}" in line
        assert step >= run.metrics[-1]["step"] - 1
    start = DATA2VEC if command[0] == "data2vec" else TORCHRUN
    more = [f"train.steps={step + 1}", "data.workers=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*start, *command[1:], *more], capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert run.metrics[-1]["step"] == step + 1


def test_closed_terminal_saves_and_resumes(tiny: dict[str, Any], tmp_path: Path) -> None:
    master, slave = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    out = tmp_path / "run"
    words = [f"{key}={json.dumps(value)}" for key, value in (tiny | LONG | {"train.schedule": CONSTANT}).items()]
    command = [*DATA2VEC, "pretrain", "vision/v1-tiny", "--out", str(out), *words]
    terminal = {"stdin": slave, "stdout": slave, "stderr": slave}
    child = subprocess.Popen(command, preexec_fn=own_terminal, pass_fds=(slave,), **terminal)  # type: ignore[call-overload]
    os.close(slave)
    run = Run(out)
    while len(run.metrics) < 4:
        assert child.poll() is None
        time.sleep(0.1)
    os.close(master)  # the terminal is gone: SIGHUP, and no more output
    assert child.wait(300) == 128 + signal.SIGHUP
    reason = run.starts[-1]["exit_reason"]
    assert_resumes(reason, run)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_two_processes_saves_and_resumes(number: int, tiny: dict[str, Any], tmp_path: Path) -> None:
    started = Started(tmp_path / "run", tiny | LONG, 2).at_step(3)
    for process in ranks(started):
        os.kill(process, number)
    started.end()
    assert_resumes(started.run.starts[-1]["exit_reason"], started.run)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "data.timeout_minutes")]
)
def test_worker_that_is_killed_or_hangs_saves_and_resumes(number: int, said: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    started = Started(tmp_path / "run", tiny | LONG | {"data.timeout_minutes": 0.05}).at_step(3)
    (worker,) = children(started.process.pid)
    os.kill(worker, number)
    line = started.end(1)
    assert said in line
    assert_resumes(line, started.run)
    assert not Path(f"/proc/{worker}").exists()


def test_deleted_data_saves_and_resumes_when_it_is_back(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    started = Started(tmp_path / "run", tiny | LONG | {"data.train": str(data)}).at_step(3)
    data.rename(tmp_path / "away")
    line = started.end(1)
    assert "no such file" in line
    (tmp_path / "away").rename(data)
    assert_resumes(line, started.run)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_rank_that_does_not_answer_is_named_and_the_other_saves(
    number: int, rank: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = tiny | LONG | {"train.timeout_minutes": 0.1, "data.workers": 0}
    started = Started(tmp_path / "run", settings, 2).at_step(3)
    lost = ranks(started)[rank]
    os.kill(lost, number)
    other = re.compile(
        rf"data2vec: (stopped|rank {1 - rank}): rank {rank} does not answer: killed, stopped or hung.*resume with: "
    )
    begin = time.monotonic()
    while not (lines := [line for line in started.log.read_text().splitlines() if other.match(line)]):
        assert time.monotonic() < begin + 300, started.log.read_text()
        time.sleep(0.2)
    if number == signal.SIGSTOP:
        os.kill(lost, signal.SIGKILL)  # as torchrun does after half a minute
    started.process.wait(300)
    assert_resumes(lines[0], started.run)


@NEEDS_MOUNT
def test_disk_that_becomes_read_only_is_named_and_resumes_when_it_is_not(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A real file system that meets an error, and is remounted read-only by the kernel."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(100 * 2**20)
    disk.mkdir()
    mount = ["mount", "-o", "loop,errors=remount-ro", image, disk]
    if (
        not shutil.which("mkfs.ext4")
        or subprocess.run(["mkfs.ext4", "-q", image]).returncode
        or subprocess.run(mount).returncode
    ):
        pytest.skip("no loop devices, or no ext4")
    try:
        settings = tiny | LONG | {"train.checkpoint_every": 5}
        started = Started(disk / "run", settings, log=tmp_path / "log").at_step(7)
        device = Path(subprocess.run(["findmnt", "-no", "SOURCE", disk], capture_output=True, text=True).stdout.strip()).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
        line = started.end(1)
        assert "cannot be written (" in line
        assert "the latest complete checkpoint is step-" in line
        refused = Started(disk / "run", settings, log=tmp_path / "log")
        assert "already contains a run" in refused.end(2)
        subprocess.run(["umount", disk], check=True)
        subprocess.run(["e2fsck", "-fy", image], capture_output=True)
        subprocess.run(mount, check=True)
        assert_resumes(line, started.run, saved=False)
    finally:
        subprocess.run(["umount", "-l", disk])


def limit(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


@NEEDS_MOUNT
def test_no_shared_memory_is_named_and_a_setting_resumes(tiny: dict[str, Any], tmp_path: Path) -> None:
    before = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh")
    started = Started(tmp_path / "run", tiny | LONG, before=before)
    line = started.end(1)
    assert "data.workers=0" in line
    assert_resumes(line, started.run, saved=False)


def test_few_open_files_are_enough_or_named(tiny: dict[str, Any], tmp_path: Path) -> None:
    started = Started(tmp_path / "run", tiny | LONG | {"train.steps": 20}, preexec_fn=limit(resource.RLIMIT_NOFILE, 64))
    if started.process.wait(300):
        line = started.end(1)
        assert "open files" in line
        assert_resumes(line, started.run, saved=False)


def test_unwritable_home_does_not_end_a_run(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    started = Started(tmp_path / "run", tiny | LONG | {"train.steps": 5})
    assert started.process.wait(300) == 0, started.log.read_text()
