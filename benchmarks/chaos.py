"""Kill runs at random moments, also during a checkpoint write, and compare resumed runs with undisturbed ones.

    python benchmarks/chaos.py [--runs 50] [--full 6] [--seed 0]

Tiny runs of the command, alternating: indexed data and streamed shards; one process, two with replicated weights, two with
sharded ones. Their processes are forked from this one, which has imported the libraries, so that most of the time is the
run's own. A run is killed (SIGKILL, all its processes) at a moment drawn uniformly from its duration, resumed, perhaps killed
again, until it ends. Then all its metrics except timings, and its model to the last byte, must equal those of an undisturbed
run; after every kill the latest complete checkpoint must not be older than the last one due, and no checkpoint of a final name
may be incomplete.

--full: additional runs on a small file system (tmpfs, which needs root) that fills up in the middle and is then enlarged.
"""

import argparse
import hashlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data2vec import cli
from data2vec.run_dir import Run, checkpoint_damage

EVERY = 2
"""Steps between checkpoints: a large part of the time goes into writing them."""
SETTINGS: dict[str, Any] = {
    "train.steps": 40, "train.checkpoint_every": EVERY, "train.device": "cpu", "train.schedule.warmup_steps": 5,
    "encoder.width": 128, "encoder.layers": 4, "encoder.heads": 4, "encoder.ffn_width": 512, "encoder.dropout": 0.1,
    "data.batch_size": 16, "data.micro_batch_size": 8, "data.workers": 1, "log.every": 1, "log.report": "false",
}  # fmt: skip
TIMINGS = ("seconds", "samples_per_second", "data_wait")


@dataclass(frozen=True)
class Kind:
    """One way to run."""

    name: str
    processes: int
    settings: dict[str, Any]

    def start(self, out: Path, more: dict[str, Any]) -> "Started":
        """Start the run in `out`, or resume it if it exists."""
        words = [f"{key}={value}" for key, value in (SETTINGS | self.settings | more).items()]
        resume = ["--resume"] if (out / "recipe.yaml").exists() else []
        with socket.socket() as free:
            free.bind(("localhost", 0))
            group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(self.processes)}
        log, children = out.with_suffix(".log"), []
        log.write_text("")
        for rank in range(self.processes):
            child = os.fork()
            if not child:
                os.environ |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                handle = os.open(log, os.O_WRONLY | os.O_APPEND)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os._exit(cli.main(["pretrain", "vision/v2-tiny", "--out", str(out), *resume, *words]))
            children.append(child)
        return Started(children, log)


