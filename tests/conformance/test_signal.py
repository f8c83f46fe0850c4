"""The signal modality keeps the contract, with recordings of different lengths and gaps."""

from pathlib import Path

import numpy as np
import pytest

import data2vec
from helpers.recordings import waves, write_npz


@pytest.mark.parametrize("layout", ["joint", "grid"])
def test_signals_keep_the_contract_of_modalities(tmp_path: Path, layout: str) -> None:
    rows = ["file_name,label"]
    for index in range(16):
        array = waves(6 + index % 3, seed=index)
        array[30:90, : index % 4] = np.nan
        write_npz(tmp_path / f"{index}.npz", array)
        rows.append(f"{index}.npz,{'ab'[index % 2]}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    settings = {"modality.layout": layout, "modality.patch": 20, "modality.window_seconds": 2.0, "data.batch_size": 8}
    found = data2vec.check_modality("signal", str(tmp_path), overrides=settings)
    assert not [each for each in found.results if each.status == "failed"], str(found)
