"""FIF and BrainVision files, against what MNE wrote; without MNE only the error message."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data2vec.data.recordings.mne import MneRecording
from data2vec.data.recordings.recording import Event
from data2vec.errors import CorruptExample, UserError

VOLTS = 3e-5 * np.random.default_rng(0).standard_normal((3, 2000))


def test_without_mne_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mne", None)
    with pytest.raises(UserError, match=r"needs MNE: pip install 'data2vec\[mne\]'"):
        MneRecording(str(tmp_path / "a.fif"))


@pytest.fixture
def mne() -> Any:
    return pytest.importorskip("mne")


def write(mne: Any, path: Path, **options: Any) -> Path:
    """10 s of two electrodes, the second one bad, an ECG and a trigger channel; saved without the first second."""
    info = mne.create_info(["Fp1", "O2", "ECG", "STI 014"], 200.0, ["eeg", "eeg", "ecg", "stim"])
    raw = mne.io.RawArray(np.concatenate([VOLTS, np.zeros((1, 2000))]), info, verbose="ERROR")
    raw.set_meas_date(1e9).crop(1.0)
    raw.info["bads"] = ["O2"]
    raw.set_annotations(mne.Annotations([1.0, 4.0], [2.0, 0.5], ["Sleep stage W", "BAD_move"], orig_time=None))
    raw.save(path, verbose="ERROR", **options)
    return path


def test_fif_has_names_units_events_and_what_is_bad_is_missing(mne: Any, tmp_path: Path) -> None:
    found = MneRecording(str(write(mne, tmp_path / "a_raw.fif")))
    assert found.channels == ("Fp1", "O2", "ECG") and found.units == ("V", "V", "V")
    assert found.rates == (200.0, 200.0, 200.0) and found.seconds == 9 and found.bad == ("O2",)
    assert list(found.events) == [Event(1.0, 2.0, "Sleep stage W"), Event(4.0, 0.5, "BAD_move")]
    assert not found.raw.preload
    samples = found.read(0, 0, 1800)
    assert np.isnan(samples[800:900]).all() and np.isnan(samples).sum() == 100
    kept = ~np.isnan(samples)
    assert samples[kept] == pytest.approx(VOLTS[0, 200:][kept], abs=1e-11)
    assert np.isnan(found.read(1, 0, 100)).all()
    assert found.read(2, 1790, 1805)[:10] == pytest.approx(VOLTS[2, 1990:], abs=1e-11)
    assert np.isnan(found.read(2, 1790, 1805)[10:]).all()


def test_a_part_of_a_fif_recording_is_not_read_again(mne: Any, tmp_path: Path) -> None:
    write(mne, tmp_path / "a_raw.fif")
    (tmp_path / "a_raw-1.fif").write_bytes((tmp_path / "a_raw.fif").read_bytes())
    with pytest.raises(CorruptExample, match=r"a part of a_raw\.fif"):
        MneRecording(str(tmp_path / "a_raw-1.fif"))


def brainvision(folder: Path, data_file: str = "a.eeg") -> Path:
    """A header, and two channels of 100 Hz that count in steps of 0.5 µV."""
    folder.mkdir(exist_ok=True)
    np.arange(400, dtype="<i2").tofile(folder / "a.eeg")
    (folder / "a.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={data_file}\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\nSamplingInterval=10000\n\n"
        "[Binary Infos]\nBinaryFormat=INT_16\n\n[Channel Infos]\nCh1=Fp1,,0.5,µV\nCh2=O2,,0.5,µV\n",
        encoding="utf-8",
    )
    return folder / "a.vhdr"


def test_brainvision_is_in_volts(mne: Any, tmp_path: Path) -> None:
    found = MneRecording(str(brainvision(tmp_path)))
    assert found.channels == ("Fp1", "O2") and found.units == ("V", "V") and found.seconds == 2
    assert found.read(1, 10, 13) * 1e6 == pytest.approx([10.5, 11.5, 12.5])


def test_samples_outside_the_folder_are_refused(mne: Any, tmp_path: Path) -> None:
    brainvision(tmp_path / "other")
    with pytest.raises(CorruptExample, match="not in its folder"):
        MneRecording(str(brainvision(tmp_path / "one", "../other/a.eeg")))
