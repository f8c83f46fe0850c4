import io
import sys

import pytest
from tqdm import tqdm

from data2vec.console import progress as module
from data2vec.console.progress import labelled, progress, say, set_level


@pytest.fixture(autouse=True)
def level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setitem(module._shown, "level", "info")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_progress_is_whole_lines_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "reading", unit="clip")) == [0, 1, 2]
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert printed.splitlines()[0].startswith("reading: 1 of 3 clips, 00:00 elapsed, ")
    assert printed.splitlines()[0].endswith(" left")


def test_without_a_terminal_what_is_written_beside_progress_draws_nothing_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 30.0)
    with progress(desc="predict", total=3, unit="input") as bar:
        for number in range(3):
            tqdm.write(f"row {number}", sys.stdout)
            bar.update(1)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("row 0\nrow 1\nrow 2\n", "")


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(3), "reading", unit="clip")) == [0, 1, 2]
    assert "\rreading: " in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_notebook_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not module.has_bars()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert module.has_bars()


def test_at_level_warning_neither_progress_nor_status_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    set_level("warning")
    assert list(progress(range(3), "reading")) == [0, 1, 2]
    say("step 1")
    assert capsys.readouterr().err == ""
    set_level("info")
    say("step 2")
    assert capsys.readouterr().err == "step 2\n"


def test_lines_in_a_labelled_block_begin_with_the_label(capsys: pytest.CaptureFixture[str]) -> None:
    with labelled("train.lr=0.1, seed 2"):
        say("step 1\nstep 2")
    say("done")
    assert capsys.readouterr().err == "train.lr=0.1, seed 2: step 1\ntrain.lr=0.1, seed 2: step 2\ndone\n"


def test_progress_of_an_unknown_number_counts_without_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "listing photos", unit="file")) == ["a", "b", "c"]
    assert list(progress(iter("abc"), "features", unit="batch")) == ["a", "b", "c"]
    printed = capsys.readouterr().err.splitlines()
    assert (printed[0], printed[-1]) == ("listing photos: 1 files, 00:00 elapsed", "features: 3 batches, 00:00 elapsed")
