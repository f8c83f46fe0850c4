"""Open a dataset, wherever it is: a folder, a file, a URL or a dataset on the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data2vec.data.dataset import Rows
from data2vec.data.sources.columns import NoSignal, class_names, label_value
from data2vec.data.sources.formats import (
    ARCHIVES,
    FRAMES,
    JSON_LINES,
    MANIFESTS,
    MEDIA,
    PARQUET,
    TEXT_TABLES,
    SignalKind,
    count_endings,
    formats_for,
    is_example,
    with_ending,
)
from data2vec.data.sources.frame_folders import frame_folders, refuse_nested
from data2vec.data.sources.hub import hub_name, no_such_path, split_revision
from data2vec.data.sources.library import dataset_from_table, load_library_dataset, load_saved, saved_datasets, shuffled_stream
from data2vec.data.sources.listings import METADATA, find_listings, listing_source, path_columns, read_listing, splits_of_lists
from data2vec.data.sources.local import list_files, media_rows
from data2vec.data.sources.remote import list_remote_files
from data2vec.data.sources.shards import Request, read_shards
from data2vec.data.sources.signals import to_signals
from data2vec.data.sources.splits import (
    ALL,
    SPLITS,
    TRAIN,
    Source,
    SplitChoice,
    SplitName,
    count_splits,
    listed,
    name_splits,
    no_split,
    pick_split,
    split_of_name,
    split_of_value,
)
from data2vec.data.sources.tables import PEEKED_ROWS
from data2vec.errors import UserError, get_logger
from data2vec.local_path import local_path

log = get_logger(__name__)


def open_dataset(
    path: str,
    kind: SignalKind,
    split: str = TRAIN,
    streaming: bool = False,
    column: str | None = None,
    whole: str = TRAIN,
    label: str = "label",
    follow_links: bool = False,
) -> Rows:
    """The rows of a dataset: a `datasets.Dataset`, memory-mapped or of file paths; with `streaming` an `IterableDataset`.

    `path` is a folder, a file (parquet, tar, jsonl, tsv, csv or a single media file), a folder written by `save_to_disk` of the
    `datasets` library, a URL of parquet, tar or jsonl that fsspec can read, or "hf://owner/name" or "hf://owner/name:config"
    on the hub. `split`: a name in the data, a word that stands for it, or "all"; data without splits counts as split `whole`.
    `column`: the column of the signal; None: one with a known name, or the only one. `label`: the column of labels of streams.
    `follow_links`: read files outside of the dataset's folder, too, which links and paths in tables lead to.

    Signals are in column `audio` or `image` as {"bytes", "path"}, not decoded (decoded audio stays as it is); texts in `text`,
    as a string, or as {"bytes", "path"} for files. Other columns are kept; streams of jsonl and tar keep only `label` and
    `split`. Nothing is written next to the data; Arrow copies go to the caches.

    Raises UserError when there is no such dataset, nothing of this kind in it, no such split, and when it cannot be told which
    column is the signal."""
    return read_dataset(Request(path, kind, column, label, streaming, follow_links), SplitChoice(split, whole))[0]


def read_dataset(request: Request, choice: SplitChoice) -> tuple[Rows, dict[str, int]]:
    """The rows of a split, as `open_dataset`; and the number of files, or rows, of each split of the dataset by its name in it.

    The numbers are empty if nothing is named by a split, and for a dataset on the hub or a column of streamed rows."""
    source = find_source(request)
    if source is None:
        rows = _load_from_hub(request.where, choice, request.streaming)
        return to_signals(rows, request.kind, request.column, request.boundary), {}
    picked = pick_split(source.splits, source.names, choice, source.where)
    indices = range(len(source.names)) if picked is None else picked
    if named := count_splits(source.splits):
        rows = source.read(list(indices), SplitChoice())
        _refuse_other_splits(rows, choice, source.where)
        return rows, named
    rows = source.read(list(indices), choice)
    in_archives = all(source.names[index].lower().endswith(ARCHIVES) for index in indices)
    by_column, found = _pick_by_column(rows, choice, source.where, in_archives)
    if picked is None and (by_column is None or next(iter(by_column), None) is None) and not in_archives:
        raise no_split(source.where, choice.split, source.splits, source.names)
    return rows if by_column is None else by_column, found


def list_splits(request: Request) -> dict[str, int]:
    """The numbers of `read_dataset`, without reading data whose files are named by splits."""
    source = find_source(request)
    return {} if source is None else count_splits(source.splits) or read_dataset(request, SplitChoice())[1]


def find_source(request: Request) -> Source | None:
    """The files, rows or saved splits of a dataset; None for a dataset on the hub. Raises UserError if there are none."""
    path = request.where
    local = local_path(path.removeprefix("file://"))
    if local.is_dir():
        return _folder_source(request, local)
    if local.exists():
        return _file_source(request, local)
    if hub_name(path, "dataset") is not None:
        return None
    if "://" in path:
        return _remote_source(request)
    raise no_such_path(path)


def _folder_source(request: Request, root: Path) -> Source:
    kind = request.kind
    if parts := saved_datasets(root):
        return _saved_source(request, parts)
    files = list_files(root, request.follow_links)
    files += frame_folders(files) if kind == "video" else []
    readable = with_ending(files, tuple(ending for endings in formats_for(kind) for ending in endings))
    readable = [name for name in readable if name.rpartition("/")[2].lower() not in METADATA]
    if listings := find_listings(root, files, kind, request.column, request.boundary):
        media = [name for name in with_ending(readable, MEDIA[kind]) if name not in {each.name for each in listings}]
        media += [folder.removesuffix("/") for folder in with_ending(readable, FRAMES)]
        source = listing_source(request.where, root, listings, media, kind, _splits_of_lists(root, files, media, kind))
        if others := sorted({*readable} - {*media, *with_ending(readable, FRAMES)} - {listing.name for listing in listings}):
            _warn_left_out(request, others, f"tables that list files ({listed(listing.name for listing in listings)})")
        return _streamed(source) if request.streaming else source
    if not readable:
        raise _nothing_found(request, formats_for(kind), files)
    splits = dict(zip(readable, name_splits(readable, is_example, request.where), strict=True))
    media = with_ending(readable, (*MEDIA[kind], *FRAMES))
    for name, split in _splits_of_lists(root, files, media, kind).items():
        if (other := splits[name]) is not None and other.split != split.split:
            raise UserError(f"{request.where}: {split.name} lists {name}, which belongs to {other.name}; correct the list")
        splits[name] = split
    is_divided = None not in splits.values() or any(split is not None and split.split == TRAIN for split in splits.values())

    def read(indices: list[int], choice: SplitChoice) -> Rows:
        endings, names = _one_format([readable[index] for index in indices], request)
        if endings == FRAMES:
            refuse_nested(names, request.where)
        elif endings != MEDIA[kind]:
            return read_shards(request, endings, [str(root / name) for name in names], choice)
        return _read_media(request, root, names, [splits[name] if is_divided else None for name in names])

    return Source(request.where, readable, list(splits.values()), read)


def _splits_of_lists(root: Path, files: Sequence[str], media: Sequence[str], kind: SignalKind) -> dict[str, SplitName]:
    """As `splits_of_lists`; texts have no lists, as a list is a text itself."""
    return {} if kind == "text" else splits_of_lists(root, files, media)


def _file_source(request: Request, path: Path) -> Source:
    kind, endings = request.kind, _format_of(path.name, request.kind)
    tables = (*TEXT_TABLES, *JSON_LINES, *MANIFESTS, *(PARQUET if endings == MEDIA[kind] else ()))
    is_table = path.name.lower().endswith(tables)
    columns = path_columns(path, kind) if is_table and endings in (None, MEDIA[kind]) else {}
    if is_table and (endings is None or columns):  # of files
        listing = read_listing(path, columns, kind, request.column, "")
        request.boundary.require(listing.files, "paths")
        source = listing_source(request.where, path.parent, [listing], [], kind).as_named()
        return _streamed(source) if request.streaming else source
    if endings is None:
        raise _nothing_found(request, formats_for(kind), [path.name])

    def read(indices: list[int], choice: SplitChoice) -> Rows:
        if endings == MEDIA[kind]:
            return _read_media(request, path.parent, [path.name], [None])
        return read_shards(request, endings, [str(path)], choice)

    return Source(request.where, [path.name], [None], read)


def _remote_source(request: Request) -> Source:
    formats = tuple(endings for endings in formats_for(request.kind) if endings in (PARQUET, JSON_LINES, ARCHIVES))
    root, urls = list_remote_files(request.where, tuple(ending for endings in formats for ending in endings))
    readable = with_ending(urls, tuple(ending for endings in formats for ending in endings))
    if not readable:
        raise _nothing_found(request, formats, urls)
    names = [url.removeprefix(root).strip("/") for url in readable]

    def read(indices: list[int], choice: SplitChoice) -> Rows:
        endings, files = _one_format([readable[index] for index in indices], request)
        return read_shards(request, endings, files, choice)

    source = Source(request.where, names, name_splits(names, is_example, request.where), read)
    return source.as_named() if "*" in request.where or request.where == readable[0] else source


def _saved_source(request: Request, parts: Mapping[str, Path]) -> Source:
    names = list(parts)
    splits = _splits_of_parts(names)

    def read(indices: list[int], choice: SplitChoice) -> Rows:
        from datasets import concatenate_datasets

        rows = concatenate_datasets([load_saved(parts[names[index]], request.boundary) for index in indices])
        rows = to_signals(rows, request.kind, request.column, request.boundary, parts[names[0]])
        return rows.to_iterable_dataset(num_shards=max(1, min(1024, len(rows) // 8))) if request.streaming else rows

    return Source(request.where, names, splits, read)


def _splits_of_parts(names: Sequence[str]) -> list[SplitName | None]:
    """The splits of a saved dataset or of one on the hub, whose names may be any; a single one that is named by no split is the
    whole of it."""
    found = [split_of_name(name) for name in names]
    return [split or SplitName(name, name) for split, name in zip(found, names, strict=True)] if len(names) > 1 else found


def _load_from_hub(path: str, choice: SplitChoice, streaming: bool) -> Rows:
    """A split of a dataset on the hub; if it has none of this name, the one that the name stands for."""
    from datasets import concatenate_datasets

    name, revision = split_revision(str(hub_name(path, "dataset")))
    name, _, config = name.partition(":")
    if choice.split.lower() != ALL:
        try:
            return load_library_dataset(path, name, config or None, split=choice.split, streaming=streaming, revision=revision)
        except UserError as error:
            if "Unknown split" not in str(error):
                raise
    parts = load_library_dataset(path, name, config or None, streaming=streaming, revision=revision)
    names = list(parts)
    if (picked := pick_split(splits := _splits_of_parts(names), names, choice, path)) is None:
        raise no_split(path, choice.split, splits, names)
    return concatenate_datasets([parts[names[index]] for index in picked])


def _one_format(names: Sequence[str], request: Request) -> tuple[tuple[str, ...], list[str]]:
    """The first of the formats that the files have, and the files of that format; the others are left out, with a warning."""
    for endings in formats_for(request.kind):
        if matching := with_ending(names, endings):
            if left_out := sorted(set(names) - set(matching)):
                _warn_left_out(request, left_out, count_endings(matching))
            return endings, matching
    raise _nothing_found(request, formats_for(request.kind), names)


def _warn_left_out(request: Request, files: Sequence[str], read: str) -> None:
    log.warning(
        "%s: left out as there are %s, files of other formats: %s (such as %s); read them by themselves",
        *(request.where, read, count_endings(files), files[0]),
    )


def _format_of(name: str, kind: SignalKind) -> tuple[str, ...] | None:
    return next((endings for endings in formats_for(kind) if name.lower().endswith(endings)), None)


def _read_media(request: Request, root: Path, names: Sequence[str], splits: Sequence[SplitName | None]) -> Rows:
    if request.column is not None:
        raise UserError(
            f"data.column: {request.column!r}: {request.where} holds {request.kind} files, not a table with columns"
        )
    rows = dataset_from_table(media_rows(root, names, splits, request.kind, request.boundary))
    return shuffled_stream(rows) if request.streaming else rows


def _streamed(source: Source) -> Source:
    """The same, whose rows are shuffled and streamed."""
    return replace(source, read=lambda indices, choice: shuffled_stream(source.read(indices, choice)))


def _nothing_found(request: Request, formats: Sequence[tuple[str, ...]], files: Sequence[str]) -> NoSignal:
    endings = " ".join("(folders of images)" if ending in FRAMES else ending for endings in formats for ending in endings)
    return NoSignal(f"{request.where}: no {request.kind} found; searched for {endings}; found {count_endings(files)}")


def _splits_of_rows(rows: Rows) -> tuple[list[SplitName | None], bool] | None:
    """What the column `split` of rows names, and whether all of that are words for splits; None if there is no such column, or
    if its values are not known beforehand."""
    names = _split_classes(rows)
    if names is None or not hasattr(rows, "__len__"):
        return None
    values = [label_value(value, names or None) for value in rows["split"][:]]
    found = [None if value is None else split_of_value(value) for value in values]
    if all(value is None or split is not None for value, split in zip(values, found, strict=True)):
        return found, True
    return [None if value is None else SplitName(str(value), str(value)) for value in values], False


def _split_classes(rows: Rows) -> list[str] | None:
    """The class names of the column `split`, none of a column of text; None if there is no such column."""
    feature = (rows.features or {}).get("split")
    return class_names(feature) or ([] if "string" in getattr(feature, "dtype", "") else None)


def _refuse_other_splits(rows: Rows, choice: SplitChoice, where: str) -> None:
    """Raise UserError if the column `split` of files that are named by a split names another one."""
    if choice.split.lower() not in SPLITS or (column := _splits_of_rows(rows)) is None or not column[1]:
        return
    if others := [split.name for split in column[0] if split is not None and not choice.includes(split)]:
        raise UserError(
            f"{where}: the files are named by split {choice.split}, but column split of {len(others)} rows is "
            f"{listed(others)}; correct or remove the column, or read all rows by data.split={ALL}"
        )


def _pick_by_column(rows: Rows, choice: SplitChoice, where: str, keep_unnamed: bool) -> tuple[Rows | None, dict[str, int]]:
    """The rows whose column `split` names the split, None if there is no such column; and the number of rows of each split.

    `keep_unnamed`: also the rows of a stream where it is empty."""
    if (column := _splits_of_rows(rows)) is not None:
        found, is_split = column
        if not is_split and choice.split == choice.whole:  # a column of another meaning
            return None, {}
        picked = pick_split(found, [f"row {number}" for number in range(1, len(found) + 1)], choice, f"{where}, column split")
        counts = count_splits(found) if is_split else {}
        return None if picked is None else rows if len(picked) == len(rows) else rows.select(picked), counts
    if (names := _split_classes(rows)) is None or choice.split.lower() == ALL:
        return None, {}
    if not keep_unnamed:  # as in an indexed dataset, rows without a split belong to none if others have one
        first = islice(rows.select_columns("split"), PEEKED_ROWS)
        keep_unnamed = all(split_of_value(label_value(row["split"], names or None)) is None for row in first)
        keep_unnamed = keep_unnamed and choice.split == choice.whole
    is_in_split = partial(_is_in_split, names=names or None, choice=choice, keep_unnamed=keep_unnamed)
    return rows.filter(is_in_split, input_columns="split"), {}


def _is_in_split(value: Any, names: list[str] | None, choice: SplitChoice, keep_unnamed: bool) -> bool:
    value = label_value(value, names)
    if value is None:
        return keep_unnamed
    return choice.includes(split_of_value(value)) or str(value).lower() == choice.split.lower()
