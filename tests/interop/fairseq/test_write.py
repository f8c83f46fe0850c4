"""A written official checkpoint has the official keys and shapes, and reads back bit-identical."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import data2vec
from data2vec.errors import UserError
from data2vec.interop.fairseq.config import setting_differences
from data2vec.interop.fairseq.write import write_fairseq_checkpoint
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.loading import load_recipe
from helpers.official_files import MODELS, TEACHERS, content, save
from helpers.released_models import LETTERS, RELEASED, small, trained


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", RELEASED)
def test_pretrained_model_survives_the_round_trip_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = trained(small(name))
    lost = write_fairseq_checkpoint(model, tmp_path / "new" / "model.pt")
    back = data2vec.load(tmp_path / "new" / "model.pt")
    assert equal(model.encoder.state_dict(), back.encoder.state_dict())
    assert equal(dict(model.pretraining), dict(back.pretraining))
    changed = {key for key, _, _ in setting_differences(model.recipe, back.recipe)}
    assert changed <= {"modality.position_padding", "objective.cls_loss", "objective.cls_reduction"}
    assert back.recipe.objective.teacher == model.recipe.objective.teacher
    assert lost[-1] == "how it was trained: the sections data, train, probe and log of its recipe"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["speech/v1-base", "text/v1-base"])
def test_new_teacher_and_prediction_head_are_not_read_back(name: str, tmp_path: Path) -> None:
    model = trained(small(name), pretraining=False)
    lost = write_fairseq_checkpoint(model, tmp_path / "model.pt")
    assert any("those in the file are new, as official code requires them" in line for line in lost)
    back = data2vec.load(tmp_path / "model.pt")
    assert back.pretraining == {}
    assert equal(model.encoder.state_dict(), back.encoder.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_written_keys_and_shapes_are_official(name: str, tmp_path: Path) -> None:
    model = data2vec.load(save(tmp_path, content(name)))
    write_fairseq_checkpoint(model, tmp_path / "written.pt")
    raw = torch.load(tmp_path / "written.pt", weights_only=True)  # nothing but tensors and plain containers
    student = dict(raw["model"])
    teacher = raw["model_ema"] if name == "vision1" else student.pop("encoder._ema" if name == "text1" else "_ema")
    expected = {key.replace("final_proj.0", "final_proj"): shape for key, shape in MODELS[name].items()}
    assert {key: tuple(value.shape) for key, value in student.items()} == expected
    assert {key: tuple(value.shape) for key, value in teacher.items()} == TEACHERS[name]
    assert all(value.dtype == torch.float32 for key, value in student.items() if not key.endswith("index"))
    if name != "vision1":
        names = {"speech1": "data2vec_audio", "text1": "data2vec_text"}
        assert raw["cfg"]["model"]["_name"] == names.get(name, "data2vec_multi")
        assert raw["args"] is None
        assert raw["optimizer_history"][-1].keys() >= {"optimizer_name", "lr_scheduler_state", "num_updates"}
        assert "train_iterator" in raw["extra_state"]


def test_relative_position_index_is_that_of_beit(tmp_path: Path) -> None:
    write_fairseq_checkpoint(trained(small("vision/v1-base")), tmp_path / "a.pth")
    index = torch.load(tmp_path / "a.pth", weights_only=True)["model"]["rel_pos_bias.relative_position_index"]
    assert index.shape == (17, 17)
    assert (index[0, 0], index[0, 1], index[1, 0], index[1, 1]) == (51, 49, 50, 24)


HEADS: list[tuple[str, Any, dict[str, Any]]] = [
    ("speech/v1-base", CTCSettings(labels=LETTERS), {}),
    ("speech/v2-large", CTCSettings(labels=LETTERS), {}),
    ("vision/v2-base", ClassifierSettings(labels=("label 0", "label 1"), norm_eps=1e-6), {}),
    ("vision/v2-large", ClassifierSettings(labels=("label 0", "label 1")), {}),
    ("text/v1-base", ClassifierSettings(labels=("label 0", "label 1"), pooling="first", hidden_layer="tanh"), {}),
    (
        "text/v2-base",
        ClassifierSettings(labels=("label 0",), problem_type="regression", pooling="first", hidden_layer="tanh"),
        {},
    ),
    ("vision/v1-base", ClassifierSettings(labels=("label 0", "label 1"), norm_eps=1e-6),
     {"modality__mean": [0.5] * 3, "modality__std": [0.5] * 3, "modality__position_tables": 2, "modality__mask_vector": False,
      "encoder__final_norm": False}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "head", "more"), HEADS, ids=[name for name, _, _ in HEADS])
def test_fine_tuned_model_survives_the_round_trip(name: str, head: Any, more: dict[str, Any], tmp_path: Path) -> None:
    model = trained(small(name, **more), head, pretraining=False)
    write_fairseq_checkpoint(model, tmp_path / "model.pt")
    back = data2vec.load(tmp_path / "model.pt")
    assert equal(model.encoder.state_dict(), back.encoder.state_dict())
    assert back.head is not None
    assert model.head is not None
    assert equal(model.head.state_dict(), back.head.state_dict())
    assert back.head.settings == head
    assert (back.recipe.encoder, back.pretraining) == (model.recipe.encoder, {})
    torch.load(tmp_path / "model.pt", weights_only=True)


def test_lost_parts_are_listed(tmp_path: Path) -> None:
    labels = ClassifierSettings(labels=("cat", "dog"), norm_eps=1e-6, problem_type="multi_label_classification")
    model = replace(trained(small("vision/v2-base"), labels), source="somewhere", license="mit")
    told = "\n".join(write_fairseq_checkpoint(model, tmp_path / "a.pt"))
    for each in (
        "labels of its head",
        "head.problem_type: multi_label",
        "its source: somewhere",
        "its license: mit",
        "the teacher",
    ):
        assert each in told
    model = trained(small("speech/v1-base"), CTCSettings(labels=("-", *"abcd")))
    assert "the first four must be <s>" in "\n".join(write_fairseq_checkpoint(model, tmp_path / "b.pt"))
    (tmp_path / "dict.ltr.txt").write_text("another 1\n")
    told = "\n".join(write_fairseq_checkpoint(trained(small("speech/v1-base"), CTCSettings(labels=LETTERS)), tmp_path / "c.pt"))
    assert "a different dict.ltr.txt exists" in told
    assert (tmp_path / "dict.ltr.txt").read_text() == "another 1\n"


@pytest.mark.parametrize(
    ("name", "head", "told"),
    [
        ("speech/v1-base", ClassifierSettings(labels=("a", "b")), "head.name: 'classifier' is not supported by"),
        ("speech/v2-base", ClassifierSettings(labels=("a", "b")), "head.name: 'classifier' is not supported by"),
        ("vision/v1-base", ClassifierSettings(labels=("a", "b")), "head.norm_eps: None is not supported by"),
        (
            "vision/v2-base",
            ClassifierSettings(labels=("a", "b"), pooling="first"),
            "head.pooling: 'first' is not supported by",
        ),
        ("text/v1-base", ClassifierSettings(labels=("a", "b")), r"head\.(pooling|hidden_layer): .* is not supported by"),
        (
            "text/v1-base",
            ClassifierSettings(labels=("a",), pooling="first", hidden_layer="tanh"),
            "head.problem_type: .* is a regression",
        ),
    ],
)
def test_unsupported_head_is_refused(name: str, head: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        write_fairseq_checkpoint(trained(small(name), head), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_unsupported_objective_is_refused_only_with_a_teacher(tmp_path: Path) -> None:
    recipe = small("speech/v1-base", objective__target__source="block")
    with pytest.raises(UserError, match=r"(?s)objective\.target\.source: 'block' is not supported by.*delete its pretraining"):
        write_fairseq_checkpoint(trained(recipe), tmp_path / "a.pt")
    lost = write_fairseq_checkpoint(trained(recipe, pretraining=False), tmp_path / "a.pt")
    assert "the objective: objective.target.source: 'block'" in "\n".join(lost)
    assert data2vec.load(tmp_path / "a.pt").recipe.objective.target.source == "ffn"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "speech/v2-base",
            {"objective__decoder": {"kind": "transformer", "width": 16, "heads": 2}},
            "objective.decoder.kind: 'tran",
        ),
        ("speech/v2-base", {"objective__target__heads": "layer"}, "objective.target.heads: 'layer' is not supported by"),
        ("text/v1-base", {"objective__loss": "l1", "objective__beta": 0}, "objective.loss: 'l1' is not supported by"),
        ("speech/v1-base", {"objective__teacher__window": 5}, "objective.teacher.window: 5 is not supported by"),
        ("speech/v1-base", {"objective__teacher__mask_prob": 0.1}, "objective.teacher.mask_prob: 0.1 is not supported by"),
    ],
)
def test_ablated_objective_is_refused_with_a_teacher(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_fairseq_checkpoint(trained(small(name, **changes)), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_half_lives_and_l2_are_written_as_decays_and_beta_zero(tmp_path: Path) -> None:
    decays = {f"objective__teacher__{key}": None for key in ("decay", "end_decay", "anneal_steps")}
    shares = {
        "objective__teacher__half_life": 0.1,
        "objective__teacher__end_half_life": 0.5,
        "objective__teacher__anneal": 0.25,
    }
    recipe = small("speech/v1-base", **decays, **shares, train__steps=1000, objective__loss="l2")
    write_fairseq_checkpoint(trained(recipe), tmp_path / "a.pt")
    objective = data2vec.load(tmp_path / "a.pt").recipe.objective
    assert objective.teacher.schedule(1) == (0.5**0.01, 0.5**0.002, 250)
    assert (objective.loss, objective.beta) == ("smooth_l1", 0)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("text/v1-base", "modality.positions", "alibi"),
        ("text/v2-base", "modality.positions", "conv"),
        ("vision/v2-base", "modality.stem", "conv"),
    ],
)
def test_ablated_modality_is_refused_in_one_line(name: str, key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{key}: '{value}' is not supported by .* model; it has '[a-z]*'$"):
        write_fairseq_checkpoint(trained(small(name, **{key: value}), pretraining=False), tmp_path / "a.pt")


def test_unsupported_encoder_is_refused_with_and_without_a_teacher(tmp_path: Path) -> None:
    for pretraining in (False, True):
        with pytest.raises(UserError, match=r"modality\.positions: 'sincos' is not supported by") as told:
            write_fairseq_checkpoint(trained(load_recipe("vision/v1-tiny"), pretraining=pretraining), tmp_path / "a.pt")
        assert "delete its pretraining" not in str(told.value)


def test_tokenizer_is_written_beside_a_text_model(tmp_path: Path) -> None:
    from data2vec.data.tokenizer import save_tokenizer, train_tokenizer

    (tmp_path / "from").mkdir()
    save_tokenizer(train_tokenizer(["a small text"] * 3, 300), tmp_path / "from")
    recipe = small("text/v1-base", modality__vocab_size=300, data__tokenizer=str(tmp_path / "from"))
    write_fairseq_checkpoint(trained(recipe), tmp_path / "to" / "model.pt")
    back = data2vec.load(tmp_path / "to" / "model.pt")
    assert back.recipe.data.tokenizer == str((tmp_path / "to").resolve())  # type: ignore[attr-defined]
    assert back.features(["a text"]).hidden.shape[-1] == 32


def test_failed_write_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(b"old")

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="full"):
        write_fairseq_checkpoint(trained(small("speech/v1-base")), tmp_path / "a.pt")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.pt", b"old")]
