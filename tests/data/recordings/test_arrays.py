from pathlib import Path

import numpy as np
import pytest

from data2vec.data.recordings.open import list_entries, open_recording
from data2vec.data.recordings.recording import Description
from data2vec.errors import CorruptExample
from helpers.recordings import waves, write_npz


def read(path: Path, entry: str | None = None, **known: object) -> tuple[np.ndarray, tuple[str, ...]]:
    recording = open_recording({"path": str(path), "entry": entry}, Description(**known))
    columns = [recording.read(index, 0, recording.samples(index)) for index in range(len(recording.channels))]
    return np.stack(columns, axis=1), recording.channels


def test_npz_names_its_channels_rate_and_time_axis(tmp_path: Path) -> None:
    array = waves(2)
    for stored in (array, array.T):
        samples, names = read(write_npz(tmp_path / "a.npz", stored))
        assert np.array_equal(samples, array) and names == ("ax", "ay", "az")


def test_time_axis_of_an_array_without_names_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(2))
    with pytest.raises(CorruptExample, match=r"\(100, 3\), whose time axis is unknown: set data.time_axis to first"):
        read(tmp_path / "a.npy", rate=50.0)
    samples, names = read(tmp_path / "a.npy", rate=50.0, time_axis="first")
    assert samples.shape == (100, 3) and names == ("ch1", "ch2", "ch3")
    assert read(tmp_path / "a.npy", rate=50.0, time_axis="last")[0].shape == (3, 100)


def test_number_of_known_channels_decides_the_time_axis_unless_both_axes_have_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(2).T)
    assert read(tmp_path / "a.npy", rate=50.0, known=3)[0].shape == (100, 3)
    np.save(tmp_path / "b.npy", np.zeros((3, 3)))
    with pytest.raises(CorruptExample, match="time axis is unknown"):
        read(tmp_path / "b.npy", rate=50.0, known=3)


def test_rate_that_nobody_says_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", waves(2))
    with pytest.raises(CorruptExample, match=r"sampling rate is not in the file; set data.rate"):
        read(tmp_path / "a.npy", time_axis="first")


def test_rate_of_a_file_counts_before_that_of_the_settings(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", waves(2, rate=100.0), rate=100.0)
    assert open_recording({"path": str(path)}, Description(rate=50.0)).rates == (100.0,) * 3


def test_array_of_three_axes_is_several_recordings_with_their_labels(tmp_path: Path) -> None:
    array = np.stack([waves(1, seed=0), waves(1, seed=1)])
    write_npz(tmp_path / "a.npz", array, y=np.array(["rest", "move"]))
    assert list_entries(str(tmp_path / "a.npz"), Description()) == (["0", "1"], {"y": ["rest", "move"]})
    assert np.array_equal(read(tmp_path / "a.npz", "1")[0], array[1])


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(CorruptExample, match="pickled Python objects, which are never loaded"):
            read(tmp_path / name)


def test_array_that_claims_more_than_the_file_holds_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 8), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(CorruptExample, match="an array of 64000000000000 bytes"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((9, 2)), "b": np.zeros((9, 2))}, "which is the signal. Set data.array"),
        ({"x": np.zeros((9, 2)), "channels": np.array(["a", "b", "c"]), "fs": 1.0}, "time axis is unknown"),
        ({"x": np.array([["a", "b"]])}, "it must hold numbers"),
        ({"x": np.zeros((0, 2)), "channels": np.array(["a", "b"]), "fs": 1.0}, "no samples"),
        ({"x": np.zeros((9, 2)), "channels": np.array(["a", "b"]), "fs": -1.0}, "sampling rate of -1.0 Hz"),
    ],
)
def test_unusable_npz_is_refused_with_the_reason(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CorruptExample, match=message):
        read(tmp_path / "a.npz")
