import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.speech import Speech
from data2vec.model import Model, load_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.dataset import ProbeSet, load_probe_sets
from data2vec.tasks.probing.features import pool_features
from data2vec.tasks.probing.probe import probe, untrained_encoder

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2, "data.workers": 0}


def model(name: str, overrides: Mapping[str, Any] = {}) -> Model:
    recipe = load_recipe(name, {**SMALL, "train.device": "cpu", **overrides})
    torch.manual_seed(99)
    return Model(build_encoder(recipe.build_modality(), recipe.encoder).eval(), recipe.build_modality(), recipe)


def pictures(folder: Path, colours: Mapping[str, tuple[int, int, int]], count: int, seed: int) -> Path:
    """Noisy pictures in the colour of their class."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


@pytest.fixture
def vision() -> Model:
    return model("vision/v1-tiny")


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    return pictures(tmp_path / "train", COLOURS, 8, 0), pictures(tmp_path / "valid", COLOURS, 4, 1)


def test_probe_of_separable_classes_is_accurate_in_every_layer(vision: Model, data: tuple[Path, Path]) -> None:
    found = probe(vision, *data)
    assert [row.layer for row in found.rows] == [1, 2]
    assert all(row.linear == row.knn == row.untrained_linear == 1.0 for row in found.rows)
    assert (found.train, found.valid, found.chance) == (24, 12, pytest.approx(1 / 3))
    assert found.classes == ["blue", "green", "red"]
    assert "33.3% for always predicting the most frequent class" in str(found)


@pytest.mark.parametrize(("metric", "constant"), [("balanced_accuracy", "33.3%"), ("kappa", "0"), ("auroc", "50.0%")])
def test_probe_reports_other_metrics_of_every_layer(vision: Model, data: tuple[Path, Path], metric: str, constant: str) -> None:
    """With twice as many examples of one class, so that a constant has another accuracy."""
    for path in sorted((data[1] / "red").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    found = probe(vision, *data, metric=metric)
    best = found.best("linear")
    assert found.metric == metric and best.linear == pytest.approx(found.scores[metric]) == 1
    assert f"{constant} for always predicting the most frequent class" in str(found)
    with pytest.raises(UserError, match=r"metric: 'f1' does not exist; use accuracy, balanced_accuracy"):
        probe(vision, *data, metric="f1")
    for colour in ("red", "green"):
        shutil.rmtree(data[1] / colour)
    if metric == "auroc":
        with pytest.raises(UserError, match=r"metric: auroc needs two classes, but all held-out examples are of 'blue'"):
            probe(vision, *data, metric=metric)


def test_probe_of_random_labels_is_at_chance(vision: Model, tmp_path: Path) -> None:
    grey = dict.fromkeys(COLOURS, (128, 128, 128))
    found = probe(vision, pictures(tmp_path / "a", grey, 20, 0), pictures(tmp_path / "b", grey, 20, 1))
    assert max(row.linear for row in found.rows) < 0.6


def test_pooled_features_of_long_recordings_equal_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 2 s; also of a shorter recording of the same batch."""
    monkeypatch.setattr(Speech.chunks, "__defaults__", (2.0, 1.0))
    this, rng = model("speech/v1-tiny", {"data.micro_batch_seconds": 60.0}), np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(size).astype(np.float32) for size in (80000, 79000, 30000)]
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.wav", wave, 16000, subtype="FLOAT")
    rows = [{"audio": {"bytes": None, "path": str(tmp_path / f"{i}.wav")}, "label": "a"} for i in range(3)]
    examples = this.modality.labelled(rows)
    probe_set = ProbeSet("probe.data", examples, np.arange(3), np.array(["a"] * 3))
    vectors, _ = pool_features([this.encoder], this.modality, probe_set, Process(torch.device("cpu")))
    expected = this.features(waves, "all", pool=True).hidden
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


def test_best_returns_the_layer_with_the_highest_score(vision: Model, data: tuple[Path, Path]) -> None:
    found = probe(vision, *data)
    assert found.best("linear").linear == max(row.linear for row in found.rows)


