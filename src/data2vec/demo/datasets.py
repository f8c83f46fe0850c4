"""Data sets from installed packages, written as ordinary folders, so that the demo downloads nothing.

Images are the handwritten digits of scikit-learn; text is the documentation in Python's standard library; speech is phrases of
that text, spoken by eSpeak NG; signals are recordings of a watch. Each has a small labelled task for the probe.
"""

import ast
import functools
import importlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data2vec.data.audio import SAMPLE_RATE
from data2vec.demo import espeak
from data2vec.demo.moving_shapes import write_moving_shapes
from data2vec.demo.watch import write_recordings

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Chapters of the library reference with enough text, and their modules.
CHAPTERS = {
    "numbers": (
        "_pydecimal",
        "_pydatetime",
        "calendar",
        "colorsys",
        "datetime",
        "fractions",
        "numbers",
        "random",
        "statistics",
    ),
    "files": (
        *("bz2", "filecmp", "fileinput", "fnmatch", "genericpath", "glob", "gzip", "io", "_pyio", "lzma", "netrc", "ntpath"),
        *("os", "pathlib", "plistlib", "posixpath", "shelve", "shutil", "stat", "tarfile", "tempfile", "zipfile"),
    ),
    "concurrency": (
        *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "selectors", "signal", "subprocess", "threading"),
        *("_threading_local", "contextvars"),
    ),
    "mail": ("email", "imaplib", "mailbox", "mimetypes", "poplib", "quopri", "smtplib", "base64"),
    "internet": ("ftplib", "http", "ipaddress", "socket", "socketserver", "ssl", "urllib", "webbrowser", "wsgiref", "xmlrpc"),
    "markup": ("html", "xml"),
    "testing": (
        "bdb",
        "cProfile",
        "doctest",
        "pdb",
        "profile",
        "pstats",
        "timeit",
        "trace",
        "traceback",
        "unittest",
        "warnings",
    ),
    "language": (
        "ast",
        "dis",
        "imp",
        "importlib",
        "inspect",
        "modulefinder",
        "opcode",
        "pickletools",
        "pkgutil",
        "runpy",
        "zipimport",
    ),
    "programs": ("argparse", "cmd", "code", "configparser", "getopt", "getpass", "gettext", "logging", "optparse", "shlex"),
}

STATEMENTS = ast.stmt, ast.excepthandler, ast.match_case


@dataclass(frozen=True)
class DatasetFolders:
    """The folders of a data set."""

    train: Path
    """For pre-training, without labels."""
    labelled: Path
    """Labelled examples to fit the probe on."""
    heldout: Path
    """Labelled examples to evaluate the probe on; disjoint from `train` and `labelled`."""


