"""Check a dataset by decoding every example as training would."""

import os
import re
import shlex
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data2vec.atomic_io import write_json
from data2vec.console.progress import progress
from data2vec.data.check.aggregate import Aggregate
from data2vec.data.check.inspect import MEASURES, Finding, inspect_example
from data2vec.data.check.report import DataReport, KindReport
from data2vec.data.dataset import Row, Rows
from data2vec.data.recordings.tables import TIMES
from data2vec.data.sources.columns import NoSignal, class_names, label_value, require_labels
from data2vec.data.sources.formats import (
    ARCHIVES,
    MANIFESTS,
    MEDIA,
    SHARDS,
    TABLES,
    TEXT_TABLES,
    TRANSCRIPTS,
    SignalKind,
    count_endings,
    with_ending,
)
from data2vec.data.sources.library import data_path, saved_datasets
from data2vec.data.sources.listings import is_metadata, path_columns
from data2vec.data.sources.local import list_files
from data2vec.data.sources.open_dataset import read_dataset
from data2vec.data.sources.shards import Request
from data2vec.data.sources.splits import ALL, TRAIN, NoSplit, SplitChoice, count_splits, split_of_value
from data2vec.data.text import read_text
from data2vec.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from data2vec.errors import CorruptExample, UserError
from data2vec.local_path import local_path, output_file
from data2vec.untrusted import open_regular, require_regular

VOCABULARY = 50265
"""Vocabulary size of the tokenizer that is trained when none is given, as in the base recipes."""
TRAINING_CHARACTERS = 16 * 2**20
"""At most this many characters are used to train it."""
CHUNK = 16
"""Examples that are sent to a worker at a time."""
FIRST = 3
"""How many examples are shown."""
PREVIEW_CHARACTERS = 60
"""How much of a text is shown."""
T = TypeVar("T")


def check(
    where: Any,
    kind: SignalKind | None = None,
    split: str = TRAIN,
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    column: str | None = None,
    label: str = "label",
    follow_links: bool = False,
) -> DataReport:
    """Read a dataset and report what it contains. An unreadable example is part of the report, not an error.

    `where`, `split` and `column` are what `data.train`, `data.split` and `data.column` may be; or a `datasets.Dataset` or
    `DatasetDict`. `label`: the column whose classes are counted. `kind`: audio, image or text; by default every kind that the
    dataset contains. `tokenizer`: the folder of the tokenizer to count tokens with; by default one is trained on the text, up
    to its first 16 million characters. `workers`: processes, by default one per core. `out`: a JSON file for the complete
    report. `follow_links`: as `data.follow_links`.

    Raises UserError when there is no such dataset, no such split, or nothing of this kind in it."""
    where = data_path(where)
    if kind not in (None, *MEASURES):
        raise UserError(f"kind: {kind!r} is none of {', '.join(MEASURES)}")
    out = None if out is None else output_file(out, "--json")
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 0:
        raise UserError(f"workers: {workers} is not a number of processes; use 0 or more (0: in this process)")
    loaded_tokenizer = load_tokenizer(tokenizer) if tokenizer is not None else None
    files = _files(where, follow_links)
    request = Request(where, kind or "text", column, label, files is None or bool(with_ending(files, SHARDS)), follow_links)
    choice = SplitChoice(split)
    parts, missing = list[KindReport](), list[NoSplit]()
    for each in _kinds(request, choice, files) if kind is None else [kind]:
        try:
            parts.append(_check_kind(request._replace(kind=each), choice, loaded_tokenizer, workers))
        except NoSplit as error:  # such as a README.txt beside audio in split folders
            missing.append(error)
    if not parts:
        raise missing[0]
    settings = "" if column is None else f" data.column={shlex.quote(column)}"
    if loaded_tokenizer is not None:
        size = loaded_tokenizer.get_vocab_size()
        settings += f" data.tokenizer={shlex.quote(str(tokenizer))} modality.vocab_size={size}"
    found = DataReport(where, split, tuple(parts), _other_files(files or [], [part.kind for part in parts]), settings)
    if out is not None:
        write_json(Path(out), asdict(found))
    return found


