import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.model import Model, blank_model, load_model_folder, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import ClassifierSettings, build_head
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.training_history import Score, TrainingStage, make_scores, training_stage
from helpers.fine_tuned import KINDS, fine_tuned, make_data

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 3}


@pytest.fixture(scope="module")
def speech_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained speech model in a folder."""
    folder = tmp_path_factory.mktemp("speech") / "model"
    recipe = load_recipe("speech/v1-tiny", SMALL)
    modality = recipe.build_modality()
    torch.manual_seed(0)
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), folder)
    return folder


def test_features_of_a_batch_equal_those_of_each_input_alone(speech_model: Path) -> None:
    model = data2vec.load(speech_model)
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(length).astype(np.float32) for length in (16000, 16000, 9000, 12000)]
    together = model.features(waves, layers="all")
    assert together.hidden.shape == (3, 4, 49, 32)
    assert together.lengths.tolist() == [49, 49, 27, 37]
    assert together.seconds is not None
    assert together.seconds[:3].tolist() == pytest.approx([0, 0.02, 0.04])
    for i, wave in enumerate(waves):
        alone = model.features([wave], layers="all").hidden[:, 0]
        assert torch.allclose(together.hidden[:, i, : len(alone[0])], alone, atol=1e-5)
        assert not together.hidden[:, i, len(alone[0]) :].any()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_data(tmp_path_factory.mktemp("labelled") / "data")


def test_logits_of_a_batch_equal_those_of_each_input_alone(labelled: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(length).astype(np.float32) for length in (16000, 9000, 12000)]
    classes = fine_tuned("classes of sounds", labelled["tokenizer"])
    found = classes.logits(waves)
    assert found.logits.shape == (3, 3) and found.lengths is None
    torch.testing.assert_close(
        found.logits, torch.cat([classes.logits(wave, batch=1).logits for wave in waves]), atol=1e-4, rtol=0
    )
    ctc = fine_tuned("transcripts", labelled["tokenizer"])
    found = ctc.logits(waves)
    assert found.lengths is not None
    assert found.lengths.tolist() == ctc.features(waves).lengths.tolist()
    assert found.logits.shape == (3, max(found.lengths), 11)
    for row, length, wave in zip(found.logits, found.lengths, waves, strict=True):
        torch.testing.assert_close(row[:length], ctc.logits(wave).logits[0], atol=1e-4, rtol=0)
        assert not row[length:].any()


def test_logits_are_those_of_the_head_on_the_encoder(labelled: dict[str, Path]) -> None:
    model = fine_tuned("classes of images", labelled["tokenizer"])
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    hidden = model.features(picture).hidden[0]
    torch.testing.assert_close(model.logits(picture).logits, model.head(hidden))  # type: ignore[misc]
    with pytest.raises(UserError, match="logits: input 1: "):
        model.logits([b"no image"])


def test_calling_a_model_gives_logits_with_a_head_and_features_without(labelled: dict[str, Path]) -> None:
    model = fine_tuned("classes of sounds", labelled["tokenizer"])
    wave = np.random.default_rng(0).standard_normal(9000)
    called = model(wave)
    assert isinstance(called, data2vec.LogitBatch) and called.logits.equal(model.logits(wave).logits)
    called = replace(model, head=None)(wave)
    assert isinstance(called, data2vec.FeatureBatch) and called.hidden.equal(model.features(wave).hidden)


def test_eval_to_and_device_are_as_in_torch_and_there_is_no_train(labelled: dict[str, Path]) -> None:
    model = fine_tuned("classes of sounds", labelled["tokenizer"])
    model.encoder.train()
    model.head.train()  # type: ignore[union-attr]
    assert model.eval() is model and not model.encoder.training and not model.head.training  # type: ignore[union-attr]
    assert model.device == torch.device("cpu") and not hasattr(model, "train")
    wave = np.random.default_rng(0).standard_normal(9000)
    expected = model.logits(wave).logits
    half = model.to(torch.bfloat16).logits(wave).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.5, rtol=0.05)
    (prediction,) = model.predict(wave)
    assert prediction.probability == pytest.approx(half.double().softmax(-1).max().item(), abs=1e-6)


def test_load_after_save_pretrained_gives_equal_weights_in_evaluation_mode(speech_model: Path, tmp_path: Path) -> None:
    model = data2vec.load(speech_model)
    assert not model.encoder.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (speech_model / "model.safetensors").read_bytes()
    assert "3 blocks of width 32" in (speech_model / "README.md").read_text()


def test_save_pretrained_into_a_folder_leaves_what_others_wrote(speech_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "letter.txt").write_text("dear")
    (folder / "head.safetensors").write_text("not ours")
    (folder / "config.json").write_text("of another program")
    data2vec.load(speech_model).save_pretrained(folder)
    assert (folder / "notes" / "letter.txt").read_text() == "dear"
    assert (folder / "head.safetensors").read_text() == "not ours"
    assert [path.name for path in tmp_path.iterdir()] == ["project"]
    assert not list(folder.glob(".*"))
    data2vec.load(folder)


def test_save_pretrained_over_an_earlier_model_removes_its_other_weights(speech_model: Path, tmp_path: Path) -> None:
    model, folder = data2vec.load(speech_model), tmp_path / "model"
    replace(model, pretraining={"teacher.weight": torch.ones(2)}).save_pretrained(folder)
    assert "teacher.weight" in data2vec.load(folder).pretraining
    (folder / "tokenizer.json").write_text("{}")  # of the user: a speech model has none
    model.save_pretrained(folder)
    assert not data2vec.load(folder).pretraining
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md", "tokenizer.json"}


def test_save_pretrained_into_the_current_folder_is_in_place(
    speech_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = data2vec.load(speech_model)
    for _ in range(2):
        model.save_pretrained(".")
        assert {path.name for path in Path().iterdir()} == {"config.json", "model.safetensors", "README.md"}
    data2vec.load(tmp_path)


def test_save_pretrained_never_replaces_a_file_by_a_folder(speech_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("precious")
    with pytest.raises(UserError, match="model: is a file; choose the name of a folder"):
        data2vec.load(speech_model).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "precious"
    (tmp_path / "folder" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder, but a file of that name has to be written"):
        data2vec.load(speech_model).save_pretrained(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


def test_save_model_folder_of_text_includes_the_tokenizer(tmp_path: Path) -> None:
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), tmp_path)
    recipe = load_recipe("text/v1-tiny", SMALL | {"modality.vocab_size": 300, "data.tokenizer": str(tmp_path)})
    modality = recipe.build_modality()
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), tmp_path / "model")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    features = data2vec.load(tmp_path / "moved").features(["nothing", "a small text"])
    assert features.hidden.shape[:2] == (1, 2)
    assert features.lengths[0] < features.lengths[1]


def test_model_folder_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    paths = {"data.train": "clips", "data.valid": "held-out", "probe.data": "labelled", "init": "earlier"}
    changes = SMALL | {key: str(tmp_path / name) for key, name in paths.items()}
    recipe = load_recipe("speech/v1-tiny", changes | {"probe.valid": "s3://bucket/set"})
    modality = recipe.build_modality()
    folder = tmp_path / "run" / "model"
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), folder)
    assert all(str(tmp_path).encode() not in path.read_bytes() for path in folder.iterdir())
    saved = json.loads((folder / "config.json").read_text())["recipe"]
    assert (saved["data"]["train"], saved["data"]["valid"], saved["probe"]["valid"]) == ("clips", None, "s3://bucket/set")


def test_model_card_shows_names_of_others_as_text(tmp_path: Path) -> None:
    recipe = load_recipe("speech/v1-tiny", SMALL)
    modality = recipe.build_modality()
    hostile = "<script>x</script>\n# heading\x1b[2J"
    head = build_head(ClassifierSettings(labels=(hostile, "`b`")), 32)
    scores = (Score(name=hostile, value=1.0, data="a|`b", note=hostile),)
    stage = TrainingStage(task="classify", data="a`<b>\n# c", step=1, steps=2, chosen_by=hostile, scores=scores)
    model = Model(build_encoder(modality, recipe.encoder), modality, recipe, head, {}, hostile, hostile, (stage,))
    save_model_folder(model, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text().partition("\n# data2vec")[2]
    assert "\x1b" not in card and "\n# " not in card
    assert "<script>" not in card.replace("`<script>x</script>\\n# heading\\x1b[2J`", "")
    assert "Source: &lt;script&gt;x&lt;/script&gt;\\n# heading" in card
    assert "`<script>x</script>\\n# heading\\x1b[2J`, `'b'`" in card and "on `a'<b>\\n# c`" in card
    assert "| 1 | `a\\|'b`, &lt;script&gt;" in card


def code_of_card(folder: Path) -> str:
    return (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_code_of_the_card_of_a_fine_tuned_model_runs_as_printed(
    kind: str, labelled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fine_tuned(kind, labelled["tokenizer"])
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Any] = {}
    exec(code_of_card(tmp_path / "model"), names)
    assert names["prediction"].error is None
    ((value,),) = [[each.value for each in model.predict(names["inputs"])]]
    assert names["prediction"].value == value
    command = (tmp_path / "model" / "README.md").read_text().partition("```\ndata2vec ")[2].partition("\n```")[0]
    words = command.replace("INPUT", str(labelled[kind])).split()
    assert cli.main(words) == 0
    assert capsys.readouterr().out.startswith("predictions.csv: ") and (tmp_path / "model" / "predictions.csv").exists()


@pytest.mark.parametrize(
    "name", ["speech/v1-tiny", "speech/v2-tiny", "vision/v2-tiny", "text/v1-tiny", "text without tokenizer"]
)
def test_code_of_the_card_of_a_pretrained_model_runs_as_printed(
    name: str, labelled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"data.tokenizer": str(labelled["tokenizer"])} if name == "text/v1-tiny" else {}
    changes = {"modality.vocab_size": 300} | own if name.startswith("text") else {}
    recipe = load_recipe(name if "/" in name else "text/v1-tiny", SMALL | changes)
    blank_model(recipe).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Any] = {}
    exec(code_of_card(tmp_path / "model"), names)
    assert names["features"].hidden.shape[:2] == (3, 1)


def test_card_says_what_was_trained_on_what_and_what_was_measured_on_what(tmp_path: Path) -> None:
    recipe = load_recipe("vision/v2-tiny", SMALL | {"data.train": str(tmp_path / "photos"), "train.steps": 100})
    first = training_stage(recipe, 100, make_scores({"loss": 0.5, "valid_loss": math.nan}, str(tmp_path / "held-out")))
    labelled = load_recipe("vision/classify-tiny", {"data.train": "hf://owner/cats", "train.steps": 60})
    second = training_stage(labelled, 40, make_scores({"accuracy": 0.875}, "/data/test", "8 examples"), "accuracy")
    head = ClassifierSettings(labels=("cat", "dog"))
    model = replace(blank_model(recipe, head), training=(first, second), source="the attic", license="mit")
    model.save_pretrained(tmp_path / "a")
    again = data2vec.load(tmp_path / "a")
    assert again.training == model.training
    again.save_pretrained(tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text()
    assert card == (tmp_path / "a" / "README.md").read_text()
    for line in (
        "# data2vec2 encoder for vision with a classifier head",
        "It predicts one of 2 classes: `cat`, `dog`.",
        "1. Pre-trained without labels by `data2vec2` on `photos` for 100 steps.",
        "2. Fine-tuned on `hf://owner/cats`: step 40 of 60, the best by accuracy on `test`.",
        "Source: the attic.",
        "License: mit.",
        "Measured at step 40:",
        "| accuracy | 0.875 | `test`, 8 examples |",
    ):
        assert line in card.splitlines()
    assert str(tmp_path) not in card
    blank_model(recipe).save_pretrained(tmp_path / "untrained")
    card = (tmp_path / "untrained" / "README.md").read_text()
    assert "No training is recorded here." in card and "No license is recorded." in card and "steps" not in card


@pytest.mark.parametrize(
    "training", [[{"task": 3}], 5, [{"task": "ctc", "data": None, "step": 1, "steps": 1, "x": 1}], {"a": 1}]
)
def test_load_refuses_a_damaged_record_of_the_training(speech_model: Path, tmp_path: Path, training: Any) -> None:
    data2vec.load(speech_model).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": training}))
    with pytest.raises(UserError, match=r"config\.json is damaged: its record of the training; remove the key training"):
        data2vec.load(tmp_path / "model")


def test_load_uses_a_tokenizer_added_to_the_folder(tmp_path: Path) -> None:
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer

    recipe = load_recipe("text/v1-tiny", SMALL | {"modality.vocab_size": 300})
    modality = recipe.build_modality()
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), tmp_path / "model")
    with pytest.raises(UserError, match=r"put its tokenizer\.json, or vocab\.json and merges\.txt, into the model folder"):
        data2vec.load(tmp_path / "model").features(["a text"])
    save_tokenizer(train_tokenizer(["a small text"] * 5, 300), tmp_path / "model")
    assert data2vec.load(tmp_path / "model").features(["a text"]).lengths[0] > 2


def test_load_of_an_invalid_folder_raises(speech_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a data2vec run or model folder"):
        data2vec.load(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="nothing is trained yet"):
        data2vec.load(tmp_path)
    for content in ("{", "[]", "{}", json.dumps({"format": "another"})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="is not a data2vec"):
            data2vec.load(tmp_path)
    (tmp_path / "config.json").write_bytes((speech_model / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        data2vec.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((speech_model / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        data2vec.load(tmp_path)


def test_load_of_the_old_format_names_format_and_version(speech_model: Path, tmp_path: Path) -> None:
    config = json.loads((speech_model / "config.json").read_text())
    assert config["format"] == "data2vec model 2"
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": "data2vec model 1", "version": "0.1.0"}))
    with pytest.raises(UserError, match=r"format is 'data2vec model 1', not 'data2vec model 2'.*wrote it \(0\.1\.0\)"):
        data2vec.load(tmp_path)


def test_features_without_input_or_of_an_unreadable_file_raises(speech_model: Path, tmp_path: Path) -> None:
    model = data2vec.load(speech_model)
    with pytest.raises(UserError, match="inputs: is empty; give at least one"):
        model.features([])
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"a\.wav"):
        model.features([tmp_path / "a.wav"])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("encoder", {"width": 2**18, "heads": 1}, "the settings of the model ask for .* MiB, but its weights have"),
        ("encoder", {"layers": 1000}, "the settings of the model ask for .* MiB, but its weights have"),
        ("encoder", {"layers": 10**9}, "encoder.layers: should be less than or equal to 1024"),
        ("encoder", {"ffn_width": 10**4000}, "encoder.ffn_width: should be an integer of at most 64 bits"),
        ("modality", {"image": 2**14, "patch": 1}, "16384 x 16384 patches of 1 pixels; at most 64 x 64 are allowed"),
        ("modality", {"patch": 2**20}, "modality.patch: should be less than or equal to 128"),
    ],
)
def test_load_bounds_what_a_config_asks_for(tmp_path: Path, section: str, changes: dict[str, int], message: str) -> None:
    blank_model(load_recipe("vision/v1-tiny")).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["recipe"][section] |= changes
    sys.set_int_max_str_digits(0)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    sys.set_int_max_str_digits(4300)
    with pytest.raises(UserError, match=message):
        load_model_folder(tmp_path / "model")


def test_load_takes_no_path_from_a_model_folder(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    blank_model(load_recipe("text/v1-tiny")).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    paths = {"valid": str(private), "tokenizer": str(private), "follow_links": True, "train": "books/"}
    config["recipe"]["data"] |= paths
    config["recipe"] |= {"probe": {"data": str(private), "valid": str(private)}, "init": str(private)}
    path.write_text(json.dumps(config))
    recipe = load_model_folder(tmp_path / "model").recipe
    assert recipe.data.train == "books/"  # where it comes from
    assert recipe.data.valid is recipe.data.tokenizer is recipe.probe.data is recipe.probe.valid is recipe.init is None
    assert not recipe.data.follow_links
    for name in ("../private", str(private), "a/../../private"):
        config["files"] = {"tokenizer": name}
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match="it names files outside of the folder"):
            load_model_folder(tmp_path / "model")
