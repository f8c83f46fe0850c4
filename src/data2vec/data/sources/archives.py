"""Tar archives in webdataset layout as rows, read from start to end."""

import json
import tarfile
from collections.abc import Iterator, Sequence

from data2vec.data.dataset import Row
from data2vec.data.sources.formats import MEDIA, SignalKind
from data2vec.data.sources.remote import open_binary
from data2vec.errors import UserError


def read_archives(archives: Sequence[tuple[str, str]], kind: SignalKind) -> Iterator[Row]:
    """Rows of tar archives, given as (path or URL, version): files that share a name up to its first dot are one example.

    `.cls` becomes column `label`; the fields of `.json` and the content of `.txt` become columns. Nothing is unpacked to disk.
    Raises UserError for a damaged archive."""
    columns: list[str] | None = None
    for archive, _ in archives:
        try:
            for row in _read_archive(archive, kind):
                columns = columns if columns is not None else list(row)
                yield {name: row.get(name) for name in columns}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{archive} is not a complete tar archive: {error}; copy or create it again") from None


class _Member(tarfile.TarInfo):
    """A member of an archive that ends as it should: the library takes a cut in front of a member for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends before its end marker") from None


def _read_archive(archive: str, kind: SignalKind) -> Iterator[Row]:
    name, sample = None, Row()
    with open_binary(archive) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
        for member in tar:
            folder, _, last = member.name.rpartition("/")
            stem, _, ending = last.partition(".")
            if not member.isfile() or not stem:
                continue
            if (folder, stem) != name:
                if kind in sample:
                    yield sample
                name, sample = (folder, stem), {"key": f"{folder}/{stem}".strip("/")}
            source = tar.extractfile(member)
            content = source.read() if source else b""
            ending = ending.lower()
            if f".{ending.rpartition('.')[2]}" in MEDIA[kind]:
                sample[kind] = {"bytes": content, "path": f"{archive}/{member.name}"}
            elif ending == "json":
                fields = json.loads(content)
                if kind == "text" and isinstance(fields.get("text"), str):
                    fields["text"] = {"bytes": fields["text"].encode(), "path": f"{archive}/{member.name}"}
                sample |= {k: v for k, v in fields.items() if k == kind or isinstance(v, str | int | float)}
            elif ending in ("cls", "txt"):
                words = content.decode(errors="replace").strip()
                sample["label" if ending == "cls" else "txt"] = int(words) if ending == "cls" and words.isdigit() else words
    if kind in sample:
        yield sample
