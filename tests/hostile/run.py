"""Try every hostile input at every entry point, each in a process of its own with a limit of time and memory.

    cd tests; python -m hostile.run                all; prints a table of N tried, N held, by kind and entry point
    cd tests; python -m hostile.run models runs    these kinds only; --only NAME: cases whose name contains NAME
    cd tests; python -m hostile.run --list         the inputs

An input is held if the command ends with 0, with 2 (a user error) or stops a run with a reason, in few seconds and little
memory, without a traceback, without running anything of the input, and without opening the private file outside of it.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.hostile_pickles import CANARY
from hostile.corpus import IMPORTED, PRIVATE, Hostile, Signal, cases, good, run_folder
from hostile.entries import ENTRIES, PRETRAIN, RUN, SMALL, Models, entries_of

SECONDS, CPU_SECONDS, MEMORY_MB = 150, 30, 700
"""What an input of at most a few MB may cost: time on a busy machine, of a processor, and memory beyond a harmless one."""
IN_OPEN = 0x20


class Outcome(NamedTuple):
    """What one command did with one input."""

    case: str
    kind: str
    entry: str
    status: str
    """opened, refused, stopped; or what went wrong."""
    seconds: float
    megabytes: int
    message: str

    @property
    def held(self) -> bool:
        """Whether the promises were kept."""
        return self.status in ("opened", "refused", "stopped")


def build_models(folder: Path) -> Models:
    """Tiny trained models of each signal; their folders are also in the environment, for `corpus.model_folder`."""
    import torch

    import data2vec
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
    from data2vec.model import blank_model
    from data2vec.nn.heads import ClassifierSettings, CTCSettings

    encoder: dict[Signal, Path] = {}
    finetuned: dict[Signal, Path] = {}
    for kind, (name, *overrides) in PRETRAIN.items():
        torch.manual_seed(0)
        tokenizer = []
        if kind == "text":
            (folder / "tokenizer").mkdir()
            words = [path.read_text() for path in sorted(good(folder / "texts", "text").rglob("*.txt"))]
            save_tokenizer(train_tokenizer(words, 300), folder / "tokenizer")
            tokenizer = [f"data.tokenizer={folder / 'tokenizer'}"]
        recipe = data2vec.load_recipe(name, [*overrides, *SMALL, *tokenizer])
        encoder[kind], finetuned[kind] = folder / kind, folder / f"{kind}-finetuned"
        blank_model(recipe).save_pretrained(encoder[kind])
        head = CTCSettings(labels=("<blank>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'")) if kind == "audio" else None
        blank_model(recipe, head or ClassifierSettings(labels=("a", "b"))).save_pretrained(finetuned[kind])
        os.environ[f"HOSTILE_MODEL_{kind.upper()}"] = str(encoder[kind])
    images = good(folder / "images", "image")
    run = data2vec.pretrain(
        PRETRAIN["image"][0], data=images, overrides=[*PRETRAIN["image"][1:], *SMALL, *RUN], out=folder / "run"
    )
    (run.folder / "corrupt_files.txt").write_text("a.png: broken\n")
    (run.folder / "tracking_id.txt").write_text("0a1b2c3d")
    os.environ["HOSTILE_RUN"] = str(run.folder)
    return Models(encoder, finetuned, images)


class Watch:
    """Whether a file was opened, by any library of this machine's processes (inotify)."""

    def __init__(self, path: Path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(path), IN_OPEN) >= 0

    def was_opened(self) -> bool:
        """Since the last call."""
        if not select.select([self.descriptor], [], [], 0)[0]:
            return False
        os.read(self.descriptor, 1 << 16)
        return True


