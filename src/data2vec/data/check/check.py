"""Check a dataset by decoding every example as training would."""

import json
import os
import shlex
import signal
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from data2vec.data.check.aggregate import Aggregate
from data2vec.data.check.inspect import MEASURES, Finding, inspect_example
from data2vec.data.check.report import DataReport, KindReport
from data2vec.data.dataset import Row, Rows
from data2vec.data.sources.formats import ARCHIVES, MEDIA, SHARDS, TEXT_TABLES, SignalKind, count_endings, with_ending
from data2vec.data.sources.local import list_files
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from data2vec.errors import CorruptExample, UserError

VOCABULARY = 50265
"""Vocabulary size of the tokenizer that is trained when none is given, as in the base recipes."""
TRAINING_CHARACTERS = 16 * 2**20
"""At most this many characters are used to train it."""
CHUNK = 16
"""Examples that are sent to a worker at a time."""
TABLES = (*TEXT_TABLES, *SHARDS)
T = TypeVar("T")


def check(
    where: str | Path,
    kind: SignalKind | None = None,
    split: str = "train",
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
) -> DataReport:
    """Read a dataset and report what it contains. An unreadable example is part of the report, not an error.

    `where` and `split` are what `data.train` and `data.split` may be. `kind`: audio, image or text; by default every
    kind that the dataset contains. `tokenizer`: the folder of the tokenizer to count tokens with; by default one is trained on
    the text, up to its first 16 million characters. `workers`: processes, by default one per core. `out`: a JSON file for
    the complete report.

    Raises UserError when there is no such dataset, or nothing of this kind in it."""
    where = str(where)
    if kind not in (None, *MEDIA):
        raise UserError(f"kind: {kind!r} is none of {', '.join(MEDIA)}")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {Path(out).parent}; create it first")
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 0:
        raise UserError(f"workers: {workers} is not a number of processes; use 0 or more (0: in this process)")
    loaded_tokenizer = load_tokenizer(tokenizer) if tokenizer is not None else None
    files = _files(where, split)
    kinds = _kinds(where, split, files) if kind is None else [kind]
    parts = tuple(_check_kind(where, each, split, files, loaded_tokenizer, workers) for each in kinds)
    settings = ""
    if loaded_tokenizer is not None:
        size = loaded_tokenizer.get_vocab_size()
        settings = f" data.tokenizer={shlex.quote(str(tokenizer))} modality.vocab_size={size}"
    found = DataReport(where, split, parts, _other_files(files or [], kinds), settings)
    if out is not None:
        Path(out).write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _files(where: str, split: str) -> list[str] | None:
    """The files of a local dataset; None for a URL or a dataset on the hub."""
    path = Path(where.removeprefix("file://")).expanduser()
    if not path.exists():
        return None
    return [str(file) for file in list_files(path, split)[1]] if path.is_dir() else [str(path)]


def _kinds(where: str, split: str, files: list[str] | None) -> list[SignalKind]:
    """The kinds of the files, by their endings; for tables, archives and hub datasets the first kind that they contain."""
    if files is not None:
        if found := [kind for kind in MEASURES if with_ending(files, MEDIA[kind])]:
            return found
        if not with_ending(files, TABLES):
            raise UserError(f"{where}: no audio, image or text found; found {count_endings(files)}")
    members, reasons = _members(with_ending(files or [], ARCHIVES)), dict[SignalKind, str]()
    # An archive without the requested kind is read to its end, so start with the kind of its first members.
    for kind in sorted(MEASURES, key=lambda kind: not with_ending(members, MEDIA[kind])):
        try:
            open_dataset(where, kind, split, streaming=True)
            return [kind]
        except UserError as error:
            reasons[kind] = str(error)
    raise UserError(reasons["text"])