def write_images(out: Path) -> DatasetFolders:
    """Write 1797 handwritten digits as 32×32 PNG files, a folder per digit: 1500 for training, 297 held out."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = out / ("train" if i < 1500 else "valid") / str(digit) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.uint8(pixels * (255 / 16)))
        grey.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return DatasetFolders(out / "train", out / "train", out / "valid")


def write_text(out: Path, labelled: int = 80, heldout: int = 40, seed: int = 1) -> DatasetFolders:
    """Write the documentation as text files, a paragraph per line, and a task: the chapter of a passage.

    The task is two files with the columns `text` and `label`, with `labelled` and `heldout` passages of each chapter. Held-out
    passages are not in the training text."""
    rng = np.random.default_rng(seed)
    tasks: dict[str, list[str]] = {"labelled": [], "heldout": []}
    for chapter, modules in CHAPTERS.items():
        passages = [p for module in modules for p in _documentation().get(module, ()) if len(p.split()) >= 20]
        order = rng.permutation(len(passages))[: labelled + heldout]
        for name, part in (("heldout", order[:heldout]), ("labelled", order[heldout:])):
            tasks[name] += [f"{' '.join(passages[i].split()[:60])}\t{chapter}" for i in part]
    unseen = {row.partition("\t")[0] for row in tasks["heldout"]}
    (out / "train").mkdir(parents=True, exist_ok=True)
    for module, passages in _documentation().items():
        kept = [p for p in passages if not any(passage in p for passage in unseen)]
        if kept:
            (out / "train" / f"{module}.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    for name, rows in tasks.items():
        (out / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return DatasetFolders(out / "train", out / "labelled.tsv", out / "heldout.tsv")


def write_speech(out: Path, clips: int = 1500, labelled: int = 600, heldout: int = 300, seed: int = 1) -> DatasetFolders:
    """Write spoken documentation as 16 kHz WAV files, and a task: spoken digits, a folder per digit.

    Every fourth voice speaks only held-out digits. Raises UserError if `espeakng-loader` is not installed."""
    rng = np.random.default_rng(seed)
    known = [voice for i, voice in enumerate(espeak.VOICES) if i % 4]
    heldout_voices = [voice for i, voice in enumerate(espeak.VOICES) if i % 4 == 0]
    phrases = _phrases()
    requests = {
        out / "train" / f"{i:05d}.wav": _random_utterance(phrases[rng.integers(len(phrases))], known, rng) for i in range(clips)
    }
    for name, count, voices in (("labelled", labelled, known), ("heldout", heldout, heldout_voices)):
        for i in range(count):
            word = WORDS[i % len(WORDS)]
            requests[out / name / word / f"{i:05d}.wav"] = _random_utterance(word, voices, rng)
    _write_clips(requests)
    return DatasetFolders(out / "train", out / "labelled", out / "heldout")


def write_watch(out: Path) -> DatasetFolders:
    """Write recordings of a watch on ten people, and a task: which of seven exercises they do. Three people are held out."""
    train, heldout = write_recordings(out)
    return DatasetFolders(train, train, heldout)


def write_videos(out: Path, clips: int = 1200, heldout: int = 300, seed: int = 0) -> DatasetFolders:
    """Write clips of moving shapes, a folder per direction, and a task: the direction, which no single frame shows."""
    write_moving_shapes(out / "train", clips, seed)
    write_moving_shapes(out / "valid", heldout, seed + 1)
    return DatasetFolders(out / "train", out / "train", out / "valid")


def _random_utterance(words: str, voices: list[str], rng: np.random.Generator) -> espeak.Utterance:
    return espeak.Utterance(
        words,
        accent=espeak.ACCENTS[rng.integers(len(espeak.ACCENTS))],
        voice=voices[rng.integers(len(voices))],
        rate=int(rng.integers(130, 220)),
        pitch=int(rng.integers(25, 75)),
        range=int(rng.integers(20, 80)),
    )


def _write_clips(requests: dict[Path, espeak.Utterance]) -> None:
    import soundfile
    import soxr

    rate, clips = espeak.synthesize(list(requests.values()))
    for path, samples in zip(requests, clips, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = soxr.resample(samples.astype(np.float32) / 32768, rate, SAMPLE_RATE)
        soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")


@functools.cache
def _phrases() -> list[str]:
    """Phrases of three to six plain words of the documentation, without duplicates."""
    words = [w for passages in _documentation().values() for p in passages for w in re.findall(r"(?<!\S)[a-z]+[,.]?(?!\S)", p)]
    rng = np.random.default_rng(0)
    runs, start = [], 0
    while start < len(words):
        length = int(rng.integers(3, 7))
        runs.append(" ".join(words[start : start + length]))
        start += length
    return sorted(set(runs))


@functools.cache
def _documentation() -> dict[str, list[str]]:
    """Paragraphs by top-level module of the standard library, and by topic of the language reference."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in ("site-packages", "dist-packages", "pydoc_data") or any(
            re.match("(idle|lib2to3_)?tests?$", p) for p in parts
        ):
            continue
        for docstring in _docstrings(path):
            passage = " ".join(_prose(docstring))
            beginning = " ".join(passage.split()[:10])  # many docstrings are repeated
            if passage and beginning not in seen:
                seen.add(beginning)
                found.setdefault(parts[0], []).append(passage)
    topics = importlib.import_module("pydoc_data.topics").topics
    return found | {f"topic-{name}": _prose(page) for name, page in sorted(topics.items())}


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # the standard library has invalid files for its own tests
        return
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # statements alone: no expression holds one
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _prose(page: str) -> list[str]:
    """The paragraphs of sentences: without grammar, code, tables and headings."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", page))
    return [
        p
        for p in paragraphs
        if len(p.split()) >= 8
        and sum(c.isalpha() or c == " " for c in p) > 0.85 * len(p)
        and not re.search(r"::=|>>>|\*\*\*|===|---", p)
    ]
