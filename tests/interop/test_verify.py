"""Stand-ins for released models: the published outputs are their own, so that verifying can pass and can fail."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.interop import verify as verify_module
from data2vec.interop.fairseq.write import write_fairseq_checkpoint
from data2vec.interop.verify import PUBLISHED, verify
from data2vec.model import Model
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from helpers.released_models import LETTERS, small, trained


def stand_in(model: Model, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `model` for the released one of `PUBLISHED[index]`."""
    recipe, head = model.recipe, model.head
    rows = recipe.modality.vocab_size if head is None else len(head.settings.labels)  # type: ignore[attr-defined]
    found = (recipe.modality.name, 1, recipe.encoder.width, recipe.encoder.layers)
    monkeypatch.setattr(verify_module, "PUBLISHED", (replace(PUBLISHED[index], recipe=found, rows=rows),))


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = trained(small("text/v1-base"), pretraining=False)
    ids = (0, 5, 6, 7, 2)
    monkeypatch.setattr(verify_module, "TEXT_IDS", ids)
    monkeypatch.setattr(verify_module, "TEXT_FEATURES", model.features([torch.tensor(ids)]).hidden[0, 0, :3, :3].tolist())
    stand_in(model, 0, monkeypatch)
    return model


def test_file_of_the_released_model_passes_and_a_damaged_one_fails(text: Model, tmp_path: Path, capsys: Any) -> None:
    write_fairseq_checkpoint(text, tmp_path / "good.pt")
    result = verify(tmp_path / "good.pt")
    assert (result.passed, result.difference < 1e-6) == (True, True)
    assert str(result).startswith("version 1 text Base: passed: largest difference of 9 features ")
    assert cli.main(["verify", str(tmp_path / "good.pt")]) == 0
    content = torch.load(tmp_path / "good.pt", weights_only=True)
    content["model"]["encoder.sentence_encoder.layers.0.fc1.weight"] += 0.01
    torch.save(content, tmp_path / "bad.pt")
    result = data2vec.verify(tmp_path / "bad.pt")
    assert (result.passed, result.difference > 1e-4) == (False, True)
    with pytest.raises(UserError, match=r"--input cats\.jpg is not used"):
        verify(tmp_path / "good.pt", "cats.jpg")
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "bad.pt")]) == 1
    printed = capsys.readouterr()
    assert "version 1 text Base: FAILED: largest difference" in printed.out
    assert "bad.pt: does not give the published outputs" in printed.err


def test_converted_file_is_verified(text: Model, tmp_path: Path, capsys: Any) -> None:
    text.save_pretrained(tmp_path / "ours")
    command = [
        "convert",
        str(tmp_path / "ours"),
        str(tmp_path / "a.pt"),
        "--to",
        "fairseq",
        "--source",
        "x",
        "--license",
        "mit",
    ]
    assert cli.main(command) == 0
    assert "version 1 text Base: passed" in capsys.readouterr().out


def test_classes_of_the_published_image_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"modality__position_tables": 2, "modality__mask_vector": False, "encoder__final_norm": False}
    head = ClassifierSettings(labels=("a", "b", "c"), norm_eps=1e-6)
    model = trained(small("vision/v1-base", **changes), head, pretraining=False)
    stand_in(model, 1, monkeypatch)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 80, 3), np.uint8)).save(tmp_path / "cats.png")
    with pytest.raises(UserError, match=r"--input is missing; its outputs were published for 000000039769\.jpg"):
        verify(model)
    best = model.logits([str(tmp_path / "cats.png")]).logits[0].topk(2).indices.tolist()
    for classes, wrong in ((best, 0), (best[::-1], 2)):
        monkeypatch.setattr(verify_module, "IMAGE_CLASSES", tuple(classes))
        result = verify(model, tmp_path / "cats.png")
        assert (result.passed, result.difference) == (not wrong, wrong)


def test_transcript_of_the_published_recording_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(small("speech/v1-base"), CTCSettings(labels=LETTERS), pretraining=False)
    stand_in(model, 2, monkeypatch)
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).standard_normal(9000) * 0.1, 16000)
    said = str(model.predict([str(tmp_path / "a.flac")])[0].value).lower()
    for transcript, wrong in ((said, 0), (f"{said} more", 1)):
        monkeypatch.setattr(verify_module, "TRANSCRIPT", transcript)
        result = verify(model, tmp_path / "a.flac")
        assert (result.passed, result.difference) == (not wrong, wrong)


def test_model_without_published_outputs_is_refused() -> None:
    with pytest.raises(UserError, match="no published outputs are known of a model like this, only of: version 1 text Base; "):
        verify(trained(small("speech/v2-base"), pretraining=False))