def test_untrained_encoder_has_the_initial_weights_of_a_run(tmp_path: Path) -> None:
    from data2vec.distributed import process_group
    from data2vec.train.pretrain import PretrainTask

    folder = pictures(tmp_path / "data", COLOURS, 3, 0)
    overrides = {**SMALL, "data.train": str(folder), "data.batch_size": 4, "data.micro_batch_size": 4, "train.device": "cpu"}
    recipe = load_recipe("vision/v1-tiny", {**overrides, "train.seed": 7})
    with process_group("cpu") as process:
        start = PretrainTask(recipe, process).objective.student.state_dict()
    before = torch.random.get_rng_state()
    for name, weight in untrained_encoder(recipe).state_dict().items():
        assert torch.equal(weight, start[name]), name
    assert torch.equal(torch.random.get_rng_state(), before)


def test_probe_writes_its_result_beside_the_model(vision: Model, data: tuple[Path, Path], tmp_path: Path) -> None:
    vision.save_pretrained(tmp_path / "model")
    found = probe(tmp_path / "model", overrides={"probe.data": str(data[0]), "probe.valid": str(data[1])})
    written = json.loads((tmp_path / "model" / "probe.json").read_text())
    assert written["rows"][1]["knn"] == found.rows[1].knn
    assert load_model_folder(tmp_path / "model").recipe == vision.recipe


def test_max_examples_limits_training_and_validation_sets(vision: Model, data: tuple[Path, Path]) -> None:
    found = probe(vision, *data, overrides={"probe.max_examples": 15})
    assert (found.train, found.valid) == (15, 12)
    found = probe(vision, *data, overrides={"probe.max_examples": 10})
    assert (found.train, found.valid) == (10, 10)


def test_probe_without_validation_data_holds_out_a_fifth_of_each_class(vision: Model, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", COLOURS, 10, 0)
    (folder / "red" / "0.png").unlink()
    recipe = load_recipe(vision.recipe, {"probe.data": str(folder)})
    fit, held = load_probe_sets(vision.modality, recipe.probe, 3)
    assert np.unique(held.classes, return_counts=True)[1].tolist() == [2, 2, 2]
    assert sorted([*fit.indices, *held.indices]) == list(range(29))
    again, other = (load_probe_sets(vision.modality, recipe.probe, seed)[1] for seed in (3, 4))
    assert held.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    assert held.classes.tolist() == [held.examples.label(int(i), "label") for i in held.indices]
    found = probe(vision, folder)
    assert (found.train, found.valid) == (23, 6)


def test_probe_data_argument_replaces_both_sets_of_the_recipe(vision: Model, data: tuple[Path, Path]) -> None:
    overrides = {"probe.data": "nowhere", "probe.valid": str(data[1])}
    assert probe(vision, data[0], overrides=overrides).valid == 5
    assert probe(vision, *data, overrides=overrides).valid == 12


def test_probe_drops_unreadable_files_and_their_labels(vision: Model, data: tuple[Path, Path]) -> None:
    for name in COLOURS:
        (data[0] / name / "3.png").write_bytes(b"no picture")
    (data[1] / "red" / "0.png").write_bytes(b"no picture")
    found = probe(vision, *data)
    assert (found.train, found.valid) == (21, 11)
    assert found.rows[0].linear == 1.0


def test_probe_without_readable_files_raises(vision: Model, data: tuple[Path, Path]) -> None:
    for path in data[1].rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"probe\.valid: none of the 12 examples can be decoded"):
        probe(vision, *data)


