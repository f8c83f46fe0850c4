import errno

import pytest

from data2vec.data.cache import cache_folder, cached
from data2vec.errors import UserError


def test_cached_file_is_written_once():
    made = []

    def write(file):
        made.append(1)
        file.write(b"content")

    assert cached("a.bin", write).read_bytes() == b"content"
    assert cached("a.bin", write) == cache_folder() / "a.bin"
    assert len(made) == 1


def test_full_disk_leaves_no_incomplete_cache_file():
    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device.*set DATA2VEC_CACHE"):
        cached("a.bin", write)
    assert not [path for path in cache_folder().iterdir() if path.suffix != ".lock"]
    assert cached("a.bin", lambda file: file.write(b"whole")).read_bytes() == b"whole"


def test_unwritable_cache_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATA2VEC_CACHE", str(tmp_path / "file" / "inside"))
    with pytest.raises(UserError, match="cannot be written"):
        cached("a.bin", lambda file: None)
