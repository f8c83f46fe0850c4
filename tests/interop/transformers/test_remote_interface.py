"""What programs built on transformers expect of any model, of the model code in our folders."""

import inspect
import json
from pathlib import Path

import pytest
import torch

import data2vec
from data2vec.interop.transformers.remote import read_remote_folder, write_remote_folder
from data2vec.nn.heads import ClassifierSettings
from helpers.remote_folders import HEADS, batch, made, opened

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("remote_code_in_tmp")

INPUT_NAMES = {"speech": "input_values", "vision": "pixel_values", "text": "input_ids"}


@pytest.fixture(params=INPUT_NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    write_remote_folder(made(kind), tmp_path / "model")
    return tmp_path / "model"


def test_main_input_is_that_of_the_modality_and_of_the_class_its_first_argument(kind: str, folder: Path) -> None:
    model = opened(folder)
    assert model.main_input_name == INPUT_NAMES[kind]
    assert type(model).main_input_name == "input_values" == list(inspect.signature(type(model).forward).parameters)[1]


def test_input_embeddings_can_be_replaced_and_resized_only_for_tokens(kind: str, folder: Path) -> None:
    model = opened(folder)
    assert model.get_input_embeddings() is getattr(model.local_encoder, "tokens" if kind == "text" else "project")
    other = torch.nn.Linear(2, 2)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    if kind != "text":
        with pytest.raises(TypeError, match="which is not an instance of"):
            opened(folder).resize_token_embeddings(70)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("which", ["speech", "speech-tokens", "vision-tables", "text", "text-conv", "text-alibi"])
def test_eager_attention_equals_sdpa_and_returns_weights_that_sum_to_one(which: str, padded: bool, tmp_path: Path) -> None:
    write_remote_folder(made(which), tmp_path / "model")
    model = opened(tmp_path / "model")
    _, given = batch(which, padded)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
        out = model(**given, output_attentions=True)
        model.set_attn_implementation("eager")
        eager = model(**given).last_hidden_state
    assert out.last_hidden_state.equal(eager)
    torch.testing.assert_close(eager, expected, atol=1e-5, rtol=1e-5)
    length = expected.shape[1] + model.config.extra_tokens
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, model.config.num_attention_heads, length, length)] * 3
    for weights in out.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if padded and which != "vision-tables":
        assert (out.attentions[0][1, :, :, -1] == 0).all()


def test_unsupported_attention_and_selection_of_layers_are_refused(folder: Path, kind: str) -> None:
    model = opened(folder)
    _, given = batch(kind)
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        opened(folder, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match=r"output_hidden_states: \[1\] is not supported"):
        model(**given, output_hidden_states=[1])


@pytest.mark.parametrize("which", ["speech", "speech-tokens", "vision", "vision-tables", "text"])
def test_hidden_states_and_attentions_get_gradients(which: str, tmp_path: Path) -> None:
    write_remote_folder(made(which), tmp_path / "model")
    model = opened(tmp_path / "model", attn_implementation="eager")
    out = model(**batch(which)[1], output_hidden_states=True, output_attentions=True)
    for value in (*out.hidden_states, *out.attentions):
        value.retain_grad()
    out.last_hidden_state[:, 0].sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in (*out.hidden_states, *out.attentions))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_trains_adapters_on_a_frozen_model(kind: str, folder: Path, use_reentrant: bool) -> None:
    """As PEFT does: only a weight in each block is trained, so the input of the first block must be made to need a gradient."""
    gradients = []
    for checkpointing in (False, True):
        model = opened(folder).train().requires_grad_(False)
        trained = [block.attention.qkv.weight.requires_grad_() for block in model.transformer.blocks]
        if checkpointing:
            # Its name before transformers 5.2x, and since.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(**batch(kind)[1]).last_hidden_state.square().mean().backward()
        gradients.append([weight.grad for weight in trained])
    for with_checkpointing, without in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(with_checkpointing, without)


@pytest.mark.parametrize(("which", "auto"), [("text", "TokenClassification"), ("speech", "AudioFrameClassification")])
def test_labels_of_positions_are_learned_and_the_encoder_comes_back(
    which: str, auto: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    write_remote_folder(made(which), tmp_path / "model")
    model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
        tmp_path / "model", trust_remote_code=True, num_labels=3
    )
    _, given = batch(which, padded=True)
    logits = model.eval()(**given).logits
    labels = torch.arange(logits[..., 0].numel()).view(logits.shape[:2]) % 3
    loss = model(**given, labels=labels.index_fill(1, torch.tensor([0]), -100)).loss
    frames = [logits.shape[1], 13 if which == "text" else 34]
    valid = torch.arange(logits.shape[1]) < torch.tensor(frames)[:, None]
    valid[:, 0] = False
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[valid], labels[valid]))

    model.config.problem_type = "multi_label_classification"
    several = torch.nn.functional.one_hot(labels, 3).float()
    valid[:, 0] = True
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[valid], several[valid])
    torch.testing.assert_close(model(**given, labels=several).loss, expected)
    with pytest.raises(ValueError, match=r"labels have shape \(2,\), but the logits need"):
        model(**given, labels=labels[:, 0])

    model.save_pretrained(tmp_path / "tuned")
    with caplog.at_level("WARNING"):
        back = read_remote_folder(tmp_path / "tuned")
    assert f"unsupported head of Data2Vec2For{auto}; only the encoder is loaded" in caplog.text
    assert back.head is None and back.encoder.state_dict().keys() == made(which).encoder.state_dict().keys()


def test_masked_language_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    write_remote_folder(made("text"), tmp_path / "model")
    with pytest.raises(ValueError, match="pre-training predicts vectors, not tokens"):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", trust_remote_code=True)


def test_images_fine_tuned_by_transformers_come_back_with_their_head(tmp_path: Path) -> None:
    write_remote_folder(made("vision"), tmp_path / "model")
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", trust_remote_code=True, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}
    )
    images = batch("vision")[1]["pixel_values"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(images, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "tuned")
    back = data2vec.load(tmp_path / "tuned")
    assert back.head is not None
    assert back.head.settings == ClassifierSettings(labels=("cat", "dog"), norm_eps=1e-6)
    with torch.no_grad():
        logits = back.head(*back.encoder(batch("vision")[0]))
        torch.testing.assert_close(model.eval()(images).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "since"),
    [("text", ("text_positions", "position_depth", "position_kernel", "position_groups")), ("sound", ("position_scale",))],
)
def test_folder_written_before_there_were_some_settings_is_read(kind: str, since: tuple[str, ...], tmp_path: Path) -> None:
    model = made(kind)
    write_remote_folder(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for name in since:
        del config[name]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    found = read_remote_folder(tmp_path / "model").recipe
    assert found == model.recipe if kind == "text" else found.modality.position_scale == 1  # type: ignore[attr-defined]


def test_heads_have_tuple_outputs_too(tmp_path: Path) -> None:
    kind, settings = HEADS["image"]
    write_remote_folder(made(kind, settings), tmp_path / "model")
    model = opened(tmp_path / "model", "AutoModelForImageClassification")
    images = batch(kind)[1]["pixel_values"]
    with torch.no_grad():
        expected, (logits,) = model(images).logits, model(images, return_dict=False)
    assert logits.equal(expected)
