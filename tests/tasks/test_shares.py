"""A folder of shards is filled with the parts that are missing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data2vec.tasks import shares
from data2vec.tasks.shares import ShardFolder, Share


class Numbers(ShardFolder[int]):
    """Parts are numbers of ten bytes."""

    def write(self, path: Path, parts: list[int]) -> None:
        path.write_text(json.dumps(parts))

    def size(self, part: int) -> int:
        return 10

    def content(self) -> list[list[int]]:
        return [json.loads(path.read_text()) for path in self.files]


@pytest.fixture
def folder(tmp_path: Path) -> Numbers:
    (tmp_path / "parts").mkdir()
    return Numbers(tmp_path / "parts", ".json", 12, Share(0, 1))


computed: list[range] = []


def even_numbers(ranges: list[range]) -> Iterator[tuple[int, int]]:
    computed[:] = ranges
    yield from ((i, i) for inputs in ranges for i in inputs if i % 2 == 0)


@pytest.mark.parametrize(("limit", "expected"), [(10, [[0], [2], [4], [6], [8], [10]]), (25, [[0, 2, 4], [6, 8, 10]])])
def test_a_shard_ends_when_it_is_large_enough_and_holds_inputs_without_a_part(
    folder: Numbers, limit: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SHARD_BYTES", limit)
    folder.fill("numbers", even_numbers)
    assert folder.content() == expected and folder.missing() == []


def test_only_missing_shards_are_computed(folder: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "SHARD_SECONDS", 0)
    folder.fill("numbers", even_numbers)
    for number in (4, 1):
        folder.files[number].unlink()
    assert folder.missing() == [range(2, 4), range(8, 10)]
    folder.fill("numbers", even_numbers)
    assert computed == [range(2, 4), range(8, 10)]
    assert folder.content() == [[0], [2], [4], [6], [8], [10]]


def test_inputs_without_any_part_are_complete(folder: Numbers) -> None:
    folder.fill("numbers", lambda ranges: iter([]))
    assert folder.content() == [[]] and folder.missing() == []
