"""What transformers makes of our folders of version 2, by the code in them alone: the same numbers, and the way back."""

import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import data2vec
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.interop.transformers.remote import read_remote_folder, write_remote_folder
from data2vec.model import Model, blank_model
from data2vec.nn.heads import ClassifierSettings, CTCSettings, head_input
from data2vec.recipe.loading import load_recipe
from helpers.remote_folders import AUTO, HEADS, KINDS, batch, made, opened

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("remote_code_in_tmp")


def equal(one: Model, other: Model) -> bool:
    ours, theirs = one.encoder.state_dict(), other.encoder.state_dict()
    if one.head is not None and other.head is not None:
        ours, theirs = {**ours, **one.head.state_dict()}, {**theirs, **other.head.state_dict()}
    return ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_equal_those_of_the_encoder(kind: str, padded: bool, tmp_path: Path) -> None:
    model = made(kind)
    write_remote_folder(model, tmp_path / "model")
    theirs = opened(tmp_path / "model")
    ours, given = batch(kind, padded)
    with torch.no_grad():
        last, padding = model.encoder(ours)
        states = [output.block for output in model.encoder.block_outputs(*model.encoder.local_encoder(ours))]
        out = theirs(**given, output_hidden_states=True)
    there = torch.ones(last.shape[:2], dtype=torch.bool) if padding is None else ~padding
    assert len(out.hidden_states) == 4
    for mine, other in zip((*states, last), (*out.hidden_states[1:], out.last_hidden_state), strict=True):
        torch.testing.assert_close(other[there], mine[there], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["speech", "speech-tokens", "text", "text-pre", "text-conv", "text-alibi"])
def test_output_does_not_depend_on_padding(kind: str, tmp_path: Path) -> None:
    write_remote_folder(made(kind), tmp_path / "model")
    model = opened(tmp_path / "model")
    _, given = batch(kind, padded=True)
    name, mask = model.main_input_name, given["attention_mask"]
    with torch.no_grad():
        alone = model(given[name][1:, : mask[1].sum()]).last_hidden_state[0]
        together = model(**given).last_hidden_state[1, : len(alone)]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", HEADS)
