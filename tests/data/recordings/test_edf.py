"""EDF and BDF files, against those that edfio writes and what it reads of them."""

from pathlib import Path

import edfio
import numpy as np
import pytest

from data2vec.data.recordings.edf import EdfRecording
from data2vec.data.recordings.recording import Event
from data2vec.errors import CorruptExample

RNG = np.random.default_rng(0)
EEG, RESP = 40 * RNG.standard_normal(256 * 10), RNG.standard_normal(32 * 10)


def write(path: Path, bdf: bool = False, annotations: tuple[edfio.EdfAnnotation, ...] = ()) -> Path:
    kind = edfio.BdfSignal if bdf else edfio.EdfSignal
    signals = [
        kind(EEG, 256, label="EEG Fp1-REF", physical_dimension="uV", physical_range=(-300, 300)),
        kind(RESP, 32, label="Resp", physical_dimension="L", physical_range=(-5, 5)),
    ]
    (edfio.Bdf if bdf else edfio.Edf)(signals, annotations=annotations).write(path)
    return path


@pytest.mark.parametrize("bdf", [False, True])
def test_signals_equal_those_of_another_reader_in_any_span(tmp_path: Path, bdf: bool) -> None:
    path = write(tmp_path / f"a.{'bdf' if bdf else 'edf'}", bdf)
    found, other = EdfRecording(str(path)), (edfio.read_bdf if bdf else edfio.read_edf)(path)
    assert found.channels == ("EEG Fp1-REF", "Resp") and found.units == ("uV", "L")
    assert found.rates == (256, 32) and found.seconds == 10
    for channel, signal in enumerate(other.signals):
        for first, last in ((0, len(signal.data)), (100, 101), (250, 530), (0, 1)):
            expected = signal.data[first:last]
            assert found.read(channel, first, last)[: len(expected)] == pytest.approx(expected, abs=1e-9)
    assert found.read(0, 0, 2560) == pytest.approx(EEG, abs=600 / 2**16 if not bdf else 600 / 2**24)
    assert np.isnan(found.read(1, 318, 325)[2:]).all()  # behind the end


def test_annotations_are_events_in_seconds(tmp_path: Path) -> None:
    marks = (edfio.EdfAnnotation(0, 3, "Sleep stage W"), edfio.EdfAnnotation(3.5, None, "arousal"))
    found = EdfRecording(str(write(tmp_path / "a.edf", annotations=marks)))
    assert list(found.events) == [Event(0, 3, "Sleep stage W"), Event(3.5, 0, "arousal")]
    assert found.channels == ("EEG Fp1-REF", "Resp")


def discontinuous(path: Path) -> Path:
    """A file of three records of 1 s, at 0, 1 and 5 s, of one signal of 4 Hz that counts."""
    label = [b"ecg".ljust(16), b"EDF Annotations".ljust(16)]
    fields = [
        label, [b" " * 80] * 2, [b"mV".ljust(8), b" " * 8], [b"-32768".ljust(8)] * 2, [b"32767".ljust(8)] * 2,
        [b"-32768".ljust(8)] * 2, [b"32767".ljust(8)] * 2, [b" " * 80] * 2, [b"4".ljust(8), b"8".ljust(8)], [b" " * 32] * 2,
    ]  # fmt: skip
    head = b"0".ljust(8) + b" " * 160 + b"01.01.2000.00.00" + b"768".ljust(8) + b"EDF+D".ljust(44)
    head += b"3".ljust(8) + b"1".ljust(8) + b"2".ljust(4)
    records = b""
    for record, second in enumerate((0, 1, 5)):
        records += np.arange(4 * record, 4 * record + 4, dtype="<i2").tobytes() + f"+{second}\x14\x14\0".encode().ljust(
            16, b"\0"
        )
    path.write_bytes(head + b"".join(b"".join(column) for column in fields) + records)
    return path


def test_gap_between_records_is_nan(tmp_path: Path) -> None:
    found = EdfRecording(str(discontinuous(tmp_path / "a.edf")))
    samples = found.read(0, 0, 24)
    assert found.seconds == 6 and samples[:8].tolist() == list(range(8)) and samples[20:].tolist() == [8, 9, 10, 11]
    assert np.isnan(samples[8:20]).all() and np.isnan(found.read(0, 9, 19)).all()
    assert found.read(0, 6, 22)[[0, 1, 14, 15]].tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:200], "shorter than a header"),
        (lambda content: content[:-500], "truncated, only 9 of 10 data records"),
        (lambda content: content[:252] + b"9999" + content[256:], "no EDF file: 9999 signals"),
        (lambda content: content[:252] + b"abc " + content[256:], "no EDF file: signals is 'abc' in its header"),
        (lambda content: content[:236] + b"1e999   " + content[244:], "no EDF file: data records is '1e999'"),
        (lambda content: content[:244] + b"0       " + content[252:], "data records of 0 s"),
        (lambda content: content[:700], "no EDF file: "),
    ],
)
def test_damaged_file_is_refused_with_the_reason(tmp_path: Path, change: object, message: str) -> None:
    path = write(tmp_path / "a.edf")
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CorruptExample, match=message):
        EdfRecording(str(path))


def test_channel_without_digital_range_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf")
    content = bytearray(path.read_bytes())
    count = int(content[252:256])
    high = 256 + count * (16 + 80 + 8 + 8 + 8 + 8)  # digital maximum, behind the minimum
    content[high : high + 8] = content[high - 8 * count : high - 8 * count + 8]
    path.write_bytes(content)
    found = EdfRecording(str(path))
    assert np.isfinite(found.read(1, 0, 10)).all()
    with pytest.raises(CorruptExample, match="EEG Fp1-REF has no digital range"):
        found.read(0, 0, 10)
