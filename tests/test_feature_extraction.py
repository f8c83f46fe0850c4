from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.batch import Batch
from data2vec.distributed import resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import collate_by_length, pooled
from data2vec.inputs import read_input
from data2vec.modalities.chunking import CHUNK_SECONDS
from data2vec.modalities.speech import Speech
from data2vec.model import Model
from data2vec.nn.conv_feature_extractor import WAV2VEC, output_length
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 3}
SPEECH = ("speech/v1-tiny", "speech/v2-tiny")
VOCABULARY = 300


def model(name: str, overrides: Mapping[str, Any] = {}) -> Model:
    text = {"modality.vocab_size": VOCABULARY} if name.startswith("text") else {}
    recipe = load_recipe(name, {**SMALL, **text, **overrides})
    modality = recipe.build_modality()
    torch.manual_seed(0)
    return Model(build_encoder(modality, recipe.encoder).eval().requires_grad_(False), modality, recipe)


def waves(*samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(each).astype(np.float32) for each in samples]


def inputs(kind: str) -> list[Any]:
    """From a single position to several seconds, or hundreds of tokens."""
    rng = np.random.default_rng(0)
    if kind == "speech":
        return waves(16000, 400, 719, 64000, 16100, 16000, 5000, 30000)
    if kind == "text":
        return [rng.integers(4, VOCABULARY, n) for n in (7, 1, 2, 120, 60, 61, 7, 3)]
    return list(rng.integers(0, 256, (4, 40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", [*SPEECH, "text/v1-tiny", "text/v2-tiny", "vision/v1-tiny", "vision/v2-tiny"])
@pytest.mark.parametrize("padding", ["zero_input", "none"])
@pytest.mark.parametrize("pool", [False, True])
def test_features_do_not_depend_on_the_batch(name: str, padding: str, pool: bool) -> None:
    kind = name.split("/")[0]
    this = model(name, {} if kind == "vision" else {"modality.position_padding": padding})
    given = inputs(kind)
    together = this.features(given, "all", pool, batch=400)
    for i, each in enumerate(given):
        alone = this.features([each], "all", pool)
        length = int(alone.lengths[0])
        assert together.lengths[i] == length
        assert (together.seconds is None) == (kind != "speech")
        if pool:
            torch.testing.assert_close(together.hidden[:, i], alone.hidden[:, 0], atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(together.hidden[:, i, :length], alone.hidden[:, 0], atol=1e-5, rtol=0)
            assert not together.hidden[:, i, length:].any()
    assert getattr(this.encoder.position_encoder, "padding", padding) == padding


@pytest.mark.parametrize("overrides", [{}, {"modality.conv_norm": "group"}])
def test_different_lengths_share_a_batch(overrides: dict[str, Any]) -> None:
    modality = model("speech/v1-tiny", overrides).modality
    items = [read_input(modality, each, "a wave") for each in waves(16000, 15000, 16000, 14000)]
    assert len(list(collate_by_length(modality, items, 1000))) == 1


@pytest.mark.parametrize("overrides", [{"modality.position_kernel": 19}, {"modality.conv_norm": "group"}])
def test_wide_convolutions_and_group_norm_do_not_leak_padding(overrides: dict[str, Any]) -> None:
    this = model("speech/v1-tiny", overrides)
    given = waves(16000, 15000, 16000, 400)
    together = this.features(given, "all")
    for i, each in enumerate(given):
        alone = this.features([each], "all")
        torch.testing.assert_close(together.hidden[:, i, : alone.lengths[0]], alone.hidden[:, 0], atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(1, 600))
def test_batches_contain_every_input_once_within_the_budget(lengths: list[int], most: int) -> None:
    modality = load_recipe("text/v1-tiny", {"modality.vocab_size": VOCABULARY}).build_modality()
    items = [torch.full((length,), 5) for length in lengths]
    seen: list[int] = []
    for places, batch in collate_by_length(modality, items, most):
        rows, longest = batch.input.shape
        assert rows == 1 or rows * longest <= most
        assert int(0 if batch.padding is None else batch.padding.sum()) <= most / 16
        assert [lengths[place] for place in places] == (batch.input == 5).sum(1).tolist()
        seen += places
    assert sorted(seen) == list(range(len(items)))


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 2 s with 0.5 s of context on both sides."""
    monkeypatch.setattr(Speech.chunks, "__defaults__", (2.0, 1.0))


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("pool", [False, True])
def test_features_of_chunks_equal_those_of_the_whole_where_only_neighbours_matter(pool: bool) -> None:
    """Without attention: the position convolutions see 0.4 s on both sides, less than the context."""
    this = model("speech/v1-tiny")
    for block in this.encoder.transformer.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    (wave,) = waves(16000 * 7 + 123)
    found = this.features([wave, wave[:20000], wave[:40000]], "all", pool)
    assert found.lengths.tolist() == [output_length(WAV2VEC, n) for n in (len(wave), 20000, 40000)]
    for i, length in enumerate((len(wave), 20000, 40000)):
        batch = Batch(normalized(wave[:length]))
        with torch.inference_mode():
            x, padding = this.encoder.local_encoder(batch)
            blocks = torch.stack([output.block for output in this.encoder.block_outputs(x, padding)])[:, 0]
        expected = blocks.mean(1) if pool else blocks
        got = found.hidden[:, i] if pool else found.hidden[:, i, : blocks.shape[1]]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_memory_for_a_long_recording_does_not_grow_with_the_square_of_its_length(layers: Any) -> None:
    this = model("speech/v2-tiny", {"encoder.layers": 1, "objective.target.top_k": 1})
    (wave,) = waves(16000 * 100)
    largest: list[int] = []
    for block in this.encoder.transformer.blocks:
        block.attention.register_forward_pre_hook(lambda module, inputs: largest.append(inputs[0].shape[1]))
    found = this.features(wave, layers)
    assert found.lengths.tolist() == [100 * 50 - 1] and found.hidden.shape[2] == 100 * 50 - 1
    assert max(largest) == output_length(WAV2VEC, int(CHUNK_SECONDS * 16000)) < 2000
    assert found.hidden.isfinite().all()


def test_recordings_up_to_a_chunk_are_encoded_at_once() -> None:
    modality = model("speech/v1-tiny").modality
    for seconds, chunks in ((CHUNK_SECONDS, None), (CHUNK_SECONDS + 1, 2), (600, 20)):
        found = modality.chunks(Batch(torch.zeros(1, int(seconds * 16000))))
        assert (None if found is None else len(found)) == chunks


def normalized(wave: np.ndarray) -> torch.Tensor:
    from data2vec.data.audio import normalize_waveform

    return torch.from_numpy(normalize_waveform(wave))[None]


def test_layers_selects_blocks_means_and_weighted_sums() -> None:
    this = model("speech/v1-tiny")
    given = waves(5000, 6000)
    every = this.features(given, "all").hidden
    assert every.shape == (3, 2, 18, 32)
    assert torch.equal(this.features(given, 2).hidden[0], every[1])
    assert torch.equal(this.features(given, -3).hidden[0], every[0])
    torch.testing.assert_close(this.features(given, "mean").hidden[0], every.mean(0), atol=1e-6, rtol=0)
    mixed = this.features(given, (0.5, 0, -2.0)).hidden
    assert mixed.shape == (1, 2, 18, 32)
    torch.testing.assert_close(mixed[0], 0.5 * every[0] - 2 * every[2], atol=1e-6, rtol=0)
    assert torch.equal(this.features(given, torch.tensor([0.0, 1.0, 0.0])).hidden[0], every[1])  # type: ignore[arg-type]
    means = this.features(given, "all", pool=True).hidden
    torch.testing.assert_close(means[:, 0], every[:, 0, :15].mean(1), atol=1e-6, rtol=0)
    for wrong in (0, 4, -4, "first", (1, 2), (0, 0, 0), 1.5, ["a", "b", "c"]):
        with pytest.raises(UserError, match=r"layers: .* does not exist; this model has blocks 1 to 3"):
            this.features(given, wrong)  # type: ignore[arg-type]


def test_blocks_above_the_requested_one_are_skipped() -> None:
    this = model("speech/v1-tiny")
    torch.nn.init.constant_(this.encoder.transformer.blocks[2].ffn[0].weight, float("nan"))
    assert this.features(waves(5000), 2).hidden.isfinite().all()
    assert this.features(waves(5000), (1, 1, 0)).hidden.isfinite().all()
    assert this.features(waves(5000), 3).hidden.isnan().any()


def test_arrays_tensors_and_files_give_equal_features(tmp_path: Path) -> None:
    import soundfile

    this = model("speech/v1-tiny")
    (wave,) = waves(8000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    found = this.features([wave, torch.from_numpy(wave), tmp_path / "a.wav", str(tmp_path / "a.wav")]).hidden[0]
    assert all(torch.equal(found[0], each) for each in found)
    with pytest.raises(UserError, match=r"input 2: audio of shape \(2, 8000\)"):
        this.features([wave, np.stack([wave, wave])])
    with pytest.raises(UserError, match="input 1: too short"):
        this.features([wave[:300]])
    with pytest.raises(UserError, match="input 1: contains NaN or inf samples"):
        this.features([np.full(8000, np.nan, np.float32)])


def test_text_model_without_tokenizer_accepts_token_ids_only() -> None:
    this = model("text/v1-tiny")
    ids = [0, 17, 18, 2]
    found = this.features([ids, torch.tensor(ids), np.array(ids)])
    assert found.lengths.tolist() == [4, 4, 4]
    assert torch.equal(found.hidden[0, 0], found.hidden[0, 2])
    for words in ("a text", Path("a.txt")):
        with pytest.raises(UserError, match=r"this text model has no tokenizer: put its tokenizer\.json"):
            this.features([words])
    for wrong in ([0, VOCABULARY], [], [-1], [0.5], [[0, 2]], [0] * 10_000):
        with pytest.raises(UserError, match=r"input 1: must be .*; token ids are a 1-D array of 1 to 128 integers from 0"):
            this.features([wrong])


def test_resolve_device_with_an_unknown_device_is_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    for wrong in ("gpu", "mps", "cuda:99"):
        with pytest.raises(UserError, match=f"device: '{wrong}' is not"):
            resolve_device(wrong)


@pytest.mark.parametrize("name", ["speech/v1-tiny", "speech/v2-tiny", "text/v1-tiny", "vision/v2-tiny"])
def test_encode_gives_the_features_with_gradients(name: str) -> None:
    """Of weights that are free, and of the input."""
    this, given = model(name), inputs(name.split("/")[0])[:3]
    this.encoder.requires_grad_()
    batch = this.prepare(given)
    batch.input.requires_grad_(batch.input.is_floating_point())
    found, expected = this.encode(batch, "states"), this.features(given, "states")
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert len(found.hidden) == 4
    for i, length in enumerate(found.lengths.tolist()):
        torch.testing.assert_close(found.hidden[:, i, :length], expected.hidden[:, i, :length], atol=1e-4, rtol=1e-4)
    found.hidden[:, 0].square().sum().backward()
    assert this.encoder.transformer.blocks[0].attention.out.weight.grad.abs().sum() > 0
    if batch.input.requires_grad:
        assert batch.input.grad[0].abs().sum() > 0 and not batch.input.grad[1].any()


def test_states_are_one_more_than_all_layers_and_end_in_them() -> None:
    this, (wave,) = model("speech/v1-tiny"), waves(5000)
    states, layers = this.features(wave, "states").hidden, this.features(wave, "all").hidden
    assert (len(states), len(layers)) == (4, 3)
    assert torch.equal(states[1:], layers)
    with torch.inference_mode():
        x, padding = this.encoder.local_encoder(this.prepare(wave))
        first = this.encoder.transformer.embed(this.encoder.position_encoder(x, padding))
    torch.testing.assert_close(states[0], first, atol=1e-5, rtol=1e-5)


def test_pooling_of_chunks_counts_their_positions_in_float32() -> None:
    chunks = [(torch.full((1, 1, length, 1), value, dtype=torch.bfloat16), None) for value, length in ((1.0, 257), (-1.0, 255))]
    mean = pooled(iter(chunks))
    assert mean.dtype == torch.bfloat16
    assert float(mean) == float(torch.tensor(2 / 512).bfloat16())
