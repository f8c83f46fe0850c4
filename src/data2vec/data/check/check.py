"""What is in a data set, found by reading all of it: every example is decoded as training would decode it."""

import json
import os
import signal
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from data2vec.data.check.aggregate import Tally
from data2vec.data.check.inspect import SPREAD, examine
from data2vec.data.check.report import Check, Findings
from data2vec.data.sources.formats import ARCHIVES, MEDIA, SHARDS, TEXT_TABLES, SignalKind, count_endings, with_ending
from data2vec.data.sources.local import list_files
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.data.tokenizer import load_tokenizer, train_tokenizer
from data2vec.errors import CorruptExample, UserError

VOCABULARY = 50265
"""Ids of the tokenizer that is trained when none is given, as in the recipes of the base size."""
TRAIN_ON = 16 * 2**20
"""Characters it is trained on, at most."""
CHUNK = 16
"""Examples that travel to a worker together."""
TABLES = (*TEXT_TABLES, *SHARDS)


def check(
    where: str | Path,
    kind: SignalKind | None = None,
    split: str = "train",
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
) -> Check:
    """Read all of a data set and tell what is in it. What cannot be read is a finding, not an error.

    `where` and `split` are what `data.train` and `data.split` may be. `kind`: audio, image or text; by default what is
    there, and where a folder holds files of several kinds, each. `tokenizer`: the folder of the one to count tokens by;
    without, one is trained on the text, or its first 16 million characters. `workers`: processes, by default one for each
    core. `out`: a JSON file to write everything into.

    Raises UserError when there is nothing there, or nothing of this kind."""
    where = str(where)
    if kind not in (None, *MEDIA):
        raise UserError(f"kind: {kind!r} is none of {', '.join(MEDIA)}")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {Path(out).parent} to write it into")
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 0:
        raise UserError(f"workers: {workers} is not a number of processes; 0 reads in this one")
    given = load_tokenizer(tokenizer) if tokenizer is not None else None
    files = _files(where, split)
    kinds = _kinds(where, split, files) if kind is None else [kind]
    parts = tuple(_check(where, each, split, files, given, workers) for each in kinds)
    found = Check(where, split, parts, _left_aside(files or [], kinds))
    if out is not None:
        Path(out).write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _files(where: str, split: str) -> list[str] | None:
    """The files that are there; None for an address or a hub data set."""
    path = Path(where.removeprefix("file://")).expanduser()
    if not path.exists():
        return None
    return [str(file) for file in list_files(path, split)[1]] if path.is_dir() else [str(path)]


def _kinds(where: str, split: str, files: list[str] | None) -> list[SignalKind]:
    """What there is by the endings of files; else the first kind that the rows of a table, an archive or a hub set hold."""
    if files is not None:
        if found := [kind for kind in SPREAD if with_ending(files, MEDIA[kind])]:
            return found
        if not with_ending(files, TABLES):
            raise UserError(f"{where}: nothing here to read as audio, image or text; found {count_endings(files)}")
    members, reasons = _members(with_ending(files or [], ARCHIVES)), dict[SignalKind, str]()
    # An archive that lacks the kind asked for is read to its end, so what its first names tell is tried first.
    for kind in sorted(SPREAD, key=lambda kind: not with_ending(members, MEDIA[kind])):
        try:
            open_dataset(where, kind, split, streaming=True)
            return [kind]
        except UserError as error:
            reasons[kind] = str(error)
    raise UserError(reasons["text"])


def _members(shards: list[str]) -> list[str]:
    """Names of the first files in the first archive."""
    if not shards:
        return []
    try:
        with tarfile.open(shards[0], "r|*") as tar:
            return [member.name for member in islice(tar, 20)]
    except (tarfile.TarError, EOFError, OSError):
        return []  # opening it as rows tells why


def _left_aside(files: list[str], kinds: list[SignalKind]) -> str | None:
    """What is there beside the files that are read, by their endings."""
    wanted = tuple(ending for kind in kinds for ending in MEDIA[kind])
    read = wanted if with_ending(files, wanted) else TABLES
    aside = set(files) - set(with_ending(files, (*read, "metadata.csv")))
    return count_endings(sorted(aside)) if aside else None


def _check(where: str, kind: SignalKind, split: str, files: list[str] | None, tokenizer: Any, workers: int) -> Findings:
    streaming = files is None or bool(with_ending(files, SHARDS))
    rows = open_dataset(where, kind, split, streaming)
    tokens_by = None
    if kind == "text":
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else the library warns of every worker
        tokens_by = "the tokenizer given"
        if tokenizer is None:
            whole, texts = _sample(rows)
            tokenizer = train_tokenizer(texts, VOCABULARY)
            tokens_by = f"a tokenizer of {VOCABULARY} ids trained on {'all of it' if whole else 'its beginning: an estimate'}"
    loader = DataLoader(
        _Examples(kind, tokenizer),
        batch_size=None,
        sampler=_chunks(_numbered(rows, kind)),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_leave_ctrl_c if workers else None,
    )
    with closing(Tally(kind)) as tally:
        with _bar(None if streaming else len(rows), kind) as bar:
            for found in loader:
                tally.add(found)
                bar.update(len(found))
        return tally.findings(getattr(rows.features.get("label"), "names", None), tokens_by)


def _bar(total: int | None, kind: SignalKind) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=f"reading {kind}", unit="example", leave=False, disable=None)


def _sample(rows: Any) -> tuple[bool, list[str]]:
    """The beginning of the text, and whether it is all of it."""
    sample: list[str] = []
    size = 0
    for _, row in _numbered(rows, "text"):
        try:
            for part in () if isinstance(row, str) else read_text(row):
                if size > TRAIN_ON:
                    return False, sample
                sample.append(part)
                size += len(part)
        except CorruptExample:
            continue
    return True, sample


def _numbered(rows: Any, kind: SignalKind) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(name, row) of all rows, or (name, what is wrong) where a file with many of them breaks off."""
    number, parts = 0, 1 if hasattr(rows, "__len__") else rows.num_shards
    for part in range(parts):
        try:
            for row in rows.shard(num_shards=parts, index=part):
                number += 1
                content = row[kind]
                path = content["path"] if isinstance(content, dict) else row.get("path")
                yield path or row.get("key") or f"example {number}", row
        except (UserError, ValueError, OSError) as error:
            yield f"part {part + 1} of {parts}", f"the rest of it cannot be read: {' '.join(str(error).split())}"


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


class _Examples(Dataset[list[dict[str, Any]]]):
    """In the worker: rows become what is found in them."""

    def __init__(self, kind: SignalKind, tokenizer: Any):
        self.kind, self.tokenizer = kind, tokenizer

    def __getitem__(self, chunk: list[tuple[str, Any]]) -> list[dict[str, Any]]:
        return [{"name": name} | self._examine(name, row) for name, row in chunk]

    def _examine(self, name: str, row: Any) -> dict[str, Any]:
        if isinstance(row, str):
            return {"problem": row}
        label = row.get("label")
        kept = label if isinstance(label, str | int) else None  # not scores, nor several
        return {"label": kept} | examine(self.kind, row, name, self.tokenizer)


def _leave_ctrl_c(worker: int) -> None:
    # The main process hears it too, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
