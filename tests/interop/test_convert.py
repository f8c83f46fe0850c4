import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.interop.convert import _WRITERS, Form, convert
from data2vec.interop.load import is_transformers_folder
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import ClassifierSettings
from data2vec.recipe.loading import load_recipe
from helpers.released_models import small, trained

SMALL: dict[str, Any] = {
    **{"encoder.width": 32, "encoder.layers": 3, "encoder.heads": 2, "encoder.ffn_width": 64, "objective.target.top_k": 2},
    **{"modality.position_groups": 2, "modality.conv_layers": [[8, 10, 5], [8, 3, 2], [8, 2, 2]]},
}


@pytest.fixture(scope="module")
def speech() -> Model:
    """A pre-trained model, teacher and all."""
    torch.manual_seed(0)
    recipe = load_recipe("speech/v1-base", SMALL)
    modality = recipe.build_modality()
    objective = recipe.build_objective(build_encoder(modality, recipe.encoder).eval())
    rest = {name: torch.randn_like(value) for name, value in objective.state_dict().items() if not name.startswith("student.")}
    return Model(objective.student, modality, recipe, pretraining=rest)


def test_round_trip_by_official_checkpoint_loses_nothing(speech: Model, tmp_path: Path) -> None:
    there = convert(speech, tmp_path / "model.pt", "fairseq", source="made here", license="mit")
    back = convert(there.path, tmp_path / "ours", "data2vec")
    assert back.weights == len(speech.encoder.state_dict()) + len(speech.pretraining)
    model = data2vec.load(tmp_path / "ours")
    assert model.pretraining.keys() == speech.pretraining.keys()
    assert all(torch.equal(value, speech.pretraining[name]) for name, value in model.pretraining.items())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("sound/v2-eat-base", {"pooling": "class-token", "norm_eps": 1e-6}),
        ("sound/v2-eat-base", {"pooling": "mean"}),
        ("vision/v2-base", {"pooling": "mean", "norm_eps": 1e-6}),
    ],
)
@pytest.mark.parametrize("to", ["data2vec", "transformers", "fairseq"])
def test_classifier_of_a_released_kind_goes_into_every_form_and_back(
    name: str, head: dict[str, Any], to: Form, tmp_path: Path
) -> None:
    model = trained(small(name), ClassifierSettings(labels=("label 0", "label 1"), **head))
    there = convert(model, tmp_path / "there.pt", to)
    back = data2vec.load(there.path)
    assert there.weights >= len(model.encoder.state_dict()) + len(model.head.state_dict())  # type: ignore[union-attr]
    assert back.head is not None and model.head is not None and back.head.settings == model.head.settings


@pytest.mark.parametrize("changes", [{"pooling": "attention"}, {"pooling": "linear-softmax"}, {"weighted_layers": 2}])
def test_head_without_a_form_in_fairseq_is_refused_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    model = trained(small("vision/v2-base"), ClassifierSettings(labels=("a", "b"), norm_eps=1e-6, **changes), False)
    with pytest.raises(UserError, match=rf"^head\.{next(iter(changes))}: .* is not supported by the official"):
        convert(model, tmp_path / "model.pt", "fairseq")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["transformers", "fairseq"])
def test_modality_without_another_form_is_refused_by_name(to: Form, tmp_path: Path) -> None:
    kinds = {"signal": {"modality.channels": ["x"], "modality.units": [""], "modality.rate": 50.0}, "video": {}}
    for kind, settings in kinds.items():
        model = trained(load_recipe(f"{kind}/v2-tiny", settings), pretraining=False)
        with pytest.raises(UserError, match=rf"^modality\.name: '?{kind}'? (cannot be written|has no official counterpart)"):
            convert(model, tmp_path / "there", to)


def test_omitted_parts_are_listed(speech: Model, tmp_path: Path) -> None:
    there = convert(speech, tmp_path / "hf", "transformers")
    assert there.weights == len(speech.encoder.state_dict())
    assert "not included: the teacher" in str(there)


def test_source_and_licence_go_into_card_and_model(speech: Model, tmp_path: Path) -> None:
    convert(speech, tmp_path / "hf", "transformers", source="the hills", license="cc-by-nc-4.0")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "Source: the hills." in card
    convert(tmp_path / "hf", tmp_path / "ours", "data2vec")
    model = data2vec.load(tmp_path / "ours")
    assert (model.source, model.license) == ("the hills", "cc-by-nc-4.0")


@pytest.mark.parametrize("to", ["data2vec", "transformers", "fairseq"])
def test_existing_destination_is_refused(speech: Model, tmp_path: Path, to: Form) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "photo.jpg").write_text("dear")
    with pytest.raises(UserError, match="already exists"):
        convert(speech, tmp_path / "there", to)
    assert (tmp_path / "there" / "photo.jpg").read_text() == "dear"


def test_weights_that_differ_read_back_are_an_error(speech: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: Model, place: Path) -> list[str]:
        save_model_folder(model, place)
        weights = data2vec.load(place)
        weights.encoder.transformer.blocks[0].norm1.weight.data[0] += 1
        save_model_folder(weights, place)
        return []

    monkeypatch.setitem(_WRITERS, "data2vec", damaged)
    with pytest.raises(RuntimeError, match=r"do not use it: .* encoder.transformer.blocks.0.norm1.weight"):
        convert(speech, tmp_path / "ours", "data2vec")


def test_convert_command_refuses_an_existing_file(speech: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech.save_pretrained(tmp_path / "ours")
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "a.pt"), "--to", "fairseq", "--license", "mit"]) == 0
    said = capsys.readouterr().out
    assert "weights, read back and bit-identical" in said
    assert "no source recorded in the model card; set one with --source" in said and "no license" not in said
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "a.pt"), "--to", "fairseq"]) == 2
    assert "a.pt: already exists; choose another name" in capsys.readouterr().err


def test_convert_command_asks_for_missing_source(speech: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech.save_pretrained(tmp_path / "ours")
    answers = iter(["my own recordings", "mit"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--to", "data2vec"]) == 0
    model = data2vec.load(tmp_path / "again")
    assert (model.source, model.license) == ("my own recordings", "mit")


def test_push_to_hub_and_load_by_name(speech: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: dict[str, Path] = {}

    class Api:
        def __init__(self, token: str | None = None):
            assert token == "secret"

        def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> None:
            assert private and exist_ok

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            hub[repo_id] = shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: hub[name])
    assert speech.push_to_hub("owner/name", private=True, token="secret") == "https://hub/owner/name"
    assert "library_name: data2vec" in (tmp_path / "hub" / "README.md").read_text()
    model = Model.from_pretrained("hf://owner/name")
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), speech.encoder.parameters(), strict=True))


def test_unknown_hub_name_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        raise OSError("no way there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", gone)
    with pytest.raises(UserError, match=r"hf://owner/name: is not available on the hub \(no way there\)"):
        data2vec.load("hf://owner/name")


def test_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="bert"):
        data2vec.load(tmp_path)
    assert not is_transformers_folder(tmp_path / "none")