def test_fine_tuned_model_gives_equal_logits_and_survives_the_round_trip(case: str, padded: bool, tmp_path: Path) -> None:
    kind, settings = HEADS[case]
    model = made(kind, settings)
    lost = write_remote_folder(model, tmp_path / "model")
    assert lost[:2] == ["the teacher", "the decoder"]
    assert [each.partition(":")[0] for each in lost[2:]] == ["the masking of padding"] * (kind == "sound")
    theirs = opened(tmp_path / "model", f"AutoModelFor{AUTO[case]}")
    ours, given = batch(kind, padded)
    with torch.no_grad():
        x, padding = head_input(model.encoder, model.head, ours)  # type: ignore[arg-type]
        logits, other = model.head(x, padding), theirs(**given).logits  # type: ignore[misc]
    if case.startswith("ctc") and padding is not None:
        assert (other[padding].argmax(-1) == 0).all()
        logits, other = logits[~padding], other[~padding]
    torch.testing.assert_close(other, logits, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("model", "theirs"):
        back = read_remote_folder(tmp_path / folder)
        assert equal(back, model)
        assert back.recipe == model.recipe
        assert (back.source, back.license) == ("a test", "mit")
        assert back.head is not None
        assert back.head.settings == settings
    opened(tmp_path / "theirs", f"AutoModelFor{AUTO[case]}")


def test_model_without_head_survives_the_round_trip(tmp_path: Path) -> None:
    for kind in KINDS:
        model = made(kind)
        write_remote_folder(model, tmp_path / "model")
        opened(tmp_path / "model").save_pretrained(tmp_path / "theirs")
        for folder in ("model", "theirs"):
            back = read_remote_folder(tmp_path / folder)
            assert equal(back, model) and back.recipe == model.recipe and back.head is None, kind


@pytest.mark.parametrize("case", HEADS)
def test_training_lowers_the_loss(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, settings = HEADS[case]
    write_remote_folder(made(kind, settings), tmp_path / "model")
    model = opened(tmp_path / "model", f"AutoModelFor{AUTO[case]}").train()
    # Its name before transformers 5.2x, and since.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    _, given = batch(kind, padded=True)
    several, words = [[0.0, 1.0], [1.0, 0.0]], [[2, 3, 4], [3, -100, -100]]
    by_case = {"ctc": words, "ctc-mixed": words, "text": [[0.5], [-0.5]], "many": several, "events": several}
    labels = by_case.get(case, [1, 0])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = model(**given, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    if case == "ctc":
        model.freeze_feature_encoder()
        assert not any(parameter.requires_grad for parameter in model.encoder.local_encoder.conv.parameters())
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if settings.weighted_layers:  # of the outputs of blocks, before the final norm
        unused = [name for name in unused if "final_norm" not in name]
    assert unused == (["encoder.local_encoder.mask_vector"] if kind in ("speech-tokens",) else [])


def test_ctc_loss_of_a_padded_batch_equals_that_of_each_row(tmp_path: Path) -> None:
    kind, settings = HEADS["ctc"]
    write_remote_folder(made(kind, settings), tmp_path / "model")
    model = opened(tmp_path / "model", "AutoModelForCTC")
    _, given = batch(kind, padded=True)
    labels = torch.tensor([[2, 3, 4], [3, 0, -100]])
    with torch.no_grad():
        logits, loss = model(**given, labels=labels).to_tuple()[1::-1]
    rows = zip(logits, (49, 34), ([2, 3, 4], [3]), strict=True)
    each = [
        torch.nn.functional.ctc_loss(row[:frames].log_softmax(-1), torch.tensor(text), [frames], [len(text)], reduction="sum")
        / len(text)
        for row, frames, text in rows
    ]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_head_added_by_transformers_is_read_with_its_labels(tmp_path: Path, caplog: Any) -> None:
    model = made("text")
    write_remote_folder(model, tmp_path / "model")
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", trust_remote_code=True, id2label={0: "bad", 1: "good", 2: "so so"}
    )
    assert {float(x.detach().std()) > 0 for x in (tuned.head.out.weight, tuned.head.hidden.weight)} == {True}
    with torch.no_grad():
        tuned.encoder.transformer.blocks[0].ffn[0].bias.add_(1)
    tuned.save_pretrained(tmp_path / "tuned")
    back = read_remote_folder(tmp_path / "tuned")
    assert back.head is not None
    assert back.head.settings == ClassifierSettings(labels=("bad", "good", "so so"), pooling="first", hidden_layer="tanh")
    assert back.recipe == model.recipe
    ours, given = batch("text", padded=True)
    with torch.no_grad():
        logits = back.head(*back.encoder(ours))
        torch.testing.assert_close(logits, tuned.eval()(**given).logits, atol=1e-5, rtol=1e-5)

    speech = made("speech")
    write_remote_folder(speech, tmp_path / "speech")
    tuned = transformers.AutoModelForCTC.from_pretrained(
        tmp_path / "speech", trust_remote_code=True, vocab_size=4, pad_token_id=3
    )
    tuned.save_pretrained(tmp_path / "tuned-speech")
    with caplog.at_level(logging.WARNING):
        back = read_remote_folder(tmp_path / "tuned-speech")
    assert "the head has 4" in caplog.text
    assert back.head is not None
    assert back.head.settings == CTCSettings(labels=("LABEL_3", "LABEL_0", "LABEL_1", "LABEL_2"))
    assert back.head.out.weight.equal(tuned.head.out.weight[[3, 0, 1, 2]])


def test_tokenizer_of_the_folder_gives_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), tmp_path / "tokenizer")
    monkeypatch.setitem(KINDS["text"][1], "vocab_size", 300)
    model = made("text", data={"tokenizer": str(tmp_path / "tokenizer"), "block_size": 24})
    write_remote_folder(model, tmp_path / "model")
    theirs, tokenizer = opened(tmp_path / "model"), transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["a text", "nothing about a small text"]
    with torch.no_grad():
        out = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state
    for by in (model, data2vec.load(tmp_path / "model")):
        ours = by.features(texts)
        for row, length in enumerate(ours.lengths.tolist()):
            torch.testing.assert_close(out[row, :length], ours.hidden[0, row, :length], atol=1e-5, rtol=1e-5)

    theirs.resize_token_embeddings(310)
    theirs.save_pretrained(tmp_path / "more")
    assert read_remote_folder(tmp_path / "more").encoder.local_encoder.tokens.weight.shape == (310, 32)