def _members(shards: list[str]) -> list[str]:
    """Names of the first members of the first archive."""
    if not shards:
        return []
    try:
        with tarfile.open(shards[0], "r|*") as tar:
            return [member.name for member in islice(tar, 20)]
    except (tarfile.TarError, EOFError, OSError):
        return []  # opening it as a dataset reports the reason


def _other_files(files: list[str], kinds: list[SignalKind]) -> str | None:
    """The files that are not read, counted by ending."""
    wanted = tuple(ending for kind in kinds for ending in MEDIA[kind])
    read = wanted if with_ending(files, wanted) else TABLES
    aside = set(files) - set(with_ending(files, (*read, "metadata.csv")))
    return count_endings(sorted(aside)) if aside else None


def _check_kind(
    where: str, kind: SignalKind, split: str, files: list[str] | None, tokenizer: Tokenizer | None, workers: int
) -> KindReport:
    streaming = files is None or bool(with_ending(files, SHARDS))
    rows = open_dataset(where, kind, split, streaming)
    token_counter = None
    if kind == "text":
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # otherwise the library warns for every worker
        token_counter = "the given tokenizer"
        if tokenizer is None:
            whole, texts = _sample(rows)
            tokenizer = train_tokenizer(texts, VOCABULARY)
            token_counter = f"a {VOCABULARY}-id tokenizer trained on {'all text' if whole else 'its beginning (an estimate)'}"
    loader = DataLoader(
        _Examples(kind, tokenizer),
        batch_size=None,
        sampler=_chunks(_numbered(rows, kind)),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_ignore_interrupt if workers else None,
    )
    with closing(Aggregate(kind)) as aggregate:
        with _bar(None if streaming else len(rows), kind) as bar:
            for found in loader:
                aggregate.add(found)
                bar.update(len(found))
        return aggregate.report(getattr(rows.features.get("label"), "names", None), token_counter)


def _bar(total: int | None, kind: SignalKind) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=f"reading {kind}", unit="example", leave=False, disable=None)


def _sample(rows: Rows) -> tuple[bool, list[str]]:
    """Whether the sample is all of the text, and the sample."""
    sample: list[str] = []
    size = 0
    for _, row in _numbered(rows, "text"):
        try:
            for part in () if isinstance(row, str) else read_text(row):
                if size > TRAINING_CHARACTERS:
                    return False, sample
                sample.append(part)
                size += len(part)
        except CorruptExample:
            continue
    return True, sample


def _numbered(rows: Rows, kind: SignalKind) -> Iterator[tuple[str, Row | str]]:
    """(name, row) of all rows, or (name, problem) where the rest of a shard cannot be read."""
    number, parts = 0, 1 if hasattr(rows, "__len__") else rows.num_shards
    for part in range(parts):
        try:
            for row in rows.shard(num_shards=parts, index=part):
                number += 1
                content = row[kind]
                path = content["path"] if isinstance(content, dict) else row.get("path")
                yield path or row.get("key") or f"example {number}", row
        except (UserError, ValueError, OSError) as error:
            yield f"part {part + 1} of {parts}", f"the rest cannot be read: {' '.join(str(error).split())}"


def _chunks(rows: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


class _Examples(Dataset[list[Finding]]):
    """Runs `inspect_example` on rows, in the workers."""

    def __init__(self, kind: SignalKind, tokenizer: Tokenizer | None):
        self.kind, self.tokenizer = kind, tokenizer

    def __getitem__(self, chunk: list[tuple[str, Row | str]]) -> list[Finding]:
        return [{"name": name} | self._examine(name, row) for name, row in chunk]

    def _examine(self, name: str, row: Row | str) -> Finding:
        if isinstance(row, str):
            return {"problem": row, "damaged": 1}
        label = row.get("label")
        kept = label if isinstance(label, str | int) else None  # not a score or a list of labels
        return {"label": kept} | inspect_example(self.kind, row, name, self.tokenizer)


def _ignore_interrupt(worker: int) -> None:
    # The main process receives it too, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