def is_recordings(where: Any, follow_links: bool = False) -> bool:
    """Whether a local dataset is clearly one of recordings: files that hold nothing else, such as edf or npz, or npy of less
    than four axes; or csv and tsv files with a row of numbers below their names. There are no files of another kind."""
    files = _files(data_path(where), follow_links)
    if (
        files is None
        or any(with_ending(files, MEDIA[kind]) for kind in MEASURES)
        or with_ending(files, (*ARCHIVES, *MANIFESTS))
    ):
        return False
    files = [file for file in files if not is_metadata(file)]
    tables = with_ending(files, TABLES)
    if others := with_ending([file for file in files if file not in {*tables}], MEDIA["recording"]):
        return not _is_video(others[0])
    return bool(tables) and all(map(_holds_samples, tables[:FIRST]))


def _is_video(path: str) -> bool:
    """Whether a file is an array of four axes, which no recording has."""
    if not path.lower().endswith(".npy"):
        return False
    try:
        require_regular(path)
        return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 4
    except (OSError, ValueError):
        return False


def _holds_samples(path: str) -> bool:
    """Whether the second line of a csv or tsv file has numbers only, but for the time of a sample."""
    if not path.lower().endswith(TEXT_TABLES):
        return False
    try:
        with open_regular(path) as file:
            lines = [file.readline(2**20).decode("utf-8-sig", "replace").strip("\r\n") for _ in range(2)]
    except (OSError, ValueError):
        return False
    names, cells = (re.split(r"[,;\t]", line) for line in lines)
    samples = [cell for name, cell in zip(names, cells, strict=False) if not TIMES.fullmatch(name.strip(' "').lower())]
    return len(names) == len(cells) and bool(samples) and all(map(_is_number, samples))


def _is_number(text: str) -> bool:
    try:
        float(text.strip(' "') or "nan")
    except ValueError:
        return False
    return True


def _files(where: str, follow_links: bool) -> list[str] | None:
    """The paths of the files of a local dataset; None for a URL, a dataset on the hub or a saved one."""
    path = local_path(where.removeprefix("file://"))
    if not path.exists() or (path.is_dir() and saved_datasets(path)):
        return None
    return [str(path / file) for file in list_files(path, follow_links)] if path.is_dir() else [str(path)]


def _kinds(request: Request, choice: SplitChoice, files: list[str] | None) -> list[SignalKind]:
    """The kinds of the files, by their endings; for tables, archives and hub datasets the first kind that they contain."""
    if files is not None:
        if found := [kind for kind in MEASURES if with_ending(files, MEDIA[kind])]:
            return found
        if not with_ending(files, (*TABLES, *ARCHIVES, *MANIFESTS)):
            videos = "; for videos add --modality video" if with_ending(files, MEDIA["video"]) else ""
            raise UserError(f"{request.where}: no audio, image or text found; found {count_endings(files)}{videos}")
    members, reasons = _members(with_ending(files or [], ARCHIVES)), dict[SignalKind, NoSignal]()
    # An archive without the requested kind is read to its end, so start with the kind of its first members.
    for kind in sorted(MEASURES, key=lambda kind: not with_ending(members, MEDIA[kind])):
        try:
            read_dataset(request._replace(kind=kind, streaming=True), choice)
            return [kind]
        except NoSignal as error:
            reasons[kind] = error
    raise reasons["text"]


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
    read = (*wanted, TRANSCRIPTS) if with_ending(files, wanted) else (*TABLES, *ARCHIVES)
    aside = {file for file in files if not file.lower().endswith(read)}
    tables = with_ending([*aside], (*TABLES, *MANIFESTS))
    aside -= {table for table in tables for kind in kinds if path_columns(Path(table), kind)}
    return count_endings(sorted(aside)) if aside else None


