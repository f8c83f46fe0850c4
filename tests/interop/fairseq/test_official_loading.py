"""What is written opens in the official code: `helpers.official_loading` models its strict loading, not our reader."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.interop.fairseq.write import write_fairseq_checkpoint
from data2vec.nn.heads import AnyHeadSettings, ClassifierSettings, CTCSettings
from helpers.official_loading import REQUIRED, beit_problems, problems
from helpers.released_models import LETTERS, RELEASED, small, trained

HEADS: dict[str, AnyHeadSettings] = {
    "speech": CTCSettings(labels=LETTERS),
    "vision": ClassifierSettings(labels=("cat", "dog", "bird"), norm_eps=1e-6),
    "text": ClassifierSettings(labels=("yes", "no", "may be"), pooling="first", hidden_layer="tanh"),
}
FINE_TUNED_BEIT = {"modality__mean": [0.5] * 3, "modality__std": [0.5] * 3, "modality__position_tables": 2,
                   "modality__mask_vector": False, "encoder__final_norm": False}  # fmt: skip
FORMS = ("pre-trained", "encoder only", "fine-tuned")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["a small text"] * 3, 300), folder)
    return folder


def written(name: str, form: str, tokenizer: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """The content of the checkpoint that is written of a small model."""
    kind = name.partition("/")[0]
    if kind == "text":
        changes |= {"data__tokenizer": str(tokenizer), "modality__vocab_size": 300}
    if name.startswith("vision/v1") and form == "fine-tuned":
        changes |= FINE_TUNED_BEIT
    head = HEADS[kind] if form == "fine-tuned" else None
    write_fairseq_checkpoint(trained(small(name, **changes), head, form == "pre-trained"), folder / "model.pt")
    content: dict[str, Any] = torch.load(folder / "model.pt", weights_only=True)
    return content


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in RELEASED if not name.startswith(("vision/v1", "sound"))])  # not in fairseq
def test_written_checkpoint_loads_strictly_in_fairseq(name: str, form: str, tokenizer: Path, tmp_path: Path) -> None:
    assert problems(written(name, form, tokenizer, tmp_path), tmp_path) == []


@pytest.mark.parametrize("form", ["pre-trained", "fine-tuned"])
@pytest.mark.parametrize("name", ["vision/v1-base", "vision/v1-large"])
def test_written_checkpoint_loads_strictly_in_beit(name: str, form: str, tokenizer: Path, tmp_path: Path) -> None:
    assert beit_problems(written(name, form, tokenizer, tmp_path)) == []


@pytest.mark.parametrize("name", ["speech/v1-base", "speech/v2-large", "vision/v2-large", "text/v1-base", "text/v2-base"])
def test_strict_loading_finds_every_missing_setting_file_and_weight(name: str, tokenizer: Path, tmp_path: Path) -> None:
    content = written(name, "fine-tuned", tokenizer, tmp_path)
    sections = {"cfg": content["cfg"], "model": content["cfg"]["model"], "task": content["cfg"]["task"]}
    for kind, section in sections.items():
        for key in [key for where, key, _ in REQUIRED if where in (kind, f"{kind} {section.get('_name')}")]:
            value = section.pop(key)
            assert any(key in problem for problem in problems(content, tmp_path)), key
            section[key] = value
    for file in tmp_path.rglob("dict*.txt"):
        renamed = file.rename(file.with_suffix(".gone"))
        assert any(str(file.relative_to(tmp_path)) in problem for problem in problems(content, tmp_path))
        renamed.rename(file)
    for key in content["model"]:
        without = content | {"model": {name: value for name, value in content["model"].items() if name != key}}
        assert len(problems(without, tmp_path)) == 1
    assert problems(content | {"model": content["model"] | {"proj.weight": torch.zeros(1)}}, tmp_path) != []


def test_strict_loading_finds_a_patch_embedding_of_another_width_than_configured(tokenizer: Path, tmp_path: Path) -> None:
    content = written("vision/v2-large", "pre-trained", tokenizer, tmp_path)
    wrong = deepcopy(content["cfg"])
    del wrong["model"]["modalities"]["image"]["embed_dim"]
    assert "modality IMAGE.embed_dim: missing" in "\n".join(problems(content | {"cfg": wrong}, tmp_path))


def test_drop_path_is_written_as_the_rates_of_the_blocks(tokenizer: Path, tmp_path: Path) -> None:
    changes = {"encoder__drop_path": 0.3, "encoder__layers": 4, "encoder__prenet_layers": 2}
    model = written("vision/v2-base", "pre-trained", tokenizer, tmp_path, **changes)["cfg"]["model"]
    image = model["modalities"]["image"]
    rates = [image["start_drop_path_rate"], image["end_drop_path_rate"]]
    assert [*rates, model["start_drop_path_rate"], model["end_drop_path_rate"]] == pytest.approx([0, 0.1, 0.2, 0.3])
    (tmp_path / "b").mkdir()
    assert (
        written("vision/v2-base", "fine-tuned", tokenizer, tmp_path / "b", **changes)["cfg"]["model"]["drop_path_rate"] == 0.3
    )


def test_dictionaries_are_those_of_the_tokenizer_and_labels(tokenizer: Path, tmp_path: Path) -> None:
    written("text/v2-base", "fine-tuned", tokenizer, tmp_path)
    lines = (tmp_path / "dict.txt").read_text().splitlines()
    assert len(lines) == 300 - 5  # without the special tokens at the start, and <mask> at the end
    assert (tmp_path / "input0" / "dict.txt").read_text().splitlines() == lines
    assert (tmp_path / "label" / "dict.txt").read_text() == "yes 1\nno 1\nmay be 1\n"


@pytest.mark.parametrize("label", ["a\nb", "", "<s>"])
def test_labels_that_a_dictionary_cannot_have_are_named(label: str, tmp_path: Path) -> None:
    head = ClassifierSettings(labels=("good", label), pooling="first", hidden_layer="tanh")
    lost = write_fairseq_checkpoint(trained(small("text/v2-base"), head), tmp_path / "model.pt")
    assert f"the labels of its head: official dictionaries cannot have {label!r}" in lost
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("kind", ["folder", "other encoding"])
def test_anything_else_in_the_place_of_a_dictionary_is_kept_and_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "label" / "dict.txt"
    path.parent.mkdir()
    path.mkdir() if kind == "folder" else path.write_bytes(b"caf\xe9 1\n")
    head = ClassifierSettings(labels=("good", "bad"), pooling="first", hidden_layer="tanh")
    lost = write_fairseq_checkpoint(trained(small("text/v2-base"), head), tmp_path / "model.pt")
    assert f"the labels of its head: a different dict.txt exists in {path.parent}" in lost
    assert path.is_dir() or path.read_bytes() == b"caf\xe9 1\n"


def test_model_without_tokenizer_has_no_dictionary_and_says_so(tmp_path: Path) -> None:
    lost = write_fairseq_checkpoint(trained(small("text/v2-base")), tmp_path / "model.pt")
    assert "its tokens: it has no tokenizer; official code needs the dict.txt that it was trained with" in lost
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_hidden_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    head = ClassifierSettings(labels=("a", "b"), pooling="first", hidden_layer="tanh", hidden_width=48)
    with pytest.raises(UserError, match=r"head\.hidden_width: 48 is not supported by the official"):
        write_fairseq_checkpoint(trained(small("text/v1-base"), head), tmp_path / "a.pt")
