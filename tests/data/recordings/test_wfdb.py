from pathlib import Path

import numpy as np
import pytest

from data2vec.data.recordings.wfdb import WfdbRecording
from data2vec.errors import CorruptExample

SAMPLES = np.array([[100, -50], [200, 0], [-32768, 25]], np.int16)


def write(folder: Path, *signals: str, first: str = "a 2 500 3", content: bytes = SAMPLES.tobytes()) -> str:
    (folder / "a.dat").write_bytes(content)
    lines = signals or ("a.dat 16 1000(0)/mV 16 0 100 0 0 I", "a.dat 16 200(-50)/mV 16 0 -50 0 0 II ring")
    (folder / "a.hea").write_text("\n".join([first, "# a comment", *lines, "# Age: 60"]) + "\n")
    return str(folder / "a.hea")


def test_interleaved_samples_are_physical_and_the_missing_ones_nan(tmp_path: Path) -> None:
    found = WfdbRecording(write(tmp_path))
    assert (found.channels, found.units, found.rates) == (("I", "II ring"), ("mV", "mV"), (500, 500))
    assert np.array_equal(found.read(0, 0, 3), [0.1, 0.2, np.nan], equal_nan=True)
    assert found.read(1, 1, 3).tolist() == [0.25, 0.375] and found.seconds == 3 / 500


def test_other_formats_give_the_same(tmp_path: Path) -> None:
    wide = SAMPLES.astype(np.int32)
    wide[2, 0] = 7
    for form, content in (
        (32, wide.astype("<i4").tobytes()),
        (24, wide.astype("<i4").view(np.uint8).reshape(3, 2, 4)[..., :3].tobytes()),
        ("16+24", bytes(24) + wide.astype("<i2").tobytes()),
    ):
        lines = [f"a.dat {form} 1/mV 16 0 0 0 0 {name}" for name in "xy"]
        found = WfdbRecording(write(tmp_path, *lines, content=content))
        assert np.stack([found.read(index, 0, 3) for index in (0, 1)], 1).tolist() == wide.tolist()


def test_format_212_packs_two_samples_in_three_bytes(tmp_path: Path) -> None:
    # 1, -1 and 995, -1025: low byte, high nibbles, low byte
    content = bytes([0x01, 0xF0, 0xFF, 0xE3, 0xB3, 0xFF])
    found = WfdbRecording(write(tmp_path, *["a.dat 212 1/mV 12 0 0 0 0 x"] * 2, first="a 2 360 2", content=content))
    assert [found.read(0, 0, 2).tolist(), found.read(1, 0, 2).tolist()] == [[1, 995], [-1, -1025]]


def test_last_of_an_odd_number_of_samples_in_format_212_has_two_bytes(tmp_path: Path) -> None:
    content = bytes([0x01, 0xF0, 0xFF, 0xE3, 0x03])  # 1, -1 and 995
    found = WfdbRecording(write(tmp_path, "a.dat 212 1/mV 12 0 0 0 0 x", first="a 1 360 3", content=content))
    assert found.read(0, 0, 3).tolist() == [1, -1, 995]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (("../a.dat 16 1/mV",) * 2, {}, "not in its folder"),
        (("/etc/passwd 16 1/mV",) * 2, {}, "not in its folder"),
        (("a.dat 8 1/mV",) * 2, {}, "WFDB format '8'; these are read: 16, 24, 32, 212"),
        (("a.dat 16:3 1/mV",) * 2, {}, "without skew"),
        ((), {"first": "a/3 2 500 3"}, "several segments"),
        ((), {"first": "a 9 500 3"}, "9 signals with 2 lines"),
        ((), {"first": "a 2 500 99"}, "truncated, only 3 of 99 samples"),
        ((), {"first": "a many 500"}, "number of signals is 'many'"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, lines: tuple[str, ...], options: dict[str, str], message: str) -> None:
    with pytest.raises(CorruptExample, match=message):
        WfdbRecording(write(tmp_path, *lines, **options))


def test_samples_behind_a_link_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "b.dat").write_bytes(SAMPLES.tobytes())
    (tmp_path / "a.dat").unlink()
    (tmp_path / "a.dat").symlink_to(tmp_path / "b.dat")
    with pytest.raises(CorruptExample, match="a link; copy the file"):
        WfdbRecording(path)
