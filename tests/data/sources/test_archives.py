"""Every member of an archive is in an example, or named as left out; none overwrites another."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data2vec.data.audio import decode_audio
from data2vec.data.check.check import check
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import CorruptExample, UserError
from data2vec.settings import JsonDict
from helpers.archives import write_tar


def read(path: Path, kind: Any = "audio", streaming: bool = False, **options: Any) -> dict[str, Any]:
    """The rows by key: the content of the signal; and without streaming their other columns."""
    found = {}
    for row in open_dataset(str(path), kind, streaming=streaming, **options):
        known: JsonDict = {name: value for name, value in row.items() if name not in ("key", kind) and value is not None}
        found[row["key"]] = (row[kind]["bytes"].decode(), known)
    return found


def contents(path: Path, **options: Any) -> dict[str, str]:
    return {key: content for key, (content, _) in read(path, **options).items()}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["a.flac", "a.cls", "b.flac", "b.cls"], {"a": "a.flac", "b": "b.flac"}),
        (["1.5_s.flac", "2.5_s.flac"], {"1": "1.5_s.flac", "2": "2.5_s.flac"}),
        (["v1.c1.flac", "v1.c2.flac", "v1.c3.flac"], {f"v1.c{i}": f"v1.c{i}.flac" for i in (1, 2, 3)}),
        (["2024.01.flac", "2025.01.flac", "2024.02.flac"], {"2024": "2024.02.flac", "2025": "2025.01.flac"}),
        (["x.left.wav", "x.right.wav", "x.json"], {"x.left": "x.left.wav", "x.right": "x.right.wav"}),
        (["d/a.flac", "e/a.flac", "./f/a.flac"], {"d/a": "d/a.flac", "e/a": "e/a.flac", "f/a": "./f/a.flac"}),
        (["A.FLAC", "b.Wav"], {"A": "A.FLAC", "b": "b.Wav"}),
    ],
)
def test_each_member_that_is_a_signal_is_an_example(
    tmp_path: Path, members: list[str], expected: dict[str, str], streaming: bool
) -> None:
    path = write_tar(tmp_path / "s.tar", {name: "{}" if name.endswith(".json") else name for name in members})
    rows = list(open_dataset(str(path), "audio", streaming=streaming))
    signals = [name for name in members if not name.endswith((".cls", ".json"))]
    assert [row["audio"]["bytes"].decode() for row in rows] == signals
    assert contents(path, streaming=streaming) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_list_or_broken_json_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: bool) -> None:
    members = {"a.wav": "A", "a.json": '[{"start": 0}]', "b.wav": "B", "b.json": '{"label": "x"}', "c.wav": "C", "c.json": "{"}
    path = write_tar(tmp_path / "s.tar", members)
    assert contents(path, streaming=streaming) == {"a": "A", "b": "B", "c": "C"}
    assert read(path, streaming=streaming)["b"][1] == {"label": "x"}
    assert "members in no example, 2: s.tar/a.json, s.tar/c.json" in caplog.text


def test_columns_are_those_of_all_members(tmp_path: Path) -> None:
    members: dict[str, str] = {"a.wav": "A", "b.wav": "B"}
    members |= {"b.json": json.dumps({"label": ["x", "y"], "n": 1, "deep": {"k": 1}}), "c.wav": "C", "c.json": '{"n": 2}'}
    rows = open_dataset(str(write_tar(tmp_path / "s.tar", members)), "audio")
    assert rows["label"][:] == [None, ["x", "y"], None]
    assert rows["n"][:] == [None, 1, 2] and rows["deep"][:] == [None, '{"k": 1}', None]


def test_fields_of_several_members_come_together(tmp_path: Path) -> None:
    members = {"x.left.wav": "L", "x.left.txt": "left", "x.right.wav": "R", "x.json": '{"speaker": "0012"}', "x.other.txt": "?"}
    path = write_tar(tmp_path / "s.tar", members)
    assert read(path) == {
        "x.left": ("L", {"txt": "left", "speaker": "0012"}),
        "x.right": ("R", {"speaker": "0012"}),
    }


def test_labels_stay_as_written(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.wav": "A", "a.cls": "\ufeff01\n", "b.wav": "B", "b.cls": "1_0"})
    assert {key: known for key, (_, known) in read(path).items()} == {"a": {"label": "01"}, "b": {"label": "1_0"}}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        [("a.wav", "1"), ("a.wav", "2")],
        [("a.wav", "1"), ("b.wav", "2"), ("a.wav", "3")],
        [("a.wav", "1"), ("a.flac", "2")],
        [("a.wav", "1"), ("a.json", '{"n": 1}'), ("a.json", '{"n": 2}')],
        [("a.wav", "1"), ("a.json", '{"label": "x"}'), ("a.cls", "y")],
    ],
)
def test_member_that_overwrites_another_is_refused(tmp_path: Path, members: list[tuple[str, str]], streaming: bool) -> None:
    path = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=r"s\.tar: "):
        list(open_dataset(str(path), "audio", streaming=streaming))


def test_ending_may_be_named_by_the_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.wav": "1", "a.flac": "2", "b.near.wav": "3", "b.far.wav": "4"})
    assert contents(path, column="flac") == {"a": "2"}
    assert contents(path, column="near.wav") == {"b": "3"}
    assert "s.tar/b.far.wav" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_members_that_belong_to_nothing_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    members = {
        "README.txt": "?",
        "a.wav": "A",
        "a.npy": "0",
        "a.cls": "x",
        ".DS_Store": "",
        "__MACOSX/a.wav": "",
        "z.json": "{}",
    }
    path = write_tar(tmp_path / "s.tar", members)
    assert contents(path, streaming=streaming) == {"a": "A"}
    assert "members in no example, 3: s.tar/README.txt, s.tar/a.npy, s.tar/z.json" in caplog.text
    caplog.clear()
    contents(path)
    contents(path)
    assert caplog.text.count("no example, 3") == (1 if streaming else 2) + streaming, "also when it is read from the cache"


def test_link_in_an_archive_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.wav": "A"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "a.wav"
        tar.addfile(link)
    assert contents(path) == {"a": "A"} and "members in no example, 1: s.tar/b.wav" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_text_is_a_member_or_a_field(tmp_path: Path, streaming: bool) -> None:
    members = {"a.txt": "A", "a.json": '{"text": "other", "label": "x"}', "b.json": '{"text": "B"}', "c.json": '{"body": "C"}'}
    path = write_tar(tmp_path / "s.tar", members)
    assert contents(path, kind="text", streaming=streaming) == {"a": "A", "b": "B"}
    assert contents(path, kind="text", column="body", streaming=streaming) == {"c": "C"}
    if not streaming:
        assert read(path, kind="text")["a"][1] == {"json.text": "other", "label": "x"}


def test_field_of_the_name_of_the_signal_does_not_replace_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.wav": "A", "a.json": '{"audio": "a.wav", "key": 7}'})
    assert read(path) == {"a": ("A", {"json.audio": "a.wav", "json.key": 7})}


@pytest.mark.parametrize("ending", ["tar.xz", "tar.bz2", "tgz"])
def test_compressed_archives_are_read(tmp_path: Path, ending: str) -> None:
    write_tar(tmp_path / f"s.{ending}", {"a.wav": "A"}, mode=f"w:{ending.replace('tgz', 'gz').rpartition('.')[2]}")
    assert contents(tmp_path) == {"a": "A"}


@pytest.mark.parametrize("streaming", [False, True])
def test_archive_ends_at_a_member_that_is_far_larger_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("data2vec.data.sources.archives.SMALL_MEMBER_BYTES", 1000)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        for name, size in {"a.flac": 10, "b.flac": 2**20, "c.flac": 10}.items():
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    first, last = open_dataset(str(tmp_path), "audio", streaming=streaming)
    assert first["key"] == "a" and last["audio"]["bytes"] is None
    assert last["audio"]["path"].endswith("s.tar.gz/b.flac")
    assert "not complete (b.flac in it has 1048576 bytes, far more" in last["audio"]["unreadable_because"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["tar", "tgz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7, 0.9])
def test_break_of_a_truncated_archive_is_one_bad_example(tmp_path: Path, part: float, ending: str, streaming: bool) -> None:
    path = tmp_path / f"a.{ending}"
    rng = np.random.default_rng(0)
    contents = {f"{number}.wav": rng.bytes(200_000) for number in range(10)}
    small_blocks: dict[str, Any] = {"compresslevel": 1} if ending == "tar.bz2" else {}
    mode: Any = f"w:{ {'tgz': 'gz', 'tar.bz2': 'bz2', 'tar.xz': 'xz'}.get(ending, '') }"
    with tarfile.open(path, mode, **small_blocks) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    *rows, last = open_dataset(str(path), "audio", streaming=streaming)
    whole = [row["key"] for row in rows]
    assert whole == [str(number) for number in range(len(whole))] and len(whole) in (int(10 * part) - 1, int(10 * part))
    assert all(row["audio"]["bytes"] == contents[f"{row['key']}.wav"] for row in rows)
    assert last["audio"]["bytes"] is None and last["audio"]["path"] == f"{path}/{last['key']}"
    assert f"{len(whole)}.wav" in last["audio"]["path"] or f"{len(whole) - 1}.wav" in last["audio"]["path"]
    with pytest.raises(CorruptExample, match=r"\.wav: not complete \(.+\)$"):
        decode_audio(last["audio"])


@pytest.mark.parametrize("streaming", [False, True])
def test_archive_and_members_whose_names_are_not_utf_8_are_escaped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tar"))
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        for name in ("b\xe9.wav", "b\xe9.cls", "c\xe9.pdf", "d\x1b.wav"):
            tar.addfile(tarfile.TarInfo(name))
    rows = list(open_dataset(str(path), "audio", streaming=streaming))
    assert [row["key"] for row in rows] == [r"b\udce9", "d\x1b"]
    assert rows[0]["audio"]["path"] == rf"{tmp_path}/caf\udce9.tar/b\udce9.wav"
    json.dumps(rows, default=repr).encode()
    assert r"caf\udce9.tar/c\udce9.pdf" in caplog.text and "\x1b" not in caplog.text
    (part,) = check(str(path), workers=0, out=tmp_path / "report.json").parts
    assert len(part.unreadable) == 2 and "\x1b" not in str(part.unreadable[0])
    report = (tmp_path / "report.json").read_text()
    assert r"b\\udce9.wav" in report and "\x1b" not in report
