"""The adapters, loaded from the files that `data2vec adapter` writes, against the interfaces of the harnesses."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.interop.adapters.write import ADAPTERS, write_adapter
from data2vec.model import Model
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 3, "objective.target.top_k": 2}


META_FIELDS = """loader name revision release_date languages n_parameters memory_usage_mb max_tokens embed_dim license
open_weights
public_training_code public_training_data framework similarity_fn_name use_instructions training_datasets modalities"""
"""What mteb's ModelMeta requires, and the modalities, by which it selects tasks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speech model."""
    recipe = load_recipe("speech/v1-tiny", SMALL)
    modality = recipe.build_modality()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("adapters") / "model"
    Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe).save_pretrained(path)
    return path


def adapter(name: str, folder: Path) -> ModuleType:
    """The module in the file that is written."""
    spec = importlib.util.spec_from_file_location(f"data2vec_{name}", write_adapter(name, folder))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def audio(*samples: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(count, generator=generator) for count in samples]


def test_hear_gives_scenes_and_timestamps(folder: Path, tmp_path: Path) -> None:
    hear, clips = adapter("hear", tmp_path), torch.stack(audio(16000, 16000))
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module)
    assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (16000, 32, 32)
    scenes, (frames, times) = hear.get_scene_embeddings(clips, model), hear.get_timestamp_embeddings(clips, model)
    assert (scenes.shape, scenes.dtype) == ((2, 32), torch.float32)
    assert (frames.shape, frames.dtype, times.shape) == ((2, 49, 32), torch.float32, (2, 49))
    assert times[0, :3].tolist() == pytest.approx([12.5, 32.5, 52.5])
    expected = data2vec.load(folder)
    assert torch.equal(scenes, expected.features(list(clips), pool=True).hidden[0])
    assert torch.equal(frames, expected.features(list(clips)).hidden[0])


def test_xares_passes_the_checks_of_its_encoders(folder: Path, tmp_path: Path) -> None:
    encoder = adapter("xares", tmp_path).Data2VecEncoder(str(folder))
    assert isinstance(encoder, torch.nn.Module) and type(encoder).__name__.endswith("Encoder")
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16000, 32, pytest.approx(20))
    clips = torch.randn(2, 50000, generator=torch.Generator().manual_seed(0))
    found = encoder(clips)
    assert found.shape == (2, 156, 32) and found.dtype == torch.float32
    assert torch.equal(found, data2vec.load(folder).features(list(clips)).hidden[0])
    assert encoder(clips[0]).shape == (1, 156, 32)


def test_xares_without_a_model_says_where_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set MODEL in this file"):
        adapter("xares", tmp_path).Data2VecEncoder()


def test_s3prl_gives_the_hidden_states_of_unpadded_waveforms(folder: Path, tmp_path: Path) -> None:
    upstream = adapter("s3prl", tmp_path).data2vec_model(ckpt=str(folder), model_config=None, refresh=False)
    assert upstream.get_downsample_rates("hidden_states") == 320
    wavs = audio(16000, 9000)
    found = upstream(wavs)
    assert [state.shape for state in found["hidden_states"]] == 4 * [(2, 49, 32)]
    assert found["last_hidden_state"] is found["hidden_states"][-1]
    expected = data2vec.load(folder).features(wavs, layers="states")
    for row, length in enumerate(expected.lengths.tolist()):
        for state, layer in zip(found["hidden_states"], expected.hidden, strict=True):
            torch.testing.assert_close(state[row, :length], layer[row, :length], atol=1e-4, rtol=1e-4)
    found["last_hidden_state"].sum().backward()
    assert upstream.encoder.transformer.blocks[0].attention.out.weight.grad is not None


def test_s3prl_hub_gets_nothing_but_the_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "data2vec_s3prl", adapter("s3prl", tmp_path))
    hub: dict[str, Any] = {}
    exec("from data2vec_s3prl import *", hub)
    assert {*hub} - {"__builtins__"} == {"data2vec_model"}


def test_sound_whose_positions_are_bands_too_is_refused_where_a_sequence_in_time_is_needed(tmp_path: Path) -> None:
    recipe = load_recipe("sound/v2-tiny", SMALL | {"modality.mean": -6.0, "modality.std": 5.0})
    modality = recipe.build_modality()
    path = tmp_path / "sound"
    Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe).save_pretrained(path)
    for name, function in (("hear", "load_model"), ("xares", "Data2VecEncoder"), ("s3prl", "data2vec_model")):
        with pytest.raises(UserError, match=r"is a model of sound; .* needs one of speech"):
            getattr(adapter(name, tmp_path), function)(str(path))
    clips = [{"array": clip.numpy(), "sampling_rate": 16000} for clip in audio(16000, 9000)]
    assert adapter("mteb", tmp_path).Data2VecEncoder(str(path)).encode([{"audio": clips}]).shape == (2, 32)


def test_mteb_encodes_the_batches_of_a_loader(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, clips = adapter("mteb", tmp_path).Data2VecEncoder(str(folder), "main"), audio(16000, 9000, 12000)
    rows: list[Any] = [{"array": clip.numpy(), "sampling_rate": 16000} for clip in clips]
    rows[2] = SimpleNamespace(array=rows[2]["array"], sampling_rate=16000)
    found = encoder.encode([{"audio": rows[:2]}, {"audio": rows[2:]}], task_metadata=None, hf_split="test", hf_subset="default")
    assert isinstance(found, np.ndarray) and found.shape == (3, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, data2vec.load(folder).features(clips, pool=True).hidden[0], atol=1e-4)
    cosines = encoder.similarity(found, found)
    assert cosines.shape == (3, 3)
    torch.testing.assert_close(encoder.similarity_pairwise(found, found), cosines.diagonal())
    with pytest.raises(UserError, match="takes audio; this task has text"):
        encoder.encode([{"text": ["a"]}])
    with pytest.raises(UserError, match="audio without sampling_rate"):
        encoder.encode([{"audio": [{"array": clips[0].numpy()}]}])
    meta = SimpleNamespace(ModelMeta=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "mteb", ModuleType("mteb"))
    monkeypatch.setitem(sys.modules, "mteb.models", ModuleType("mteb.models"))
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", meta)
    fields = encoder.mteb_model_meta
    assert {*fields} == {*META_FIELDS.split()}
    assert (fields["name"], fields["revision"], fields["embed_dim"]) == ("data2vec/model", "main", 32)
    assert (fields["modalities"], fields["license"]) == (["audio"], None)


def test_the_command_writes_an_adapter_and_keeps_changed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ADAPTERS:
        assert cli.main(["adapter", name, str(tmp_path)]) == 0
        assert cli.main(["adapter", name, str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / f"data2vec_{name}.py")
    (tmp_path / "data2vec_hear.py").write_text("changed")
    assert cli.main(["adapter", "hear", str(tmp_path)]) == 2
    assert "exists with other content" in capsys.readouterr().err
    assert cli.main(["adapter", "hare", str(tmp_path)]) == 2
    assert "'hare' is not one of hear, mteb, s3prl, xares" in capsys.readouterr().err