def test_probe_label_selects_a_column_of_a_table(vision: Model, data: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in data:
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
        rows = [f"{name},{name.split('/')[0]},{i / 7}" for i, name in enumerate(files)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,shade,weight", *rows]))
    assert probe(vision, *data, overrides={"probe.label": "shade"}).classes == ["blue", "green", "red"]
    with pytest.raises(UserError, match=r"probe\.label: there is no column 'label' .* shade"):
        probe(vision, *data)
    with pytest.raises(UserError, match=r"probe\.label: 'weight' .* not classes"):
        probe(vision, *data, overrides={"probe.label": "weight"})


def test_invalid_probe_labels_raise(vision: Model, data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"probe\.data: no labelled data"):
        probe(vision)
    shutil.rmtree(data[0] / "red")
    with pytest.raises(UserError, match=r"probe\.valid: label red is not among the 16 .* have blue, green"):
        probe(vision, *data)
    for path in sorted((data[0] / "green").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"probe\.data: cannot hold out a fifth of it .* set probe\.valid"):
        probe(vision, data[0])
    shutil.rmtree(data[0] / "green")
    with pytest.raises(UserError, match=r"every example has the label 'blue'; a probe needs at least two"):
        probe(vision, *data)


def test_non_finite_features_raise(vision: Model, data: tuple[Path, Path]) -> None:
    torch.nn.init.constant_(next(vision.encoder.transformer.parameters()), float("nan"))
    with pytest.raises(UserError, match="NaN or inf"):
        probe(vision, *data)


def test_pooled_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, seconds in enumerate((0.9, 0.3, 0.6, 0.31)):
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(0, 0.1, int(16000 * seconds)), 16000)
    speech = model("speech/v1-tiny")
    examples = speech.modality.labelled(speech.modality.rows(str(tmp_path)))
    labelled = ProbeSet("probe.data", examples, np.arange(4), np.array(list("abcd")))
    together, kept = pool_features([speech.encoder], speech.modality, labelled, Process(torch.device("cpu")))
    assert kept.indices.tolist() == [0, 1, 2, 3]
    for place in range(4):
        alone, one = pool_features(
            [speech.encoder], speech.modality, labelled.subset(np.array([place])), Process(torch.device("cpu"))
        )
        assert one.classes == ["abcd"[place]]
        np.testing.assert_allclose(together[:, :, place], alone[:, :, 0], atol=1e-4)


def test_texts_of_a_table_are_probed_as_separate_examples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {"fruit": ["apple", "pear", "plum", "grape"], "metal": ["iron", "zinc", "copper", "lead"]}
    texts = [(" ".join(rng.choice(words[kind], 6)), kind) for kind in words for _ in range(80)]
    rows = [f"{text}\t{kind}" for text, kind in texts]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tkind", *rows[::2]]))
    (tmp_path / "valid.tsv").write_text("\n".join(["text\tkind", *rows[1::2]]))
    tokenizer = train_tokenizer((text for text, _ in texts), 300)
    save_tokenizer(tokenizer, tmp_path)
    text = model("text/v1-tiny", {"modality.vocab_size": tokenizer.get_vocab_size(), "data.tokenizer": str(tmp_path)})
    found = probe(text, tmp_path / "train.tsv", tmp_path / "valid.tsv", {"probe.label": "kind"})
    assert (found.train, found.valid, found.chance) == (80, 80, 0.5)
    assert found.best("linear").linear > 0.9


def test_examples_without_a_label_are_left_out_and_counted(
    vision: Model, data: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted(data[0].rglob("*.png"))
    rows = "".join(f"{path.relative_to(data[0])},{path.parent.name if i else ''}\n" for i, path in enumerate(files))
    (data[0] / "metadata.csv").write_text(f"file_name,label\n{rows}")
    settings = load_recipe("vision/v1-tiny", {"probe.data": str(data[0]), "probe.valid": str(data[1])}).probe
    train, valid = load_probe_sets(vision.modality, settings, 0)
    assert (len(train.indices), len(valid.indices)) == (23, 12) and set(train.classes) == set(COLOURS)
    assert "1 of 24 examples are left out: no label (examples 0)" in caplog.text
    (data[0] / "metadata.csv").write_text("file_name,label\n" + "".join(f"{path.relative_to(data[0])},\n" for path in files))
    with pytest.raises(UserError, match=r"probe\.label: no example in .* has a 'label'"):
        load_probe_sets(vision.modality, settings, 0)


def test_one_folder_of_splits_is_probed_on_train_and_valid(vision: Model, tmp_path: Path) -> None:
    for seed, (split, count) in enumerate({"train": 6, "dev": 3, "test": 5}.items()):
        pictures(tmp_path / split, COLOURS, count, seed)
    settings = load_recipe("vision/v1-tiny", {"probe.data": str(tmp_path), "probe.valid": str(tmp_path)}).probe
    train, valid = load_probe_sets(vision.modality, settings, 0)
    assert (len(train.indices), len(valid.indices)) == (18, 9)


def test_numbers_in_a_text_table_are_no_classes(vision: Model, data: tuple[Path, Path]) -> None:
    files = sorted(data[0].rglob("*.png"))
    rows = "".join(f"{path.relative_to(data[0])},{i / 7:.2f}\n" for i, path in enumerate(files))
    (data[0] / "metadata.csv").write_text(f"file_name,label\n{rows}")
    settings = load_recipe("vision/v1-tiny", {"probe.data": str(data[0]), "probe.valid": str(data[1])}).probe
    with pytest.raises(UserError, match=r"holds numbers such as 0\.14, not classes"):
        load_probe_sets(vision.modality, settings, 0)
