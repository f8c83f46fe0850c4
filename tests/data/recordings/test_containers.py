"""Parquet and HDF5 files, which may hold several recordings."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data2vec.data.recordings.open import list_entries, open_recording
from data2vec.data.recordings.recording import Description, Recording
from data2vec.errors import CorruptExample
from helpers.recordings import signals, waves


def opened(path: Path, entry: str | None = None, **known: object) -> Recording:
    return open_recording({"path": str(path), "entry": entry}, Description(**known))


def test_parquet_with_a_row_a_sample_is_one_recording(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"time": [0.0, 0.1, 0.2], "ax": [1, 2, 3], "label": [0, 0, 1]}), tmp_path / "a.parquet")
    found = opened(tmp_path / "a.parquet")
    assert (found.channels, found.rates) == (("ax",), (10.0,)) and list_entries(str(tmp_path / "a.parquet"), Description()) == (
        [None],
        {},
    )


def test_parquet_with_lists_has_a_recording_in_each_row(tmp_path: Path) -> None:
    columns = {"ax": [[1.0, 2.0], [3.0, 4.0, 5.0]], "ay": [[0.0, 0.0], [6.0, 7.0, 8.0]], "fs": [50, 25], "label": ["a", "b"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1)
    entries, about = list_entries(str(tmp_path / "a.parquet"), Description())
    assert entries == ["0", "1"] and about["label"] == ["a", "b"]
    found = opened(tmp_path / "a.parquet", "1")
    assert (found.channels, found.rates[0], found.read(1, 1, 3).tolist()) == (("ax", "ay"), 25, [7, 8])


def test_parquet_with_lists_of_lists_needs_names_and_a_time_axis(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"x": [waves(1).T.tolist()]}), tmp_path / "a.parquet")
    with pytest.raises(CorruptExample, match="time axis is unknown"):
        opened(tmp_path / "a.parquet", "0", rate=50.0)
    found = opened(tmp_path / "a.parquet", "0", rate=50.0, channels=("ax", "ay", "az"))
    assert found.read(2, 0, 50) == pytest.approx(waves(1)[:, 2])


def test_broken_parquet_and_unequal_channels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CorruptExample, match="not a complete parquet file"):
        opened(tmp_path / "a.parquet", "0")
    parquet.write_table(pa.table({"ax": [[1.0]], "ay": [[1.0, 2.0]]}), tmp_path / "b.parquet")
    with pytest.raises(CorruptExample, match="channels of different lengths"):
        opened(tmp_path / "b.parquet", "0", rate=1.0)


def test_hdf5_with_a_group_a_recording_has_rate_and_names_in_attributes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("s1", "s2"):
            stored = file.create_dataset(f"{name}/eeg", data=waves(2).T)
            stored.attrs["rsFreq"], stored.attrs["chOrder"] = 50, ["Fp1", "Fp2", "Cz"]
    assert list_entries(str(tmp_path / "a.h5"), Description())[0] == ["s1/eeg", "s2/eeg"]
    found = opened(tmp_path / "a.h5", "s2/eeg")
    assert (found.channels, found.rates[0]) == (("Fp1", "Fp2", "Cz"), 50) and found.read(2, 0, 100) == pytest.approx(
        waves(2)[:, 2]
    )


def test_hdf5_array_of_three_axes_is_rows_with_the_other_arrays_as_columns(tmp_path: Path) -> None:
    tracings = np.stack([waves(8, seed=seed) for seed in range(3)])
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["tracings"], file["exam_id"], file["diagnosis"] = tracings, [7, 8, 9], ["a", "b", "a"]
    modality = signals({"rate": 50.0, "time_axis": "first", "channels": ("ax", "ay", "az")})
    rows = modality.rows(str(tmp_path))
    assert rows["exam_id"][:] == [7, 8, 9] and rows["diagnosis"][:] == ["a", "b", "a"]
    assert modality.labelled(rows).load(2, None, None).numpy() == pytest.approx(tracings[1, :200], rel=1e-4)


def test_hdf5_that_points_to_other_files_or_is_unclear_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(800))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (50, 2), "f8", external=[(str(tmp_path / "secret"), 0, 800)])
    with pytest.raises(CorruptExample, match="stored in other files"):
        opened(tmp_path / "a.h5", rate=1.0, time_axis="first")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["y"] = waves(1), waves(1)
    with pytest.raises(CorruptExample, match="data sets x, y: which is the signal"):
        opened(tmp_path / "b.h5", rate=1.0, time_axis="first")
    assert opened(tmp_path / "b.h5", array="y", rate=1.0, time_axis="first").seconds == 50
    (tmp_path / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CorruptExample, match="not a complete HDF5 file"):
        opened(tmp_path / "c.h5")
