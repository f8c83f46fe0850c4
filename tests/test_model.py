import json
from pathlib import Path

import numpy as np
import pytest
import torch

import data2vec
from data2vec.errors import UserError
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 3}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained speech model in a folder."""
    folder = tmp_path_factory.mktemp("speech") / "model"
    recipe = load_recipe("speech/v1-tiny", SMALL)
    modality = recipe.build_modality()
    torch.manual_seed(0)
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), folder)
    return folder


def test_inputs_of_all_lengths_keep_their_own_features(speech: Path) -> None:
    model = data2vec.load(speech)
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


def test_loading_gives_what_was_saved(speech: Path, tmp_path: Path) -> None:
    model = data2vec.load(speech)
    assert not model.encoder.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (speech / "model.safetensors").read_bytes()
    assert "3 blocks of width 32" in (speech / "README.md").read_text()


def test_saving_replaces_a_model_as_a_whole(speech: Path, tmp_path: Path) -> None:
    model = data2vec.load(speech)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    model.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "old.txt").exists()


def test_text_brings_its_tokenizer(tmp_path: Path) -> None:
    from data2vec.data.text import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), tmp_path)
    recipe = load_recipe("text/v1-tiny", SMALL | {"modality.vocab_size": 300, "data.tokenizer": str(tmp_path)})
    modality = recipe.build_modality()
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), tmp_path / "model")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    features = data2vec.load(tmp_path / "moved").features(["nothing", "a small text"])
    assert features.hidden.shape[:2] == (1, 2)
    assert features.lengths[0] < features.lengths[1]


def test_a_tokenizer_can_be_put_beside_a_model_that_has_none(tmp_path: Path) -> None:
    from data2vec.data.text import save_tokenizer, train_tokenizer

    recipe = load_recipe("text/v1-tiny", SMALL | {"modality.vocab_size": 300})
    modality = recipe.build_modality()
    save_model_folder(Model(build_encoder(modality, recipe.encoder), modality, recipe), tmp_path / "model")
    with pytest.raises(UserError, match=r"put its tokenizer\.json, or vocab\.json and merges\.txt, into the model folder"):
        data2vec.load(tmp_path / "model").features(["a text"])
    save_tokenizer(train_tokenizer(["a small text"] * 5, 300), tmp_path / "model")
    assert data2vec.load(tmp_path / "model").features(["a text"]).lengths[0] > 2


def test_what_cannot_be_loaded_is_told(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a data2vec run or model folder"):
        data2vec.load(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="has not ended yet"):
        data2vec.load(tmp_path)
    for content in ("{", "[]", "{}", json.dumps({"format": "another"})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="is not a data2vec"):
            data2vec.load(tmp_path)
    (tmp_path / "config.json").write_bytes((speech / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        data2vec.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((speech / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        data2vec.load(tmp_path)


def test_no_input_and_an_unreadable_one(speech: Path, tmp_path: Path) -> None:
    model = data2vec.load(speech)
    with pytest.raises(UserError, match="there is no input"):
        model.features([])
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"a\.wav"):
        model.features([tmp_path / "a.wav"])
