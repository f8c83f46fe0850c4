"""transformers' own preprocessors, from the files written here, give a model the numbers that ours give it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data2vec.batch import Batch
from data2vec.data.audio import normalize_waveform
from data2vec.data.image import center_crop
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.interop.transformers.processors import read_processors, write_processors
from data2vec.model import Model, blank_model
from data2vec.nn.heads import CTCSettings
from data2vec.recipe.loading import load_recipe

LETTERS = ("|", "A", "B")


def tiny(modality: str, changes: dict[str, Any] | None = None, labels: tuple[str, ...] = ()) -> Model:
    recipe = load_recipe(f"{modality}/v1-tiny", {"encoder.width": 32, "encoder.layers": 1} | (changes or {}))
    return blank_model(recipe, CTCSettings(labels=labels) if labels else None)


def test_waveforms_are_normalized_as_in_transformers(tmp_path: Path) -> None:
    write_processors(tiny("speech"), tmp_path)
    prepare = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    waves = [(0.1 + 0.5 * rng.standard_normal(length)).astype(np.float32) for length in (1000, 700)]
    given = prepare(waves, sampling_rate=16000, padding=True, return_tensors="pt")
    ours = Batch.stack([torch.from_numpy(normalize_waveform(wave)) for wave in waves])
    # Epsilon is 1e-7 there and 1e-5 here.
    torch.testing.assert_close(given["input_values"], ours.input, atol=1e-4, rtol=1e-4)
    assert given["attention_mask"].bool().equal(~ours.padding)
    assert read_processors(tmp_path, "speech") == {}


@pytest.mark.parametrize(
    "labels", [("<pad>", "<s>", "</s>", "<unk>", *LETTERS), ("<s>", "<pad>", "</s>", "<unk>", *LETTERS), ("_", *LETTERS)]
)
def test_ctc_labels_become_a_vocabulary_and_back(labels: tuple[str, ...], tmp_path: Path) -> None:
    write_processors(tiny("speech", labels=labels), tmp_path)
    both = transformers.AutoProcessor.from_pretrained(tmp_path)
    space, a, b = (labels.index(letter) for letter in LETTERS)
    assert both.tokenizer.get_vocab() == {label: i for i, label in enumerate(labels)}
    assert both.tokenizer("AB A")["input_ids"] == [a, b, space, a]
    assert both.tokenizer.decode([0, a, a, 0, a, b, space, b, 0]) == "AAB B"
    assert both.tokenizer.pad_token_id == 0
    assert both(np.ones(400, np.float32), sampling_rate=16000)["input_values"][0].shape == (400,)
    assert read_processors(tmp_path, "speech") == {"head": {"labels": list(labels)}}
    both.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "preprocessor_config.json").exists()
    assert read_processors(tmp_path / "again", "speech") == {"head": {"labels": list(labels)}}


def test_images_are_preprocessed_as_in_transformers(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    model = tiny("vision", {"modality.mean": mean, "modality.std": std})
    write_processors(model, tmp_path)
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path)  # which takes Pillow where torchvision is not
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    theirs = prepare([picture], return_tensors="pt")["pixel_values"][0]
    ours = center_crop(torch.from_numpy(np.array(picture)).permute(2, 0, 1), model.modality.settings.image)
    bytes_ = (theirs * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
    assert (bytes_ - ours).abs().max() < 1.01  # as near as resizing here is to Pillow's
    assert read_processors(tmp_path, "vision") == {"modality": {"mean": list(mean), "std": list(std)}}


def test_other_image_preprocessing_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": 224, "do_center_crop": False, "do_normalize": False}))
    assert read_processors(tmp_path, "vision") == {"modality": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    assert "its preprocessor crops images by {'size': 224" in caplog.text
    caplog.clear()
    file.write_text(json.dumps({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}))
    assert read_processors(tmp_path, "vision") == {"modality": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    assert caplog.text == ""


def test_text_is_tokenized_as_in_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), folder)
    model = tiny("text", {"modality.vocab_size": 300, "data.tokenizer": str(folder)})
    write_processors(model, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = [{"text": "a small text"}, {"text": "nothing of Ωhm,  twice"}]
    ours = model.modality.labelled(rows)
    batch = model.modality.collate([ours.load(i, None, None) for i in range(2)])
    theirs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    assert theirs["input_ids"].equal(batch.input)
    assert theirs["attention_mask"].bool().equal(~batch.padding)
    one, two = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("a", "text"))
    assert tokenizer("a", "text")["input_ids"] == [0, *one, 2, 2, *two, 2]
    assert (tokenizer.mask_token_id, tokenizer.model_max_length) == (299, model.modality.settings.max_length)
    assert read_processors(tmp_path, "text") == {"data": {"tokenizer": str(tmp_path)}}


def test_text_model_without_tokenizer_writes_no_files(tmp_path: Path) -> None:
    write_processors(tiny("text"), tmp_path)
    assert not list(tmp_path.iterdir())
    assert read_processors(tmp_path, "text") == {}


@pytest.mark.parametrize(
    ("modality", "content", "message"),
    [
        ("speech", {"sampling_rate": 8000}, "sampling_rate: 8000 in preprocessor_config.json is not supported, only 16000"),
        ("speech", {"do_normalize": False}, "do_normalize: False"),
        ("vision", {"rescale_factor": 1.0}, "rescale_factor: 1.0"),
        ("vision", {"do_rescale": False}, "do_rescale: False"),
        ("vision", [], "does not contain a JSON object"),
    ],
)
def test_unsupported_preprocessing_is_refused(modality: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_processors(tmp_path, modality)
