"""Version 1 as folders of transformers: the same numbers there and here, both ways, and nothing lost on the way."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import data2vec
from data2vec.batch import Batch
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.interop.transformers.folder import write_transformers_folder
from data2vec.interop.transformers.native import write_native_folder
from data2vec.model import Model, blank_model
from data2vec.nn.heads import CTC, ClassifierSettings, CTCSettings
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 32, "encoder.heads": 4, "encoder.ffn_width": 64, "encoder.layers": 3}
OWN = {
    "speech": {"modality.conv_layers": [[16, 10, 5], [16, 3, 2], [16, 2, 2]], "modality.position_depth": 2,
               "modality.position_kernel": 4, "modality.position_groups": 4, "modality.conv_bias": True},
    "vision": {"modality.image": 40, "modality.patch": 8},
    "text": {"modality.vocab_size": 300, "modality.max_length": 40, "encoder.activation": "relu"},
}  # fmt: skip
THREE = ("no", "yes", "perhaps")
POOLED = {"encoder.final_norm": False}
HEADS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    "speech": ("speech", "Data2VecAudioModel", {}, None),
    "ctc": ("speech", "Data2VecAudioForCTC", {}, CTCSettings(labels=("<pad>", "<s>", "</s>", "<unk>", "|", "A"))),
    "plain": ("speech", "Data2VecAudioForSequenceClassification", {}, ClassifierSettings(labels=THREE)),
    "projected": (
        "speech",
        "Data2VecAudioForSequenceClassification",
        {"modality.mask_vector": False},
        ClassifierSettings(labels=THREE, hidden_layer="linear", hidden_width=24),
    ),
    "square": ("speech", "Data2VecAudioForSequenceClassification", {}, ClassifierSettings(labels=THREE, hidden_layer="linear")),
    "vision": ("vision", "Data2VecVisionModel", {}, None),
    "unnormed": ("vision", "Data2VecVisionModel", {**POOLED, "encoder.layer_scale": None, "modality.mask_vector": False}, None),
    "pictures": ("vision", "Data2VecVisionForImageClassification", POOLED, ClassifierSettings(labels=THREE, norm_eps=1e-6)),
    "tables": (
        "vision",
        "Data2VecVisionForImageClassification",
        {**POOLED, "modality.position_tables": 3},
        ClassifierSettings(labels=THREE, norm_eps=1e-6, problem_type="multi_label_classification"),
    ),
    "text": ("text", "Data2VecTextModel", {}, None),
    "sentences": (
        "text",
        "Data2VecTextForSequenceClassification",
        {},
        ClassifierSettings(labels=THREE, pooling="first", hidden_layer="tanh", hidden_width=32),
    ),
    "score": (
        "text",
        "Data2VecTextForSequenceClassification",
        {},
        ClassifierSettings(labels=("likeness",), pooling="first", hidden_layer="tanh", problem_type="regression"),
    ),
}
EVERY = pytest.mark.parametrize("which", HEADS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), folder)
    return folder


def jolt(module: Any) -> Any:
    """Random values everywhere, norms and tables included, so that no mix-up goes unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make(which: str, tokenizer: Path, more: dict[str, Any] | None = None) -> Model:
    modality, _, changes, head = HEADS[which]
    text = {"data.tokenizer": str(tokenizer)} if modality == "text" else {}
    return built(modality, {**changes, **text, **(more or {})}, head)


def built(modality: str, changes: dict[str, Any], head: CTCSettings | ClassifierSettings | None = None) -> Model:
    model = blank_model(load_recipe(f"{modality}/v1-base", SMALL | OWN[modality] | changes), head)
    jolt(model.encoder)
    if model.head is not None:
        jolt(model.head)
    return replace(model, source="a test", license="mit")


def inputs(modality: str, padded: bool) -> tuple[Batch, dict[str, Tensor]]:
    """A batch of ours and the same as theirs."""
    generator = torch.Generator().manual_seed(1)
    if modality == "vision":
        image = torch.randn(2, 3, 40, 40, generator=generator)
        return Batch(image), {"pixel_values": image}
    length, there = (1000, (1000, 700)) if modality == "speech" else (20, (20, 13))
    padding = torch.arange(length) >= torch.tensor(there if padded else (length, length))[:, None]
    if modality == "speech":
        given, name = torch.randn(2, length, generator=generator).masked_fill(padding, 0), "input_values"
    else:
        given, name = torch.randint(4, 299, (2, length), generator=generator).masked_fill(padding, 1), "input_ids"
    ours = Batch(given, padding=padding if padded else None)
    return ours, {name: given, **({"attention_mask": (~padding).long()} if padded else {})}


