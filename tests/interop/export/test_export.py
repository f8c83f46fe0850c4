"""Exported files give what the model gives, for inputs and batches of other sizes than they were exported with."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import data2vec
from data2vec import cli
from data2vec.batch import Batch
from data2vec.errors import RunStopped, UserError
from data2vec.interop.export.export import _difference
from data2vec.interop.export.graph import Graph, RawInputs, build_graph
from data2vec.model import Model, blank_model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import ClassifierSettings, CTCSettings, build_head
from data2vec.recipe.loading import load_recipe

onnxruntime = pytest.importorskip("onnxruntime")
LABELS = ("ä", "b", "c")
CTC, CLASSIFIER = CTCSettings(labels=LABELS), ClassifierSettings(labels=LABELS)
FIRST = ClassifierSettings(labels=LABELS, pooling="first")
SMALL = {"encoder.width": 32, "encoder.layers": 2, "encoder.ffn_width": 48}
SHORT = {"modality.conv_layers": [[16, 10, 5], [16, 3, 2]]}
"""A feature extractor with a receptive field of 20 samples and a stride of 10."""


def made(name: str, head: Any = None, **changes: Any) -> Model:
    """A small model with random values everywhere, norms and biases included."""
    modality_changes = {f"modality.{key}": value for key, value in changes.items()}
    recipe = load_recipe(name, SMALL | (SHORT if name.startswith("speech") else {}) | modality_changes)
    modality = recipe.build_modality()
    torch.manual_seed(0)
    encoder = build_encoder(modality, recipe.encoder).eval()
    on_top = None if head is None else build_head(head, 32).eval()
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *(on_top.parameters() if on_top is not None else ())]:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return Model(encoder, modality, recipe, on_top)


def inputs(name: str, sizes: tuple[int, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """What the file is given, with rubbish for padding where padding may be anything; and what the encoder is, row by row."""
    generator = torch.Generator().manual_seed(len(sizes))
    if name.startswith("vision"):
        image = torch.randint(256, (len(sizes), 3, 32, 32), generator=generator, dtype=torch.uint8)
        return (image,), list(image)
    lengths = torch.tensor(sizes)
    if name.startswith("text"):
        ids = torch.randint(4, 4000, (len(sizes), max(sizes)), generator=generator)
        return (ids, lengths), [row[:size] for row, size in zip(ids, sizes, strict=True)]
    waveform = 0.3 + torch.randn(len(sizes), max(sizes), generator=generator)
    own = [row[:size] for row, size in zip(waveform, sizes, strict=True)]
    return (waveform, lengths), [(row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() for row in own]


def ran(file: Path, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(*given)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
    return {each.name: torch.from_numpy(value) for each, value in zip(session.get_outputs(), found, strict=True)}


@pytest.mark.parametrize(
    ("name", "form", "head", "changes"),
    [
        pytest.param("speech/v1-tiny", "onnx", CTC, {}, marks=pytest.mark.slow),
        pytest.param("speech/v1-tiny", "pt2", None, {"conv_norm": "group", "conv_bias": True}, marks=pytest.mark.slow),
        ("speech/v2-tiny", "onnx", CLASSIFIER, {"conv_norm": "group", "position_padding": "none", "position_kernel": 4}),
        pytest.param("speech/v2-tiny", "pt2", CLASSIFIER, {}, marks=pytest.mark.slow),
        ("text/v1-tiny", "onnx", FIRST, {}),
        ("text/v2-tiny", "pt2", CLASSIFIER, {"position_padding": "none"}),
        ("vision/v1-tiny", "onnx", CLASSIFIER, {"positions": "relative"}),
        ("vision/v1-tiny", "pt2", None, {"positions": "relative", "position_tables": 2}),
        ("text/v1-tiny", "onnx", FIRST, {"positions": "conv"}),
        ("text/v2-tiny", "pt2", None, {"positions": "alibi"}),
        ("vision/v2-tiny", "onnx", None, {}),
        ("vision/v2-tiny", "pt2", CLASSIFIER, {"stem": "conv"}),
    ],
)
@torch.no_grad()
def test_exported_file_gives_the_outputs_of_the_model(name: str, form: str, head: Any, changes: Any, tmp_path: Path) -> None:
    model, file = made(name, head, **changes), tmp_path / f"a.{form}"
    exported = data2vec.export(model, file)
    assert exported.files == (file,)
    assert exported.difference < 1e-4
    least = {"speech": 20, "text": 1, "vision": 32}[name.partition("/")[0]]
    for sizes in ((2 * least,), (128, least, 90, 57, 128)):
        given, own = inputs(name, sizes)
        found = ran(file, given)
        assert list(found) == list(exported.outputs)
        for row, x in enumerate(own):
            hidden, _ = model.encoder(Batch(x[None]))
            count = hidden.shape[1]
            assert found["positions"][row] == count
            torch.testing.assert_close(found["hidden"][row, :count], hidden[0], atol=1e-5, rtol=1e-4)
            assert not found["hidden"][row, count:].any()
            if model.head is not None:
                logits = found["logits"][row]
                logits = logits[:count] if head is CTC else logits
                torch.testing.assert_close(logits, model.head(hidden)[0], atol=1e-5, rtol=1e-4)


SIGNAL = {"channels": ("ax", "ay", "az"), "units": ("g", "g", "g"), "rate": 50.0, "window_seconds": 1.6, "patch": 10}


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        pytest.param(
            "pt2", {"scale": {"by": "training", "mean": (1.0, 2.0, 3.0), "std": (2.0, 1.0, 0.0)}}, marks=pytest.mark.slow
        ),
        ("onnx", {"layout": "grid", "stem": "conv", "spectrum": True, "scale": {"by": "none", "unit_size": 2.0}}),
        pytest.param("pt2", {"scale": {"by": "recording"}}, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_exported_signal_model_scales_and_leaves_missing_samples_out(form: str, changes: Any, tmp_path: Path) -> None:
    model, file = made("signal/v2-tiny", CLASSIFIER, **SIGNAL | changes), tmp_path / f"a.{form}"
    exported = data2vec.export(model, file)
    assert exported.difference < 1e-4 and exported.inputs["signal"].startswith("float32 (B, 80, 3), ax, ay, az at 50 Hz; NaN")
    signal = 2 * torch.randn(2, 80, 3, generator=torch.Generator().manual_seed(1))
    signal[0, 20:40] = signal[0, 50:, 1] = signal[1, 40:] = torch.nan
    found = ran(file, (signal,))
    scaled = signal
    if (by := changes["scale"]["by"]) != "recording":
        scaled = signal / 2 if by == "none" else (signal - torch.tensor([1.0, 2, 3])) / torch.tensor([2.0, 1, 1.5e-3])
    for row, x in enumerate(scaled.clamp(-8, 8) if by != "recording" else scaled):
        hidden, padding = model.encoder(model.modality.collate([x]))
        assert padding is not None and padding.any() and found["positions"][row] == (~padding).sum()
        torch.testing.assert_close(found["hidden"][row], hidden[0].masked_fill(padding[0, :, None], 0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["logits"][row], model.head(hidden, padding)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_exported_file_has_metadata(tmp_path: Path) -> None:
    model = replace(made("speech/v1-tiny", CTC), license="mit")
    about = {"model": "data2vec speech: 2 blocks of width 32, 4 heads", "sampling_rate": "16000", "license": "mit"}
    about |= {"seconds_per_position": str(10 / 16000), "labels": '["ä", "b", "c"]'}
    data2vec.export(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    assert session.get_modelmeta().custom_metadata_map == about
    data2vec.export(model, tmp_path / "a.pt2")
    extra = {"about.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert json.loads(extra["about.json"]) == about


def test_large_weights_and_tokenizer_are_separate_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data2vec.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), tmp_path)
    recipe = load_recipe("text/v1-tiny", SMALL | {"modality.vocab_size": 300, "data.tokenizer": str(tmp_path)})
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    out = tmp_path / "new" / "a.onnx"
    exported = data2vec.export(blank_model(recipe), out)
    assert {file.name for file in exported.files} == {"a.onnx", "a.onnx.data", "a.tokenizer.json"}
    assert exported.files[0] == out and set(exported.files) == set(out.parent.iterdir())
    assert load_tokenizer(out.with_name("a.tokenizer.json")).get_vocab_size() == 300
    assert ran(out, (torch.tensor([[0, 5, 6, 2]]), torch.tensor([4])))["positions"] == 4


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_export_that_differs_from_the_model_is_not_written(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Model) -> Graph:
        graph = build_graph(model)
        graph.encoder.transformer.blocks[0].norm1.weight.data[3] += 0.1
        return graph

    (tmp_path / f"a.{form}").write_text("an older one")
    monkeypatch.setattr("data2vec.interop.export.export.build_graph", wrong)
    with pytest.raises(RunStopped, match=r"was not written: it differs from the model by \d"):
        data2vec.export(made("vision/v1-tiny"), tmp_path / f"a.{form}")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an older one"]


@pytest.mark.parametrize("wrong", ["positions", "padding", "nan"])
def test_check_detects_a_wrong_output(wrong: str) -> None:
    """A wrong number of positions, something where padding is, and what is no number."""
    model = made("text/v1-tiny")
    graph = build_graph(model).eval()

    def run(raw: RawInputs) -> dict[str, Tensor]:
        found = graph(*raw.values())
        if wrong == "positions":
            found["positions"][0] += 1
        elif len(raw["ids"]) > 1:
            found["hidden"][raw["lengths"].argmin(), -1, 0] = 0.5 if wrong == "padding" else float("nan")
        return found

    with torch.no_grad():
        difference = _difference(graph, model, run, torch.Generator().manual_seed(0))
    assert not difference <= 0.01


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "model", tmp_path / "files"
    save_model_folder(made("vision/v1-tiny", CLASSIFIER), folder)
    assert cli.main(["export", str(folder), "--out", str(out / "a.pt2")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"written: {out}/a.pt2\nin  image     uint8 (B, 3, H, W)")
    assert "out logits    float32 (B, 3)" in said and "largest difference" in said
    assert cli.main(["export", str(folder), "--out", str(out / "b.onnx"), "--tolerance", "1e-12"]) == 1
    assert "more than --tolerance 1e-12" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["a.pt2"]

    def told(name: str) -> str:
        assert cli.main(["export", str(folder), "--out", str(out / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "a.bin: unknown format; the suffix must be .onnx or .pt2" in told("a.bin")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxscript" else find(name, *more))
    assert told("b.onnx").endswith("ONNX needs onnxscript: pip install data2vec[export]")


def test_custom_modality_without_an_example_input_is_refused(tmp_path: Path) -> None:
    class Own(type(made("vision/v1-tiny").modality)):  # type: ignore[misc]
        pass

    model = made("vision/v1-tiny")
    own = replace(model, modality=Own(model.modality.settings, model.modality.data))
    with pytest.raises(UserError, match=r"Own cannot be exported: define example_input\(positions\)"):
        data2vec.export(own, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())
