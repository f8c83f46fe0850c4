"""Tar archives in webdataset layout as rows, read from start to end."""

import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from data2vec.data.dataset import UNREADABLE, Row
from data2vec.data.sources.formats import MEDIA, SignalKind, is_hidden, utf8
from data2vec.data.sources.remote import open_binary
from data2vec.data.sources.splits import ALL, SplitChoice, listed, split_of_folders
from data2vec.data.sources.tables import stream_fields
from data2vec.errors import UserError, get_logger
from data2vec.settings import JsonDict
from data2vec.untrusted import require_regular

log = get_logger(__name__)

SIDECARS = (".json", ".cls", ".txt")
"""Members that tell something of the example they belong to."""


_REPORTED: set[tuple[str, str]] = set()
"""Streamed archives of which this process has reported what is in no example; they are read again in every epoch."""


MAX_HEADER_BYTES = 2**20
"""Of an extended header, such as a long name."""
MAX_MEMBER_BYTES = 2**31
MAX_EXPANSION = 100
"""Bytes of a member for each byte of its archive, which may be compressed; a small member may have SMALL_MEMBER_BYTES."""
SMALL_MEMBER_BYTES = 2**26
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _WholeMember(tarfile.TarInfo):
    """A member of an archive that ends as it should: the library takes a cut in front of a member for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_WholeMember":
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends before its end marker") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> "_WholeMember":
        member = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if member.type in _HEADERS and member.size > MAX_HEADER_BYTES:  # which the library would read as a whole
            raise tarfile.ReadError(f"a header in it has {member.size} bytes")
        return member


class _Member(NamedTuple):
    path: str
    folder: str
    stem: str
    """Without folders and ending."""
    ending: str
    """From the last dot, in lower case."""
    content: bytes

    @property
    def key(self) -> str:
        """What the members of one example have in common: folders, and the name up to its first dot."""
        return f"{self.folder}/{self.stem.partition('.')[0]}".strip("/")

    @property
    def own_key(self) -> str:
        """Folders, and the name up to its last dot."""
        return f"{self.folder}/{self.stem}".strip("/")

    @property
    def extension(self) -> str:
        """From the first dot, without it: left.png."""
        return f"{self.stem}{self.ending}".partition(".")[2].lower()


def read_archives(
    archives: Sequence[tuple[str, str]],
    kind: SignalKind,
    column: str | None = None,
    choice: SplitChoice = SplitChoice(),  # noqa: B008  # immutable
) -> Iterator[Row]:
    """Rows of tar archives, given as (path or URL, version): the signal in column `kind`; `key`; `fields`, what else is known
    of it, in JSON; `left_out`, the members around it that are in no row; `in_split`, whether it is in a folder that is named by
    a split; and `beside_splits`, whether a member so far is.

    Members one after another that share a name up to its first dot are one example; if several of them are signals, each of
    these is one. `.cls` is the field `label`, `.txt` the field `txt`, the keys of an object in `.json` are fields. `column`
    (`data.column`): only signals with this extension; for text, this field of `.json`. Nothing is unpacked to disk.

    An archive that is damaged or truncated ends with a row without content, which names the archive, the member and why.
    Raises UserError when a member would overwrite another one, and for an archive that cannot be reached."""
    left_out: list[str] = []
    splits = set[str]()
    for archive, _ in archives:
        held: Row | None = None
        for row in _read_archive(archive, kind, column, choice, left_out, splits):
            if held is not None:
                yield held
            held = row | {"left_out": left_out.copy(), "beside_splits": bool(splits)}
            left_out.clear()
        if held is not None:
            held["left_out"] += left_out
            held["beside_splits"] = bool(splits)
            left_out.clear()
            yield held


def stream_archives(label: str, **arguments: Any) -> Iterator[Row]:
    """`read_archives(**arguments)` for streams, whose rows have the same columns: the signal, `key`, `label` and `split`.

    `label`: the field that is the label. Raises UserError if only some members are in folders that are named by a split."""
    is_divided = arguments.get("choice", SplitChoice()).split != ALL
    for archive in arguments.pop("archives"):
        left_out: list[str] = []
        outside: str | None = None
        for row in read_archives([archive], **arguments):
            left_out += row.pop("left_out")
            outside = outside if row.pop("in_split") else outside or row["key"]
            if row.pop("beside_splits") and outside is not None and is_divided:
                raise UserError(
                    f"{archive[0]}: only some of its folders are named by a split, {outside} is in none of them; read it "
                    "by data.streaming=false, or all of it by data.split=all, or put these members in an archive of their own"
                )
            yield row | stream_fields(row.pop("fields"), label)
        if left_out and archive not in _REPORTED:
            log.warning("%s: members in no example, %d: %s", archive[0], len(left_out), listed(left_out))
            _REPORTED.add(archive)


def _read_archive(
    archive: str, kind: SignalKind, column: str | None, choice: SplitChoice, left_out: list[str], splits: set[str]
) -> Iterator[Row]:
    """`splits`: the splits that folders are named by are added to it."""
    signals, other_splits = set[str](), set[str]()
    damage: list[tuple[str, str]] = []
    for _, group in groupby(_members(archive, kind, left_out, damage), lambda member: member.key):
        members = list(group)
        found = split_of_folders(members[0].folder)
        splits |= {found.split} if found else set()
        if not choice.includes(found):
            member = members[0]
            top = f"{found.name}/" if found else f"{member.folder}/" if member.folder else member.path
            if top not in other_splits:
                other_splits.add(top)
                left_out.append(_name(archive, top))
            continue
        for own_key, row in _examples(archive, kind, column, members, left_out):
            if own_key in signals:
                raise UserError(
                    f"{archive}: several members are the {kind} {own_key}; rename all but one, or name an ending by data.column"
                )
            signals.add(own_key)
            yield row | {"in_split": found is not None}
    for place, reason in damage:  # after the last members that are complete
        signal = {"bytes": None, "path": f"{utf8(archive)}/{place}", UNREADABLE: reason}
        yield {"key": place, kind: signal, "fields": "{}", "in_split": True}


def _members(archive: str, kind: SignalKind, left_out: list[str], damage: list[tuple[str, str]]) -> Iterator[_Member]:
    """The files that are a signal or may belong to one, without hidden ones; others are `left_out`. If the archive ends too
    early, (the member where it does, why) is added to `damage`."""
    place = "its first member"
    try:
        limit = _largest_size(archive)
        with open_binary(archive) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_WholeMember) as tar:
            for member in tar:
                place = path = utf8(member.name)
                if member.size > limit:  # only compression makes it possible, and passing over it costs as much as reading it
                    raise tarfile.ReadError(f"{path} in it has {member.size} bytes, far more than the archive")
                folder, _, name = path.rpartition("/")
                if member.isdir() or is_hidden(path):
                    continue
                stem, dot, ending = name.rpartition(".")
                ending = (dot + ending).lower()
                source = tar.extractfile(member) if _is_readable(member) and ending in (*MEDIA[kind], *SIDECARS) else None
                if source is None:
                    left_out.append(_name(archive, path))
                    continue
                folder = "/".join(part for part in folder.split("/") if part not in ("", ".", ".."))
                content = source.read()
                if len(content) < member.size:
                    raise EOFError(f"only {len(content)} of {member.size} bytes are there")
                yield _Member(path, folder, stem, ending, content)
                place = f"what follows {path}"
    except UserError:
        raise
    except Exception as error:  # whatever the library and the decompressors raise on damaged content
        if isinstance(error, OSError) and (error.errno is not None or "://" in archive):
            raise UserError(f"{archive} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from None
        reason = utf8(" ".join(str(error).split())) or type(error).__name__
        damage.append((place, f"not complete ({reason})"))


def _largest_size(archive: str) -> float:
    """Bytes that a member of an archive can have; of a remote archive, whose size is not known, any number."""
    return math.inf if "://" in archive else max(SMALL_MEMBER_BYTES, MAX_EXPANSION * require_regular(archive).st_size)


def _is_readable(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file that is stored as a whole, and not too large."""
    return member.isfile() and not member.issparse() and member.size <= MAX_MEMBER_BYTES