@torch.no_grad()
def agree(model: Model, theirs: Any, padded: bool) -> None:
    """Hidden states where something is, and logits."""
    ours, given = inputs(model.recipe.modality.name, padded)  # type: ignore[attr-defined]
    hidden, padding = model.encoder(ours)
    out = theirs(**given, output_hidden_states=True)
    if model.head is None:
        other = out.last_hidden_state
    else:
        logits = model.head(hidden, padding)
        if logits.ndim == 3 and padding is not None:
            torch.testing.assert_close(logits[~padding], out.logits[~padding], atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
        other = out.hidden_states[-1]
    other = other[:, model.recipe.encoder.extra_tokens :]
    there = torch.ones(hidden.shape[:2], dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(hidden[there], other[there], atol=1e-5, rtol=1e-5)


def opened(folder: Path, name: str) -> Any:
    """Theirs, all of whose weights must have come from the folder, and all of the folder's be used."""
    more = {"add_pooling_layer": False} if name == "Data2VecTextModel" else {}
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **more)
    assert not any(info.values()), info
    return model.eval()


def same(ours: Model, other: Model) -> None:
    """Bit for bit."""
    for part in ("encoder", "head"):
        mine, theirs = getattr(ours, part), getattr(other, part)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            mine, theirs = dict(mine.named_parameters()), dict(theirs.named_parameters())
            assert mine.keys() == theirs.keys()
            assert all(mine[name].equal(theirs[name]) for name in mine)
    without = {"data.tokenizer": None}
    assert ours.recipe.flat() | without == other.recipe.flat() | without
    assert (ours.source, ours.license) == (other.source, other.license)
    if ours.head is not None and other.head is not None:
        assert ours.head.settings == other.head.settings


@pytest.mark.parametrize("padded", [False, True])
@EVERY
def test_written_folder_gives_equal_outputs_in_transformers(which: str, padded: bool, tokenizer: Path, tmp_path: Path) -> None:
    model = make(which, tokenizer)
    assert write_transformers_folder(model, tmp_path / "theirs") == []
    theirs = opened(tmp_path / "theirs", HEADS[which][1])
    agree(model, theirs, padded)


@EVERY
def test_round_trip_loses_nothing(which: str, tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make(which, tokenizer, {"train.lr": 0.123, "encoder.dropout": 0.07, "encoder.attention_dropout": 0.03})
    write_transformers_folder(model, tmp_path / "theirs")
    same(model, data2vec.load(tmp_path / "theirs"))
    assert caplog.records == []
    assert "library_name: transformers" in (tmp_path / "theirs" / "README.md").read_text()


def test_identity_projector_is_kept_only_if_the_head_has_a_hidden_layer(tokenizer: Path, tmp_path: Path) -> None:
    model = make("square", tokenizer)
    model.head.hidden.weight.copy_(torch.eye(32))  # type: ignore[union-attr, operator]
    model.head.hidden.bias.zero_()  # type: ignore[union-attr, operator]
    write_transformers_folder(model, tmp_path / "theirs")
    same(model, data2vec.load(tmp_path / "theirs"))


@EVERY
def test_code_of_the_model_card_runs_as_printed(
    which: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(which, tokenizer)
    write_transformers_folder(model, tmp_path / "theirs")
    code = (tmp_path / "theirs" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "theirs")
    with torch.no_grad():
        exec(code, names)
    assert names["output"].shape[-1] == (32 if model.head is None else model.head.out.out_features)
    assert which != "ctc" or len(names["texts"]) == 1


CONFIGS: dict[str, dict[str, Any]] = {
    "Data2VecAudio": {
        **{"conv_dim": (16,) * 3, "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 2},
        **{"conv_pos_kernel_size": 4, "num_conv_pos_embedding_groups": 4, "vocab_size": 6, "classifier_proj_size": 24},
    },
    "Data2VecVision": {"image_size": [40, 40], "patch_size": 8, "layer_norm_eps": 1e-6, "use_relative_position_bias": True},
    "Data2VecText": {"vocab_size": 300, "max_position_embeddings": 42, "layer_norm_eps": 1e-5},
}
SHARED = {"use_relative_position_bias": False, "use_shared_relative_position_bias": True}
MADE: dict[str, dict[str, Any]] = {
    "Data2VecAudioModel": {},
    "Data2VecAudioForCTC": {"pad_token_id": 4, "mask_time_prob": 0.0},
    "Data2VecAudioForSequenceClassification": {"num_labels": 3},
    "Data2VecVisionModel": {**SHARED, "use_mean_pooling": False},
    "Data2VecVisionForImageClassification": {
        "id2label": {0: "a", 1: "b"},
        "use_mask_token": True,
        "layer_scale_init_value": 0.0,
    },
    "Data2VecTextModel": {},
    "Data2VecTextForSequenceClassification": {"num_labels": 1},
}


def made(name: str, changes: dict[str, Any]) -> Any:
    """Of transformers, with random weights."""
    family = next(family for family in CONFIGS if name.startswith(family))
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, family + "Config")(**{**sizes, **CONFIGS[family], **changes})
    return jolt(getattr(transformers, name)(config))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_folder_of_transformers_gives_the_same_outputs_here(name: str, padded: bool, tmp_path: Path) -> None:
    theirs = made(name, MADE[name])
    theirs.save_pretrained(tmp_path)
    model = data2vec.load(tmp_path)
    if name.endswith("CTC"):
        assert isinstance(model.head, CTC)
        assert model.head.settings.labels == ("4", "0", "1", "2", "3", "5")  # the blank comes first
        order = [4, 0, 1, 2, 3, 5]
        theirs.lm_head.weight.data, theirs.lm_head.bias.data = (x.data[order] for x in theirs.lm_head.parameters())
    agree(model, theirs, padded)


def change(folder: Path, **changes: Any) -> None:
    """Of the settings in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_unsupported_parts_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = made("Data2VecTextForTokenClassification", {"type_vocab_size": 2})
    theirs.save_pretrained(tmp_path)
    model = data2vec.load(tmp_path)
    assert model.head is None
    ours, given = inputs("text", padded=True)
    with torch.no_grad():
        expected = theirs.data2vec_text(**given).last_hidden_state
    there = ~ours.padding
    torch.testing.assert_close(model.encoder(ours)[0][there], expected[there], atol=1e-5, rtol=1e-5)
    head, unknown = [record.getMessage() for record in caplog.records]
    assert head.endswith("unsupported head of Data2VecTextForTokenClassification; only the encoder is loaded")
    assert unknown.endswith(
        "unknown weights: classifier.bias, classifier.weight, data2vec_text.embeddings.token_type_embeddings.weight"
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Data2VecAudioForSequenceClassification", {"use_weighted_layer_sum": True}),
        ("Data2VecVisionForImageClassification", {"use_mean_pooling": False}),
    ],
)
def test_head_with_unsupported_pooling_is_ignored(
    name: str, changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(name, changes).save_pretrained(tmp_path)
    assert data2vec.load(tmp_path).head is None
    assert f"unsupported head of {name}" in caplog.text


def test_pretrained_image_model_fine_tuned_with_mean_pooling_comes_back_with_its_head(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_transformers_folder(make("vision", tokenizer), tmp_path / "theirs")
    for pooling in (False, True):  # False is what the folder says, since AutoModel needs the final norm
        more = {"use_mean_pooling": True} if pooling else {}
        tuned = transformers.Data2VecVisionForImageClassification.from_pretrained(
            tmp_path / "theirs", id2label={0: "cat", 1: "dog"}, **more
        )
        tuned.save_pretrained(tmp_path / f"tuned-{pooling}")
    assert data2vec.load(tmp_path / "tuned-False").head is None
    assert "it reads the CLS token; fine-tune with use_mean_pooling=True); only the encoder is loaded" in caplog.text
    back = data2vec.load(tmp_path / "tuned-True")
    assert back.head is not None
    assert back.head.settings.labels == ("cat", "dog")
    ours, given = inputs("vision", padded=False)
    with torch.no_grad():
        expected = tuned.eval()(**given).logits
        torch.testing.assert_close(back.head(*back.encoder(ours)), expected, atol=1e-5, rtol=1e-5)


def test_folder_without_stored_recipe_gets_the_released_one(tmp_path: Path) -> None:
    theirs = made("Data2VecAudioModel", {"hidden_size": 1024, "num_attention_heads": 16, "layerdrop": 0.03})
    theirs.save_pretrained(tmp_path)
    recipe = data2vec.load(tmp_path).recipe
    released = load_recipe("speech/v1-large")
    assert (recipe.train, recipe.data) == (released.train, released.data)
    assert (recipe.encoder.layers, recipe.encoder.layerdrop, recipe.objective.target.top_k) == (3, 0.03, 3)  # type: ignore[union-attr]


def test_transformers_settings_override_the_stored_recipe(tokenizer: Path, tmp_path: Path) -> None:
    write_transformers_folder(make("vision", tokenizer), tmp_path / "theirs")
    change(tmp_path / "theirs", layer_norm_eps=1e-12, drop_path_rate=0.5)
    (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    recipe = data2vec.load(tmp_path / "theirs").recipe
    assert (recipe.encoder.norm_eps, recipe.encoder.drop_path) == (1e-12, 0.5)
    change(tmp_path / "theirs", num_hidden_layers=2)
    assert len(data2vec.load(tmp_path / "theirs").encoder.transformer.blocks) == 2


@pytest.mark.parametrize("size", ["1GB", "20KB"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_are_read_from_safetensors_and_pickle_sharded_or_not(kind: str, size: str, tmp_path: Path) -> None:
    theirs = made("Data2VecTextModel", {"architectures": None})
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    expected = data2vec.load(tmp_path)
    if kind == "bin":
        pytest.importorskip("data2vec.interop.safe_load")
        for path in tmp_path.glob("*.safetensors"):
            name = path.name.replace("model", "pytorch_model").replace("safetensors", "bin")
            torch.save(load_file(path), tmp_path / name)
            path.unlink()
        for path in tmp_path.glob("*.index.json"):
            content = path.read_text().replace("model-", "pytorch_model-").replace("safetensors", "bin")
            (tmp_path / "pytorch_model.bin.index.json").write_text(content)
            path.unlink()
    assert (len(list(tmp_path.glob("*.index.json"))) == 1) == (size == "20KB")
    same(expected, data2vec.load(tmp_path))


def test_omitted_parts_are_listed(tokenizer: Path, tmp_path: Path) -> None:
    model = make("speech", tokenizer, {"modality.position_padding": "zero_every_layer"})
    model = replace(model, pretraining={"teacher.ema.a": torch.zeros(1), "head.0.weight": torch.zeros(1)})
    teacher, head, padding = write_transformers_folder(model, tmp_path / "theirs")
    assert (teacher, head) == ("the teacher", "the prediction head")
    assert padding.startswith("modality.position_padding: zero_every_layer (")
    assert data2vec.load(tmp_path / "theirs").recipe == model.recipe


@pytest.mark.parametrize(
    ("modality", "key", "value", "only"),
    [
        ("speech", "encoder.norm", "pre", "Data2VecAudio supports post only"),
        ("speech", "encoder.input_norm", False, "Data2VecAudio supports true only"),
        ("speech", "encoder.final_norm", True, "Data2VecAudio supports false only"),
        ("speech", "encoder.norm_eps", 1e-6, "Data2VecAudio supports 1e-05 only"),
        ("speech", "encoder.extra_tokens", 1, "Data2VecAudio supports 0 only"),
        ("speech", "encoder.key_bias", False, "Data2VecAudio supports true only"),
        ("speech", "encoder.layer_scale", 0.1, "Data2VecAudio supports null only"),
        ("speech", "modality.conv_norm", "group", "Data2VecAudio supports layer only"),
        ("speech", "modality.alibi", True, "Data2VecAudio supports false only"),
        ("text", "encoder.norm", "pre", "Data2VecText supports post only"),
        ("text", "encoder.input_norm", True, "Data2VecText supports false only"),
        ("text", "modality.scale_embedding", True, "Data2VecText supports false only"),
        ("text", "modality.embedding_norm", False, "Data2VecText supports true only"),
        ("vision", "encoder.norm", "post", "Data2VecVision supports pre only"),
        ("vision", "encoder.input_norm", True, "Data2VecVision supports false only"),
        ("vision", "encoder.extra_tokens", 0, "Data2VecVision supports 1 only"),
        ("vision", "encoder.key_bias", True, "Data2VecVision supports false only"),
        ("vision", "modality.positions", "sincos", "Data2VecVision supports relative only"),
        ("vision", "modality.stem", "conv", "Data2VecVision supports patch only"),
        ("text", "modality.positions", "alibi", "Data2VecText supports learned only"),
    ],
)
def test_unsupported_setting_is_refused_by_name(modality: str, key: str, value: Any, only: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{key}: {json.dumps(value).strip(chr(34))} cannot be written .*: {only}$"):
        write_native_folder(built(modality, {key: value}), tmp_path / "theirs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modality", "changes", "head", "message"),
    [
        ("speech", {}, ClassifierSettings(labels=THREE, pooling="first"), "head.pooling: first"),
        ("speech", {}, ClassifierSettings(labels=THREE, hidden_layer="tanh"), "head.hidden_layer: tanh"),
        ("speech", {}, ClassifierSettings(labels=THREE, norm_eps=1e-5), "head.norm_eps: 1e-05"),
        ("speech", {}, ClassifierSettings(labels=("yes",)), "head.problem_type: single_label_classification"),
        ("text", {}, CTCSettings(labels=THREE), "head.name: ctc"),
        ("text", {}, ClassifierSettings(labels=THREE, hidden_layer="tanh"), "head.pooling: mean"),
        ("text", {}, ClassifierSettings(labels=THREE, pooling="first"), "head.hidden_layer: null"),
        (
            "text",
            {},
            ClassifierSettings(labels=THREE, pooling="first", hidden_layer="tanh", hidden_width=8),
            "head.hidden_width: 8",
        ),
        ("vision", POOLED, ClassifierSettings(labels=THREE), "head.norm_eps: null"),
        ("vision", POOLED, ClassifierSettings(labels=THREE, norm_eps=1e-5), "head.norm_eps: 1e-05"),
        ("vision", POOLED, ClassifierSettings(labels=THREE, norm_eps=1e-6, hidden_layer="linear"), "head.hidden_layer: linear"),
        ("vision", {}, ClassifierSettings(labels=THREE, norm_eps=1e-6), "encoder.final_norm: true"),
    ],
)
def test_unsupported_head_is_refused_by_name(
    modality: str, changes: dict[str, Any], head: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^{message} cannot be written for transformers: "):
        write_native_folder(built(modality, changes, head), tmp_path / "theirs")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Data2VecAudioModel", {"model_type": "wav2vec2"}, "model_type: 'wav2vec2' is not supported, only data2vec-audio, "),
        ("Data2VecAudioModel", {"add_adapter": True}, "add_adapter: True is not supported, only False"),
        ("Data2VecAudioModel", {"layer_norm_eps": 1e-6}, "layer_norm_eps: 1e-06 is not supported, only 1e-05"),
        ("Data2VecAudioModel", {"hidden_act": "gelu_new"}, "encoder.activation: should be 'gelu' or 'relu'"),
        ("Data2VecAudioModel", {"conv_dim": [16, 16]}, "config.json: zip() argument"),
        ("Data2VecAudioModel", {"data2vec": {"recipe": {"modality": {"name": "speech"}}}}, "config.json is damaged"),
        ("Data2VecAudioModel", {"num_hidden_layers": 4}, "weights are missing: encoder.layers.3.attention.k_proj.bias, "),
        ("Data2VecAudioModel", {"intermediate_size": 32}, "encoder.layers.0.feed_forward.intermediate_dense.weight has shape "),
        ("Data2VecAudioForCTC", {"pad_token_id": 6}, "pad_token_id: 6 is not one of the 6 labels"),
        ("Data2VecTextModel", {"pad_token_id": 0}, "pad_token_id: 0 is not supported, only 1"),
        ("Data2VecVisionModel", {"use_relative_position_bias": False}, "exactly one of them must be true"),
    ],
)
def test_unsupported_config_is_refused(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    made(name, {}).save_pretrained(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        data2vec.load(tmp_path)


def test_damaged_or_missing_file_is_named(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    write_transformers_folder(make("plain", tokenizer), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if not name.startswith("classifier")}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"weights of the head are missing: classifier\.weight"):
        data2vec.load(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        data2vec.load(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with pytest.raises(UserError, match=r"no weights; expected model\.safetensors or pytorch_model\.bin"):
        data2vec.load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"model-2\.safetensors is missing"):
        data2vec.load(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        data2vec.load(folder)


def test_unsupported_version_1_model_is_written_with_model_code(tmp_path: Path) -> None:
    model = built("speech", {"encoder.norm": "pre", "encoder.final_norm": True, "encoder.input_norm": False})
    words = write_transformers_folder(model, tmp_path / "theirs")
    assert words[0].startswith("a class of transformers (encoder.norm: pre cannot be written")
    back = data2vec.load(tmp_path / "theirs")
    assert back.recipe == model.recipe
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(back.encoder.state_dict()[name], weight)
