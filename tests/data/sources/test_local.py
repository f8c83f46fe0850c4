"""The files of a local folder."""

from pathlib import Path

import pytest

from data2vec.console import progress as console
from data2vec.data.sources.local import list_files


def test_listing_a_folder_counts_files_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("b", "a", "more/c"):
        (tmp_path / "photos" / name).touch()
    assert list_files(tmp_path / "photos") == ["a", "b", "more/c"]
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "listing photos: 1 files, 00:00 elapsed" and printed[-1].startswith("listing photos: 3 files")