@dataclass
class Started:
    """The processes of a run."""

    children: list[int]
    log: Path

    def wait(self, seconds: float | None = None) -> int | None:
        """The greatest exit status; None when it is still running after so many seconds."""
        end, worst, going = time.monotonic() + (seconds or 600), 0, list(self.children)
        while going:
            for child in list(going):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    going.remove(child)
                    worst = max(worst, os.waitstatus_to_exitcode(status))
                    if worst:  # as torchrun does
                        end = min(end, time.monotonic() + 20)
            if going and time.monotonic() > end:
                return worst or None
            time.sleep(0.005)
        return worst

    def kill(self) -> None:
        """All of them and their workers, at once."""
        for process in [each for child in self.children for each in family(child)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for child in self.children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def main() -> None:
    """Print the outcome; exit 1 when any run differed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs to kill")
    parser.add_argument("--full", type=int, default=6, help="runs whose disk fills up")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    chance, tally = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if not (child := os.fork()):  # its threads would not survive another fork
            make_data(place)
            os._exit(0)
        os.waitpid(child, 0)
        known = {kind.name: reference(kind, place) for kind in kinds(place)}
        turns = itertools.cycle(known.values())
        for number in range(given.runs):
            kind, seconds, expected = next(turns)
            out = place / "killed"
            fate = killed_run(kind, out, seconds, chance, tally)
            told(f"run {number + 1}, {kind.name}: killed {fate}", result(out), expected, tally)
            shutil.rmtree(out)
        for number in range(given.full):
            kind, _, expected = next(turns)
            filled_run(number, kind, place / "small", expected, chance, tally)
    print(", ".join(f"{count} {what}" for what, count in sorted(tally.items())))
    sys.exit(any(bad in tally for bad in ("differ", "torn", "older than due")))


def make_data(place: Path) -> None:
    """40 images in a folder, and again in five parquet shards."""
    from datasets import Dataset

    rng = np.random.default_rng(0)
    (place / "pictures").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{i:02}.png")
    files = sorted((place / "pictures").iterdir())
    (place / "shards").mkdir()
    for i in range(5):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files[i::5]]
        Dataset.from_dict({"image": rows}).to_parquet(place / "shards" / f"{i}.parquet")


def kinds(place: Path) -> list[Kind]:
    """All kinds of runs to try."""
    data = {
        "indexed": {"data.train": place / "pictures"},
        "streamed": {
            "data.train": place / "shards",
            "data.streaming": "true",
            "data.num_streams": 4,
            "data.shuffle_buffer": 32,
        },
    }
    ways = {"one process": (1, {}), "two": (2, {}), "two, sharded": (2, {"train.shard": "true"})}
    return [
        Kind(f"{source}, {way}", processes, settings | more)
        for (way, (processes, more)), (source, settings) in itertools.product(ways.items(), data.items())
    ]


def reference(kind: Kind, place: Path) -> tuple[Kind, float, Any]:
    """An undisturbed run: how long it takes, and its results."""
    out, begin = place / kind.name, time.monotonic()
    started = kind.start(out, {})
    if started.wait():
        sys.exit(f"{kind.name} failed:\n{started.log.read_text()}")
    seconds = time.monotonic() - begin
    print(f"reference, {kind.name}: {seconds:.1f} s", flush=True)
    return kind, seconds, result(out)


def result(out: Path) -> Any:
    """The results that have to be equal."""
    lines = [{key: value for key, value in line.items() if key not in TIMINGS} for line in Run(out).metrics]
    return lines, hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def told(what: str, found: Any, expected: Any, tally: Counter[str]) -> None:
    """Print and count whether they are equal."""
    verdict = "equal" if found == expected else "differ"
    tally[verdict] += 1
    print(f"{what}: {verdict}", flush=True)


def killed_run(kind: Kind, out: Path, seconds: float, chance: random.Random, tally: Counter[str]) -> str:
    """Start, kill, resume, until the run ends. Returns where it was killed."""
    fates = []
    while True:
        started = kind.start(out, {})
        # always once, then every third time
        wait = chance.uniform(0, seconds) if not fates or chance.random() < 1 / 3 else None
        status = started.wait(wait)
        if status is None:
            started.kill()
            fates.append(fate(out, tally))
            continue
        if status:
            sys.exit(f"{kind.name} ended with status {status}:\n{started.log.read_text()}")
        return " and ".join(fates) or "never, it was too quick"


def family(process: int) -> list[int]:
    """A process and all its descendants: torchrun's workers are not in its group."""
    children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()
    return [process, *(each for child in children for each in family(int(child)))]


def fate(out: Path, tally: Counter[str]) -> str:
    """Where a kill struck; counts violations."""
    tally["kills"] += 1
    steps = [line["step"] for line in Run(out).metrics]
    whole = [int(path.name[5:]) for path in Run(out).checkpoints if checkpoint_damage(path) is None]
    tally["torn"] += len(Run(out).checkpoints) - len(whole)
    if not tally["torn"]:
        del tally["torn"]
    if steps and max(whole, default=0) < (steps[-1] - 1) // EVERY * EVERY:
        tally["older than due"] += 1
    if list(out.glob("checkpoints/.step-*")):
        tally["kills inside a checkpoint write"] += 1
        return f"in the write after step {steps[-1]}"
    return f"after step {steps[-1]}" if steps else "before the first step"


def filled_run(number: int, kind: Kind, place: Path, expected: Any, chance: random.Random, tally: Counter[str]) -> None:
    """A run on a file system that is full after some checkpoints, and later has space again."""
    place.mkdir()
    megabytes = chance.randint(20, 150)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=True)
    try:
        keep = {"train.keep_checkpoints": 1000}
        started = kind.start(place / "run", keep)
        status = started.wait()
        started.kill()
        if not status or "disk full: no space left" not in started.log.read_text():
            sys.exit(f"{kind.name} on {megabytes} MB: status {status}, not told that it is full:\n{started.log.read_text()}")
        where = fate(place / "run", tally)
        tally["kills"] -= 1
        tally["full disks"] += 1
        subprocess.run(["mount", "-o", "remount,size=4g", place], check=True)
        again = kind.start(place / "run", keep)
        if again.wait():
            sys.exit(f"{kind.name} did not go on:\n{again.log.read_text()}")
        told(f"disk {number + 1}, {kind.name}: full at {megabytes} MB {where}", result(place / "run"), expected, tally)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


if __name__ == "__main__":
    main()
