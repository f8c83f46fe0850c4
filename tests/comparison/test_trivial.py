from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from data2vec.comparison.evaluations import FinetuneEvaluation, ProbeEvaluation, TokenEvaluation
from data2vec.comparison.settings import load_comparison
from data2vec.comparison.trivial import evaluated_modality, image_histograms, log_mel_statistics, trivial_baselines
from data2vec.recipe.loading import load_recipe

SPEECH, VISION, TEXT, VIDEO = (
    load_recipe(f"{name}/v2-tiny").build_modality() for name in ("speech", "vision", "text", "video")
)
PARTS = {"train": [0, 0.5], "dev": [0.5, 0.75], "test": [0.75, 1]}


def sets(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"data": str(data), "part": part} for name, part in PARTS.items()}
    return {**found, "test": {"test": found["test"]}}


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, hertz in (("low", 300), ("high", 2000)):
        (tmp_path / "tones" / name).mkdir(parents=True)
        for i in range(8):
            wave = np.sin(np.arange(8000) * 2 * np.pi * hertz / 16000) + 0.1 * rng.standard_normal(8000)
            soundfile.write(tmp_path / "tones" / name / f"{i}.wav", 0.3 * wave, 16000)
    return tmp_path / "tones"


def test_log_mel_statistics_separate_tones_and_the_majority_class_does_not(tones: Path) -> None:
    found = trivial_baselines(ProbeEvaluation.model_validate({**sets(tones), "knn_k": 3}), SPEECH, 1)
    assert found.keys() == {"majority class", "log-mel statistics"}
    assert found["log-mel statistics"].test == {"test": {"linear accuracy": 1.0, "kNN accuracy": 1.0}}
    assert found["majority class"].test == {"test": {"linear accuracy": 0.5}}


def test_baselines_of_fine_tuning_have_its_metric(tones: Path) -> None:
    found = trivial_baselines(FinetuneEvaluation(recipe="speech/classify-tiny", fraction=0.5, **sets(tones)), SPEECH, 1)
    assert found["log-mel statistics"].dev == {"accuracy": 1.0}
    assert found["log-mel statistics"].details["examples"]["train"] == 4


def test_recognition_has_no_trivial_baselines(tones: Path) -> None:
    assert trivial_baselines(FinetuneEvaluation(recipe="speech/ctc-tiny", **sets(tones)), SPEECH, 1) == {}


def test_token_readout_has_no_trivial_baselines() -> None:
    assert trivial_baselines(TokenEvaluation.model_validate({"train": "a", "dev": "b", "test": {"test": "c"}}), TEXT, 1) == {}


def test_log_mel_statistics_find_the_band_of_a_tone() -> None:
    low, high = (log_mel_statistics(np.sin(np.arange(16000) * 2 * np.pi * f / 16000)) for f in (300, 3000))
    assert low[:40].argmax() < high[:40].argmax()
    assert low.shape == (80,)


def test_image_histograms_tell_colours_and_orientations_apart() -> None:
    red, stripes = np.zeros((3, 32, 32), np.uint8), np.zeros((3, 32, 32), np.uint8)
    red[0] = 255
    stripes[:, ::4] = 255
    assert image_histograms(red)[48] == 1.0
    rows, columns = (image_histograms(x)[64:].reshape(16, 9).sum(0).argmax() for x in (stripes, stripes.transpose(0, 2, 1)))
    assert rows != columns


def test_images_are_classified_by_histograms_and_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, axis in (("across", 0), ("down", 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            wave = 127 + 100 * np.sin(np.arange(32) * 1.2 + rng.uniform(0, 6))
            pixels = np.broadcast_to(wave[:, None] if axis else wave[None], (32, 32)) + rng.normal(0, 5, (32, 32))
            Image.fromarray(np.repeat(pixels.clip(0, 255).astype(np.uint8)[..., None], 3, 2)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    found = trivial_baselines(ProbeEvaluation.model_validate(sets(tmp_path / "data")), VISION, 1)
    assert found["colour and gradient histograms"].test["test"]["linear accuracy"] == 1.0
    assert found["k-means patches"].test["test"]["linear accuracy"] == 1.0


def test_tf_idf_finds_the_word_that_decides(tmp_path: Path) -> None:
    nouns = ("cat", "dog", "sun", "sea", "tree", "house")
    lines = [f"the {noun} is {word}\t{word == 'good'}" for noun in nouns for word in ("good", "bad")]
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    found = trivial_baselines(ProbeEvaluation.model_validate(sets(tmp_path / "data.tsv")), TEXT, 1)
    assert found["tf-idf"].test["test"]["linear accuracy"] == 1.0


def test_videos_have_the_majority_class_alone(tmp_path: Path) -> None:
    for name in ("still", "moving"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(8):
            np.save(tmp_path / "clips" / name / f"{i}.npy", np.full((8, 32, 32, 3), i, np.uint8))
    found = trivial_baselines(ProbeEvaluation.model_validate(sets(tmp_path / "clips")), VIDEO, 1)
    assert {name: scores.test for name, scores in found.items()} == {"majority class": {"test": {"linear accuracy": 0.5}}}


def test_recordings_whose_channels_are_measured_have_the_majority_class_alone(tmp_path: Path) -> None:
    (folder := tmp_path / "recordings").mkdir()
    rows = [f"{i / 50},{i % 7}" for i in range(400)]
    for i in range(8):
        (folder / f"{i}.csv").write_text("\n".join(["time,x", *rows]))
    labels = [f"{i}.csv,{'ab'[i % 2]}" for i in range(8)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *labels]))
    raw = {"recipe": "signal/v2-tiny", "budget": {"steps": 1}, "arms": {"a": {}}}
    raw |= {"evaluations": {"probe": {"kind": "probe", **sets(folder)}}}
    settings = load_comparison(raw)
    evaluation = settings.evaluations["probe"]
    found = trivial_baselines(evaluation, evaluated_modality(settings, evaluation), 1)
    assert {name: scores.test for name, scores in found.items()} == {"majority class": {"test": {"linear accuracy": 0.5}}}