def _name(archive: str, member: str) -> str:
    return f"{utf8(archive.rpartition('/')[2])}/{member}"


def _examples(
    archive: str, kind: SignalKind, column: str | None, members: Sequence[_Member], left_out: list[str]
) -> Iterator[tuple[str, Row]]:
    """(key up to the last dot, row) of each example among members that share a name up to its first dot."""
    fields: dict[str, JsonDict] = {}
    signals: list[tuple[_Member, bytes]] = []
    for member in members:
        if member.ending in MEDIA[kind]:
            if column is None or column.lower() in (member.extension, member.ending[1:]) or kind == "text":
                signals.append((member, member.content))
            else:
                left_out.append(_name(archive, member.path))
            continue
        try:
            if member.path in fields:
                raise UserError(f"{archive}: two members are named {member.path}; rename or remove one")
            fields[member.path] = _fields(member)
        except (ValueError, RecursionError):
            left_out.append(_name(archive, member.path))
    by_path = {member.path: member for member in members}
    if kind == "text" and (not signals or column is not None):
        name = column or "text"
        signals = [
            (by_path[path], values.pop(name).encode()) for path, values in fields.items() if isinstance(values.get(name), str)
        ]
    used: set[str] = set()
    for signal, content in signals:
        known: JsonDict = {}
        for path, values in fields.items():
            stem = by_path[path].stem
            if len(signals) > 1 and stem != signal.stem and not signal.stem.startswith(f"{stem}."):
                continue
            used.add(path)
            for name, value in values.items():
                name = f"json.{name}" if name in (kind, "key") else name
                if known.setdefault(name, value) != value:
                    raise UserError(f"{archive}: {path} has another {name} for {signal.path} than a member before it; keep one")
        key = signal.key if len(signals) == 1 else signal.own_key
        row = {"key": key, "fields": json.dumps(known)}
        path = f"{utf8(archive)}/{signal.path}"
        yield signal.own_key, row | {kind: {"bytes": content, "path": path, UNREADABLE: None}}
    left_out += [_name(archive, path) for path in fields if path not in used]


def _fields(member: _Member) -> JsonDict:
    """What a member tells of its example. Raises ValueError if it is not UTF-8, or no object in JSON."""
    text = member.content.decode("utf-8-sig")
    if member.ending == ".cls":
        return {"label": text.strip()}
    if member.ending == ".txt":
        return {"txt": text.strip()}
    fields: Any = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("no object")
    return fields
