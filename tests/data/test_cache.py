import errno

import pytest

from data2vec.data.cache import cache_folder, cached
from data2vec.data.corrupt import CorruptExamples
from data2vec.errors import RunStopped, UserError


def test_made_once():
    made = []

    def write(file):
        made.append(1)
        file.write(b"content")

    assert cached("a.bin", write).read_bytes() == b"content"
    assert cached("a.bin", write) == cache_folder() / "a.bin"
    assert len(made) == 1


def test_a_full_disk_leaves_nothing_torn():
    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*set DATA2VEC_CACHE"):
        cached("a.bin", write)
    assert not [path for path in cache_folder().iterdir() if path.suffix != ".lock"]
    assert cached("a.bin", lambda file: file.write(b"whole")).read_bytes() == b"whole"


def test_a_cache_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATA2VEC_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(UserError, match="cannot be written"):
        cached("a.bin", lambda file: None)


def test_how_many_bad_examples_are_borne():
    bad = CorruptExamples(0.01, 300)
    bad.add(["a: torn", "b: torn", "a: torn"])
    bad.add(["c: torn"])
    assert len(bad.names) == 3
    with pytest.raises(RunStopped, match=r"4 of 300 .* a: torn; b: torn; c: torn; and 1 more\. Repair"):
        bad.add(["d: torn"])
    CorruptExamples(0.01, 20).add(["one is borne"])
    with pytest.raises(RunStopped, match="1 of 20"):
        CorruptExamples(0.0, 20).add(["none is borne"])