def attempt(case: Hostile, entry: str, models: Models, folder: Path, watch: Watch) -> Outcome:
    """Try one input at one entry point, in a fork of this process."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "input").mkdir(parents=True)
    (folder / "out").mkdir()
    path = case.make(folder / "input")
    watch.was_opened()
    started, log = time.monotonic(), folder / "log"
    if (pid := os.fork()) == 0:
        os._exit(_child(case, entry, path, models, folder, log))
    status, usage = _wait(pid, started + SECONDS)
    seconds, megabytes = time.monotonic() - started, usage // 1024
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith("data2vec: ")]
    message = next(
        (line for line in lines if line.startswith(("data2vec: error", "data2vec: failed", "data2vec: stopped"))), ""
    )
    if (ran := next(filter(os.path.lexists, (os.environ[IMPORTED], folder / "input" / CANARY)), None)) is not None:
        shutil.rmtree(ran) if os.path.isdir(ran) else os.unlink(ran)
        word = "RAN CODE"
    elif watch.was_opened():
        word = "READ A PRIVATE FILE"
    elif status is None:
        word = f"HUNG for {SECONDS} s"
    elif status < 0:
        word = f"KILLED by {signal.Signals(-status).name}"
    elif "Traceback" in text:
        word = "TRACEBACK"
    else:
        stopped = status == 1 and "data2vec: stopped" in text
        word = {0: "opened", 2: "refused"}.get(status, "stopped" if stopped else f"FAILED with {status}")
        word = f"TOOK {megabytes} MB" if megabytes > BASE["megabytes"] + MEMORY_MB else word
    return Outcome(case.name, case.kind, entry, word, round(seconds, 1), megabytes, message[:300])


BASE = {"megabytes": 0}
"""What a harmless input costs."""


def _child(case: Hostile, entry: str, path: Path, models: Models, folder: Path, log: Path) -> int:
    os.setsid()
    os.chdir(folder / "input")  # where a module of the input could be imported from
    sys.path.insert(0, "")
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), line_buffering=True) for number in (1, 2))
    limit = 8 * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(
        resource.RLIMIT_CPU, (CPU_SECONDS + int(time.process_time()), CPU_SECONDS + int(time.process_time()) + 5)
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    from data2vec.cli import main

    try:
        status = main(ENTRIES[entry][0](case, path, models, folder / "out"))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    return status


def _wait(pid: int, deadline: float) -> tuple[int | None, int]:
    """The exit status of a child, negative if a signal ended it, None if it had to be killed; and its peak memory in kB."""
    while time.monotonic() < deadline:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss
        time.sleep(0.01)
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    return None, os.wait4(pid, 0)[2].ru_maxrss


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Models, Path, Watch]]:
    """Models, a folder to work in, and a private file that is watched; the heavy libraries are imported once."""
    import datasets.utils.logging
    import matplotlib.pyplot  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import soundfile  # noqa: F401
    import tokenizers  # noqa: F401
    import torch

    import data2vec.cli
    import data2vec.interop.convert
    import data2vec.report.page
    import data2vec.tasks.asr.transcribe
    import data2vec.tasks.extraction.extract
    import data2vec.tasks.probing.probe
    import data2vec.train.finetune
    import data2vec.train.pretrain  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        root = Path(name)
        private = root / "home" / "private.txt"
        private.parent.mkdir()
        private.write_text(f"{PRIVATE} of the user\n" * 100)
        os.environ |= {PRIVATE: str(private), IMPORTED: str(root / "imported"), "DATA2VEC_CACHE": str(root / "cache")}
        datasets.config.HF_DATASETS_CACHE = root / "datasets"
        models = build_models(root)
        watch = Watch(private)
        harmless = [
            (Hostile("texts", "harmless", kind, lambda folder, kind=kind: good(folder, kind)), entry)
            for kind in PRETRAIN
            for entry in ("pretrain", "probe", "features")
        ]
        of_run = Hostile("runs", "harmless", "image", run_folder)
        for case, entry in [*harmless, (of_run, "resume"), (of_run, "report")]:
            outcome = attempt(case, entry, models, root / "work", watch)
            log = (root / "work" / "log").read_text(errors="replace")
            assert outcome.status == "opened", f"{entry} of {case}: {outcome}\n{log[-3000:]}"
            BASE["megabytes"] = max(BASE["megabytes"], outcome.megabytes)
        yield models, root / "work", watch


def table(outcomes: list[Outcome]) -> str:
    """N tried, N held, by kind and entry point, in Markdown."""
    tried = Counter((each.kind, each.entry) for each in outcomes)
    held = Counter((each.kind, each.entry) for each in outcomes if each.held)
    lines = ["| input | entry point | tried | held |", "|---|---|---|---|"]
    lines += [f"| {kind} | {entry} | {number} | {held[kind, entry]} |" for (kind, entry), number in tried.items()]
    return "\n".join([*lines, f"| **all** | | {sum(tried.values())} | {sum(held.values())} |"])


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="kinds of input (default: all)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--entry", default="", help="entry points whose name contains this")
    parser.add_argument("--list", action="store_true", help="list the inputs")
    parser.add_argument("--json", type=Path, help="append every outcome, a line each")
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    arguments = parser.parse_args()
    chosen = [case for case in cases(*arguments.kinds) if arguments.only in case.name]
    if arguments.list:
        print("\n".join(map(str, chosen)))
        return 0
    outcomes = []
    with prepared() as (models, folder, watch):
        for case in chosen:
            for entry in entries_of(case):
                if arguments.entry not in entry:
                    continue
                outcomes.append(found := attempt(case, entry, models, folder, watch))
                if arguments.json is not None:
                    with arguments.json.open("a") as file:
                        file.write(json.dumps(found._asdict()) + "\n")
                if arguments.verbose or not found.held:
                    mark = "held" if found.held else "NOT HELD"
                    print(
                        f"{mark}: {case} by {entry}: {found.status}, {found.seconds} s, {found.megabytes} MB; {found.message}"
                    )
                    sys.stdout.flush()
    print(table(outcomes))
    return 0 if all(each.held for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