def test_new_model_initialises_all_weights(tmp_path: Path) -> None:
    for kind in KINDS:
        write_remote_folder(made(kind), tmp_path / "model")
        config = transformers.AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True)
        fresh = transformers.AutoModel.from_config(config, trust_remote_code=True)
        ones = [p for name, p in fresh.named_parameters() if name.endswith(("norm.weight", "norms.0.weight", "alibi.scale"))]
        assert all(p.equal(torch.ones_like(p)) for p in ones)
        _, given = batch(kind, padded=True)
        assert fresh(**given).last_hidden_state.isfinite().all()


def test_model_runs_in_bf16(tmp_path: Path) -> None:
    for kind in ("speech", "vision", "text"):
        model = made(kind)
        write_remote_folder(model, tmp_path / kind)
        half = opened(tmp_path / kind, dtype=torch.bfloat16)
        ours, given = batch(kind, padded=True)
        with torch.no_grad():
            last, padding = model.encoder(ours)
            other = half(**given).last_hidden_state
        assert other.dtype == torch.bfloat16
        there = torch.ones(last.shape[:2], dtype=torch.bool) if padding is None else ~padding
        assert torch.cosine_similarity(other[there].float(), last[there], dim=-1).min() > 0.99
        half.save_pretrained(tmp_path / "half")
        back = read_remote_folder(tmp_path / "half")
        assert all(
            p.equal(q.bfloat16().float()) for p, q in zip(back.encoder.parameters(), model.encoder.parameters(), strict=True)
        )


@pytest.mark.parametrize("case", ["ctc", "audio", "image", "text", "text pair", "text without tokenizer"])
def test_code_of_the_model_card_runs_as_printed_without_a_question(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, head = HEADS[case.split()[0]]
    data: dict[str, Any] = {}
    if case in ("text", "text pair"):
        (tmp_path / "tokenizer").mkdir()
        save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), tmp_path / "tokenizer")
        monkeypatch.setitem(KINDS["text"][1], "vocab_size", 300)
        data = {"tokenizer": str(tmp_path / "tokenizer")} | ({"second": "sentence2"} if case == "text pair" else {})
    write_remote_folder(made(kind, head, data), tmp_path / "model")
    code = (tmp_path / "model" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "model")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the code asks a question"))
    exec(code, names)
    assert names["output"].shape[-1] == len(head.labels)
    if case == "text pair":  # both texts, as they are joined here: <s> a </s> </s> b </s>
        assert names["inputs"]["input_ids"][0].tolist().count(2) == 3


ALONE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "data2vec":
            raise ImportError(name)

