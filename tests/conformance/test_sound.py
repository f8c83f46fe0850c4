"""The modality of sound keeps the contract, with clips of different lengths."""

from pathlib import Path

import numpy as np
import soundfile

import data2vec


def test_sound_keeps_the_contract_of_modalities(tmp_path: Path) -> None:
    rows = ["file_name,label"]
    for index in range(16):
        wave = 0.1 * np.random.default_rng(index).standard_normal(8000 + 2000 * (index % 4))
        soundfile.write(tmp_path / f"{index}.wav", wave, 16000)
        rows.append(f"{index}.wav,{'ab'[index % 2]}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    settings = {"data.batch_seconds": 4, "data.micro_batch_seconds": 4, "data.max_seconds": 2, "data.label": "label"}
    settings |= {"modality.mean": -5.0, "modality.std": 2.0, "data.num_streams": 1}
    found = data2vec.check_modality("sound", str(tmp_path), overrides=settings)
    assert not [each for each in found.results if each.status == "failed"], str(found)
    assert [each.name for each in found.results if each.status == "skipped"] == ["chunks"], str(found)
