from pathlib import Path

import numpy as np
import pytest

from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.recording import Description, Recording
from data2vec.errors import CorruptExample


def table(path: Path, text: str, **known: object) -> Recording:
    path.write_text(text)
    return open_recording({"path": str(path)}, Description(**known))


def test_csv_has_channels_by_header_and_its_rate_by_the_column_of_times(tmp_path: Path) -> None:
    found = table(tmp_path / "a.csv", "time,ax,ay\n0.00,1,2\n0.02,3,\n0.04,5,6\n")
    assert (found.channels, found.rates, found.seconds) == (("ax", "ay"), (50.0, 50.0), pytest.approx(0.06))
    assert np.array_equal(found.read(1, 0, 3), [2, np.nan, 6], equal_nan=True)


def test_columns_of_labels_and_texts_are_no_channels(tmp_path: Path) -> None:
    found = table(tmp_path / "a.csv", "ax,label,note\n1,0,still\n2,1,moved\n", rate=10.0)
    assert found.channels == ("ax",)


def test_y_is_a_channel_beside_x_and_else_a_label(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", "x,y,z\n1,2,3\n4,5,6\n", rate=10.0).channels == ("x", "y", "z")
    assert table(tmp_path / "b.csv", "ax,y\n1,0\n2,1\n", rate=10.0).channels == ("ax",)


def test_second_columns_of_times_and_those_in_other_units_are_no_channels(tmp_path: Path) -> None:
    found = table(tmp_path / "a.csv", "timestamp,time_ms,ax\n0.00,0,1\n0.02,20,2\n0.04,40,3\n")
    assert found.channels == ("ax",) and found.rates == (50.0,)
    assert table(tmp_path / "b.csv", "time_min,timely,ax\n0,1,1\n1,2,2\n", rate=5.0).channels == ("timely", "ax")


def test_missing_rows_are_a_gap_of_nan(tmp_path: Path) -> None:
    found = table(tmp_path / "a.tsv", "t\tax\n0.0\t1\n0.1\t2\n0.2\t3\n0.5\t6\n0.6\t7\n")
    assert np.array_equal(found.read(0, 0, 7), [1, 2, 3, np.nan, np.nan, 6, 7], equal_nan=True)


def test_dates_are_times(tmp_path: Path) -> None:
    rows = "\n".join(f"2024-01-31 12:00:0{second},{second}" for second in range(5))
    assert table(tmp_path / "a.csv", f"timestamp,hr\n{rows}\n").rates == (1.0,)


def test_file_without_header_has_numbered_channels(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", "0.5,1.5\n1.5,2.5\n", rate=5.0).channels == ("ch1", "ch2")
    assert table(tmp_path / "a.csv", "1,2\n1.5,2.5\n", rate=5.0).channels == ("1", "2")


@pytest.mark.parametrize(
    ("column", "known", "rate"),
    [
        ("time", {"time_unit": "ms"}, 50.0),
        ("time_ms", {}, 50.0),
        ("Time [ms]", {}, 50.0),
        ("milliseconds", {}, 50.0),
        ("time (s)", {}, 0.05),
        ("time_ms", {"time_unit": "us"}, 50e3),
    ],
)
def test_times_have_the_unit_that_is_set_or_in_their_name(
    tmp_path: Path, column: str, known: dict[str, object], rate: float
) -> None:
    found = table(tmp_path / "a.csv", f"{column},ax\n0.0,1\n20.0,2\n40.0,3\n", **known)
    assert found.channels == ("ax",) and found.rates == (pytest.approx(rate),)


def test_columns_named_like_a_letter_are_channels(tmp_path: Path) -> None:
    assert table(tmp_path / "a.csv", "x,s2,u\n1,2,3\n4,5,6\n", rate=1.0).channels == ("x", "s2", "u")


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("ax\n1\n2\n", {}, "sampling rate is not in the file"),
        ("time,ax\n0,1\n0.1,2\n0.1,3\n", {}, "column time does not increase, as in row 3"),
        ("time,ax\n0,1\n0.1,2\n0.25,3\n0.31,4\n0.47,5\n", {}, "column time is irregular"),
        ("time,ax\n1000,1\n1020,2\n1040,3\n", {}, "increases by 20: 0.05 Hz if these are seconds, 50 Hz if they are milli"),
        ("time,ax\n0.0,1\n0.5,2\n1.0,3\n", {}, "increases by 0.5: 2 Hz if these are seconds, 2000 Hz if they are milli"),
        ("time,ax\n0.0,1\n0.1,2\n0.2,3\n", {"rate": 50.0}, "by its column of times 10 samples per second, but 50"),
        ("time,ax\n0.0,1\n0.1,2\n0.2,3\n0.3,3\n1e9,3\n", {}, "gaps are"),
        ("note\nhello\n", {"rate": 1.0}, "no column of numbers among note"),
        ("ax,ay\n1\n", {"rate": 1.0}, "Expected 2 columns, got 1"),
        ("ax\n1\n", {"rate": 1.0, "time_column": "clock"}, "no column 'clock' .data.time_column., only ax"),
    ],
)
def test_unusable_table_is_refused_with_the_reason(tmp_path: Path, text: str, known: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptExample, match=message):
        table(tmp_path / "a.csv", text, **known)