def _check_kind(request: Request, choice: SplitChoice, tokenizer: Tokenizer | None, workers: int) -> KindReport:
    kind, label = request.kind, request.label
    rows, splits = read_dataset(request, choice)
    splits = splits or _splits_of_stream(request)
    require_labels(label, rows.features, kind, request.column)
    token_counter = None
    if kind == "text":
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # otherwise the library warns for every worker
        token_counter = "the given tokenizer"
        if tokenizer is None:
            whole, texts = _sample(rows)
            tokenizer = train_tokenizer(texts, VOCABULARY)
            token_counter = f"a {VOCABULARY}-id tokenizer trained on {'all text' if whole else 'its beginning (an estimate)'}"
    loader = DataLoader(
        _Examples(kind, tokenizer, label, class_names(rows.features.get(label))),
        batch_size=None,
        sampler=_chunks(_numbered(rows, kind)),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_ignore_interrupt if workers else None,
    )
    first = [_preview(name, row, kind) for name, row in islice(_numbered(rows, kind), FIRST)]
    with closing(Aggregate(kind)) as aggregate:
        with _bar(len(rows) if hasattr(rows, "__len__") else None, kind) as bar:
            for found in loader:
                aggregate.add(found)
                bar.update(len(found))
        return aggregate.report(token_counter, first, splits)


def _splits_of_stream(request: Request) -> dict[str, int]:
    """The number of rows of a local stream by the word for a split in their column `split`; empty if there are none."""
    if not request.streaming or "://" in request.where or request.where.lower().endswith(ARCHIVES):
        return {}
    rows, _ = read_dataset(request, SplitChoice(ALL))
    if hasattr(rows, "__len__") or "split" not in rows.features or "key" in rows.features:
        return {}
    names = class_names(rows.features["split"])
    try:
        values = (label_value(row["split"], names) for row in rows.select_columns("split"))
        found = Counter(split_of_value(value) for value in values if value is not None)
    except (UserError, OSError):  # the check itself reports a damaged shard
        return {}
    return {} if None in found else count_splits(found.elements())


def _preview(name: str, row: Row | str, kind: SignalKind) -> str:
    """The beginning of a text; otherwise the name of an example."""
    if isinstance(row, str) or not isinstance(row[kind], str):
        return name
    text = " ".join(row[kind].split())
    return repr(text if len(text) <= PREVIEW_CHARACTERS else f"{text[:PREVIEW_CHARACTERS]}…")


def _bar(total: int | None, kind: SignalKind) -> Any:
    return progress(desc=f"reading {kind}", total=total, unit="example")


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
                path = content.get("path") if isinstance(content, dict) else row.get("path")
                yield path or row.get("key") or f"example {number}", row
        except (UserError, ValueError, OSError) as error:
            yield f"part {part + 1} of {parts}", f"the rest cannot be read: {' '.join(str(error).split())}"


def _chunks(rows: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


class _Examples(Dataset[list[Finding]]):
    """Runs `inspect_example` on rows, in the workers."""

    def __init__(self, kind: SignalKind, tokenizer: Tokenizer | None, label: str, classes: list[str] | None):
        self.kind, self.tokenizer, self.label, self.classes = kind, tokenizer, label, classes

    def __getitem__(self, chunk: list[tuple[str, Row | str]]) -> list[Finding]:
        return [{"name": name} | self._examine(name, row) for name, row in chunk]

    def _examine(self, name: str, row: Row | str) -> Finding:
        if isinstance(row, str):
            return {"problem": row, "damaged": 1}
        label = label_value(row.get(self.label), self.classes)
        kept = label if isinstance(label, str | int) else None  # not a score or a list of labels
        return {"label": kept} | inspect_example(self.kind, row, name, self.tokenizer)


def _ignore_interrupt(worker: int) -> None:
    # The main process receives it too, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