sys.meta_path.insert(0, Block())
import torch, transformers
model = transformers.AutoModelForCTC.from_pretrained(sys.argv[1], trust_remote_code=True)
print(float(model(torch.ones(1, 1000)).logits.abs().sum()) > 0)
"""


def test_folder_opens_without_this_package(tmp_path: Path) -> None:
    write_remote_folder(made(*HEADS["ctc"]), tmp_path / "model")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "home")}
    result = subprocess.run([sys.executable, "-c", ALONE, tmp_path / "model"], capture_output=True, text=True, env=env)
    assert result.stdout.split() == ["True"], result.stderr


def test_wrong_input_missing_weights_and_damaged_config_are_errors(tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "model"
    write_remote_folder(made("vision"), folder)
    with pytest.raises(ValueError, match=r"pixel_values should be \(B, 3, 16, 16\)"):
        opened(folder)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="pass exactly one of"):
        opened(folder)()
    with pytest.raises(ValueError, match="bool_masked_pos: not supported by data2vec2"):
        opened(folder)(torch.zeros(1, 3, 16, 16), bool_masked_pos=True)

    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "pooler.weight": torch.ones(1)}, folder / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        read_remote_folder(folder)
    assert "ignored unknown weights: pooler.weight" in caplog.text
    gone = weights.pop("local_encoder.project.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"weights are missing: local_encoder\.project\.bias"):
        read_remote_folder(folder)
    save_file({**weights, "local_encoder.project.bias": gone[1:]}, folder / "model.safetensors")
    with pytest.raises(UserError, match="do not match the sizes in config"):
        read_remote_folder(folder)

    config = json.loads((folder / "config.json").read_text())
    del config["norm"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"damaged .*norm"):
        read_remote_folder(folder)


def test_unsupported_models_are_refused_and_omitted_parts_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ClassifierSettings(labels=("only",))
    with pytest.raises(UserError, match=r"head\.labels: one label"):
        write_remote_folder(made("vision", one), tmp_path / "model")
    with pytest.raises(UserError, match=r"head\.name: ctc on text"):
        write_remote_folder(made("text", HEADS["ctc"][1]), tmp_path / "model")
    for name, key, value in (("vision/v2-tiny", "modality.stem", "conv"),):
        with pytest.raises(UserError, match=f"^{key}: {value} cannot be written for transformers: its model code has"):
            write_remote_folder(blank_model(load_recipe(name, {key: value})), tmp_path / "model")
    own = SimpleNamespace(settings=SimpleNamespace(name="mine:Seismograph"))
    with pytest.raises(UserError, match=r"modality\.name: mine:Seismograph cannot be written"):
        write_remote_folder(replace(made("text"), modality=own), tmp_path / "model")
    assert not (tmp_path / "model").exists()

    for kind in ("speech", "text-conv"):
        monkeypatch.setitem(KINDS[kind][1], "position_padding", "zero_input")
        assert "position_padding: zero_input" in write_remote_folder(made(kind), tmp_path / kind)[-1]


def test_sound_has_the_spectrogram_of_ast_and_a_head_on_the_class_token(tmp_path: Path) -> None:
    head = ClassifierSettings(labels=("dog", "rain", "rooster"), pooling="class-token", norm_eps=1e-6)
    model = made("sound", head)
    settings = model.recipe.modality.model_copy(update={"mean": -5.0, "std": 4.0, "attend_padding": True, "mask_vector": False})
    recipe = model.recipe.model_copy(update={"modality": settings})
    write_remote_folder(replace(model, recipe=recipe, modality=recipe.build_modality()), tmp_path / "model")
    model = read_remote_folder(tmp_path / "model")
    theirs = opened(tmp_path / "model", "AutoModelForAudioClassification")
    wave = torch.randn(6000, generator=torch.Generator().manual_seed(0)).numpy()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        processor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "model", trust_remote_code=True)
        out = theirs(**processor([wave], sampling_rate=16000, return_tensors="pt"))
        tokens = theirs.encoder(**processor([wave], sampling_rate=16000, return_tensors="pt"))
    torch.testing.assert_close(out.logits, model.logits([wave]).logits, atol=1e-4, rtol=1e-4)
    hidden = model.features([wave]).hidden[0]
    torch.testing.assert_close(tokens.last_hidden_state, hidden, atol=1e-4, rtol=1e-4)
    assert tokens.pooler_output.shape == (1, 32) and model.head is not None and model.head.settings == head


def test_sound_with_another_spectrogram_is_refused(tmp_path: Path) -> None:
    model = made("sound")
    fbank = model.recipe.modality.fbank.model_copy(update={"window": "povey"})  # type: ignore[attr-defined]
    settings = model.recipe.modality.model_copy(update={"fbank": fbank})
    changed = replace(model, recipe=model.recipe.model_copy(update={"modality": settings}))
    changed = replace(changed, modality=changed.recipe.build_modality())
    with pytest.raises(UserError, match=r"modality.fbank.window: cannot be written for transformers"):
        write_remote_folder(changed, tmp_path / "model")
