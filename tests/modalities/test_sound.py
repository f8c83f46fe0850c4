"""Sound: patches of spectrograms, positions of any length, masks, padding, the class token, and statistics of the data."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import data2vec
from data2vec.batch import Batch, MaskedBatch
from data2vec.data.bucketing import MicroBatch
from data2vec.data.loader import Loader
from data2vec.data.mixing import ImageMixing
from data2vec.errors import UserError
from data2vec.feature_extraction import extract_features, head_logits
from data2vec.modalities.fbank import FbankSettings, fbank
from data2vec.modalities.sound import MEASURED_CLIPS, Sound, SoundData, SoundSettings, measure_log_mel
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.nn.heads import ClassifierSettings, build_head, reads_class_token
from data2vec.nn.position_encoders import sincos_positions
from data2vec.nn.transformer import TransformerSettings
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.task_settings import ClassificationSettings
from data2vec.tasks.finetuning.labelled_batches import LabelledBatches
from data2vec.tasks.finetuning.labels import Classes, class_weights
from data2vec.train.sweeps.cross_validation import cross_validate

SHAPE: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0}


def sound(**settings: Any) -> Sound:
    return Sound(SoundSettings(**{"mean": -7.0, "std": 4.0, **settings}), SoundData())


def encoder(modality: Sound, **changes: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(modality, TransformerSettings(**SHAPE, **{"extra_tokens": 1, **changes})).eval()


def log_mel(frames: int, seed: int = 0, bins: int = 128) -> torch.Tensor:
    return 4 * torch.randn(frames, bins, generator=torch.Generator().manual_seed(seed)) - 7


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Eight clips of 1 to 3 s of two classes, high and low, in two folds."""
    rng = np.random.default_rng(0)
    rows = ["file_name,label,fold"]
    for index in range(8):
        time = np.arange(16000 * (1 + index % 3)) / 16000
        wave = np.sin(2 * np.pi * (300 if index % 2 else 2000) * time) * 0.3 + 0.02 * rng.standard_normal(len(time))
        soundfile.write(tmp_path / f"{index}.wav", wave, 16000)
        rows.append(f"{index}.wav,{'low' if index % 2 else 'high'},{index // 4}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    return tmp_path


def test_spectrogram_of_1024_frames_has_512_patches_and_eat_masks_four_fifths_of_them() -> None:
    modality, recipe = sound(), load_recipe("sound/v2-eat-base")
    batch = modality.collate([log_mel(1024, seed) for seed in range(2)])
    assert modality.grid(batch) == (64, 8) and modality.build_local_encoder(16)(batch)[0].shape == (2, 512, 16)
    masked = recipe.objective.mask.draw(32, modality.grid(batch), np.random.default_rng(0)).masked
    assert set(masked.sum(1)) == {512 - 102}  # a fifth stays visible, in every row
    visible = ~masked.reshape(32, 64, 8)
    neighbours = (visible[:, 1:] & visible[:, :-1]).sum() / visible[:, 1:].sum()
    assert neighbours > 0.7  # in blocks: of single patches it would be 0.2


def test_patches_are_normalized_and_in_the_order_of_time() -> None:
    modality = sound(patch=(4, 8), fbank=FbankSettings(bins=16), frames=32)
    local_encoder = modality.build_local_encoder(32)
    with torch.no_grad():
        local_encoder.project.weight.copy_(torch.eye(32))
        local_encoder.project.bias.zero_()
    given = log_mel(12, bins=16)
    x, padding = local_encoder(modality.collate([given]))
    assert padding is None and x.shape == (1, 6, 32)
    third = given[4:8, :8]  # the second patch in time, the first in frequency
    torch.testing.assert_close(x[0, 2], ((third + 7) / 8).flatten())
    raw = modality.input_features()["raw"]
    torch.testing.assert_close(raw.compute(modality.collate([given])), x)


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_positions_are_fixed_and_of_any_length(scale: float) -> None:
    modality = sound(frames=64, position_scale=scale)
    positions = modality.build_position_encoder(16, 2, 1)
    assert not list(positions.parameters())
    for rows in (3, 4, 50):
        expected = scale * sincos_positions((rows, 8), 16)
        assert torch.equal(positions(torch.zeros(1, rows * 8, 16), None)[0], expected)


def test_padding_changes_no_feature_and_is_not_masked() -> None:
    modality = sound(frames=128)
    short, long = log_mel(48), log_mel(96, 1)
    batch = modality.collate([short, long])
    whole = encoder(modality)
    together, padding = whole(batch)
    assert padding is not None and padding.sum(1).tolist() == [24, 0]
    torch.testing.assert_close(together[0, :24], whole(modality.collate([short]))[0][0])
    padded = modality.padded_positions(batch)
    assert padded is not None and np.array_equal(padded, padding.numpy())


def test_clips_are_as_long_as_patches_and_eat_fills_them_up(clips: Path) -> None:
    rows = sound().rows(str(clips))
    lengths = {len(sound().labelled(rows).load(index)) for index in range(8)}
    assert lengths == {96, 192, 304}  # 98, 198, 298 frames to the nearest patch
    ours = sound().labelled(rows).load(2)
    assert (ours[298:] == -7).all() and (ours[:298] != -7).any(1).all()
    filled = sound(attend_padding=True).labelled(rows).load(2)
    assert filled.shape == (1024, 128) and (filled[298:] == 0).all() and torch.equal(filled[:298], ours[:298])
    batch = sound(attend_padding=True).collate([filled, filled])
    assert batch.padding is None


def test_crops_are_equally_long_and_random(clips: Path) -> None:
    examples = sound().examples(sound().rows(str(clips)))
    first, second = (examples.load(2, 1.0, np.random.default_rng(seed)) for seed in range(2))
    assert first.shape == second.shape == (96, 128) and not torch.equal(first, second)
    assert torch.equal(first, examples.load(2, 1.0, np.random.default_rng(0)))
    short = SoundData(max_seconds=1.0)
    fine_tuning = Sound(sound().settings, short).labelled(sound().rows(str(clips)))
    assert len(fine_tuning.load(2, None, np.random.default_rng(0))) == 96  # longer clips are cropped in training only
    assert len(fine_tuning.load(2)) == 304


def test_long_clip_is_encoded_in_spans_of_the_trained_length() -> None:
    modality = sound(frames=64)
    given, whole = log_mel(144), encoder(sound(frames=64))
    chunks = modality.chunks(modality.collate([given]))
    assert chunks is not None and [chunk.samples.stop - chunk.samples.start for chunk in chunks] == [64, 64, 64, 48]
    ((_, length),) = extract_features(whole, modality, [given], None, False)
    assert length == 72 and modality.chunks(modality.collate([given[:64]])) is None
    head = build_head(ClassifierSettings(labels=("a", "b"), pooling="class-token"), 16)
    logits, _ = head_logits(whole, head, modality.collate([given]), chunks)
    tokens = [whole.encode_with_extra(*whole.local_encoder(Batch(given[None, each.samples])))[0][:, -1] for each in chunks]
    torch.testing.assert_close(logits, head(torch.stack(tokens).mean(0)[:, None], None))


@pytest.mark.parametrize("name", ["data2vec", "data2vec2"])
def test_class_token_predicts_the_mean_of_the_targets_without_padding(name: str) -> None:
    recipe = load_recipe(f"sound/v{2 if name == 'data2vec2' else 1}-tiny", {"modality.mean": -7.0, "modality.std": 4.0})
    torch.manual_seed(0)
    objective = recipe.build_objective()
    extra, targets = torch.randn(4, 1, 64), torch.randn(2, 6, 64)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    found = objective.class_token_loss(extra, targets, padding, num_masked=10)
    means = torch.stack([targets[0].mean(0), targets[1, :4].mean(0)]).repeat_interleave(2, 0)
    error = (extra[:, 0] - means).square().sum() / 8  # 1/sqrt(width)
    torch.testing.assert_close(found, recipe.objective.cls_loss * error * 10 / 4)
    mask = torch.zeros(objective.settings.masks_per_sample, 16, dtype=torch.bool)
    mask[:, 4:12] = True
    batch = MaskedBatch(log_mel(64, bins=64)[None], mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])
    objective.train()(batch).loss.backward()
    assert objective.student.transformer.extra_tokens.grad.abs().sum() > 0


def test_class_token_needs_one_to_be_read() -> None:
    head = build_head(ClassifierSettings(labels=("a", "b"), pooling="class-token"), 16)
    assert reads_class_token(head)
    with pytest.raises(UserError, match="class-token needs an encoder with an extra token"):
        head_logits(encoder(sound(), extra_tokens=0), head, sound().collate([log_mel(32)]))
    with pytest.raises(ValueError, match="no weighted sum of blocks"):
        ClassifierSettings(labels=("a", "b"), pooling="class-token", weighted_layers=2)


def test_statistics_are_measured_and_shown_by_check(clips: Path) -> None:
    modality = Sound(SoundSettings(), SoundData())
    with pytest.raises(UserError, match=r"modality.mean, modality.std: not measured yet"):
        modality.build_local_encoder(16)
    waves = [soundfile.read(clips / f"{index}.wav", dtype="float32")[0] for index in range(8)]
    values = np.concatenate([fbank(wave, FbankSettings()).ravel() for wave in waves]).astype(np.float64)
    measured = modality.measure(str(clips))
    assert measured == pytest.approx({"modality.mean": values.mean(), "modality.std": values.std()}, rel=1e-4)
    assert Sound(SoundSettings(mean=-5.0, std=3.0), SoundData()).measure(str(clips)) == {}
    report = str(data2vec.check_examples("sound", str(clips), {"modality.fbank.bins": 128}))
    assert f"modality.mean={measured['modality.mean']} modality.std={measured['modality.std']}" in report


def test_statistics_of_a_stream_are_measured_without_an_index_of_it(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed = Sound(SoundSettings(), SoundData()).measure(str(clips))
    monkeypatch.setattr(Sound, "examples", lambda *_: pytest.fail("all clips are read"))
    assert Sound(SoundSettings(), SoundData(streaming=True)).measure(str(clips)) == pytest.approx(indexed, rel=1e-4)
    with pytest.raises(UserError, match=r"on the clips: \d+ are shorter than data\.min_seconds: 20; lower data\.min_seconds$"):
        Sound(SoundSettings(), SoundData(streaming=True, min_seconds=20, max_seconds=30)).measure(str(clips))


@pytest.mark.parametrize(
    ("short", "corrupt", "message"),
    [
        (3, 1, "clips: 3 are shorter than data.min_seconds: 0.5 and 1 cannot be read, such as .*; lower data.min_seconds$"),
        (0, 2, "clips: 2 cannot be read, such as .*; repair or replace them$"),
        (0, 0, "clips: there is none in the first of the data; set modality.mean and modality.std$"),
        (MEASURED_CLIPS, 0, "; lower data.min_seconds, or set modality.mean and modality.std$"),
    ],
)
def test_clips_that_cannot_be_measured_are_counted_by_reason(short: int, corrupt: int, message: str) -> None:
    silent = {"array": np.zeros(100, np.float32), "sampling_rate": 16000, "path": "a.wav"}
    clips = [*[silent] * short, *[{"bytes": b"no sound", "path": "b.wav"}] * corrupt]
    with pytest.raises(UserError, match=message):
        measure_log_mel(clips, FbankSettings(), 0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fbank": {"bins": 100}}, "fbank.bins: 100 is not a multiple of 16"),
        ({"frames": 1000}, "frames: 1000 is not a multiple of 16"),
        ({"frames": 2**16, "patch": (1, 16)}, "at most 16384"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoundSettings(**wrong)


def test_mixed_spectrograms_have_padding_where_neither_has_sound_and_rare_classes_are_drawn_more(clips: Path) -> None:
    modality = sound(fbank=FbankSettings(bins=16))
    settings = ClassificationSettings(mixing=ImageMixing(cutmix=0.0, mixup=0.8, label_smoothing=0.0), draws_per_epoch=600)
    examples = modality.labelled(modality.rows(str(clips)))
    labels = [0, 0, 0, 0, 0, 0, 0, 1]
    targets = Classes(["high", "low"], settings)
    batches = LabelledBatches(modality, examples, labels, targets, settings, 16, class_weights(labels))
    drawn = batches.epoch_indices(np.random.default_rng(0))
    assert drawn is not None and len(drawn) == 600 and 0.4 < (drawn == 7).mean() < 0.6
    data = modality.data.model_copy(update={"batch_seconds": 6.0, "micro_batch_seconds": 6.0, "workers": 0})
    loader = Loader(Sound(modality.settings, data), None, modality.rows(str(clips)), 0, batches=batches)
    per_epoch = loader.steps_per_epoch
    assert per_epoch is not None and 150 < per_epoch < 300  # 600 clips of 1 to 3 s, in batches of 6 s
    many = [micro_batch.indices.tolist() for micro_batch in islice(loader.micro_batches(0), per_epoch + 20)]
    assert 7 in many[0] + many[1] + many[2] and many[:20] != many[per_epoch:]
    again = [micro_batch.indices.tolist() for micro_batch in islice(loader.micro_batches(per_epoch - 5), 10)]
    assert again == many[per_epoch - 5 : per_epoch + 5]  # so that a run can be resumed
    order = np.array([0, 1, 2, 3])  # of 1, 2, 3 and 1 s: mixed with 1, 3, 2 and 1
    batch = batches.build(MicroBatch(order, slice(0, 4), 1.0, (0, 0, 0))).batch
    assert batch.padding is not None and (~batch.padding).sum(1).tolist() == [96, 304, 304, 96]
    assert torch.allclose(batch.labels.sum(1), torch.ones(4))


@pytest.mark.slow
def test_the_whole_way_from_clips_to_folds(clips: Path, tmp_path: Path) -> None:
    small = ["encoder.width=16", "encoder.layers=2", "encoder.heads=2", "encoder.ffn_width=32", "data.workers=0", "log.every=1"]
    small += ["data.batch_seconds=4", "data.micro_batch_seconds=4", "data.max_seconds=2", "train.device=cpu"]
    pretraining = ["objective.target.top_k=2", "objective.decoder.width=16", "objective.decoder.groups=2"]
    pretraining += ["train.steps=4", "train.checkpoint_every=2"]
    run = data2vec.pretrain("sound/v2-tiny", str(clips), [*small, *pretraining], tmp_path / "run")
    page = run.report.read_text()
    assert "Masked positions" in page and "cannot be loaded" not in page
    model = data2vec.load(run.folder)
    assert model.recipe.modality.mean is not None and model.features(str(clips / "1.wav")).hidden.shape[-1] == 16
    exported = data2vec.export(model, tmp_path / "model.pt2")
    assert exported.difference < 1e-4
    overrides = [f"data.train={clips}", *small, "train.steps=2", "objective.validate_every=1", "train.checkpoint_every=2"]
    found = cross_validate("sound/classify-tiny", "fold", run.folder, overrides, tmp_path / "folds")
    assert set(found.scores) == {"0", "1"} and (tmp_path / "folds" / "folds.json").is_file()
    recipe = (tmp_path / "folds" / "fold-1" / "recipe.yaml").read_text()
    assert "exclude" in recipe and f"mean: {model.recipe.modality.mean}" in recipe
    assert cross_validate("sound/classify-tiny", "fold", run.folder, overrides, tmp_path / "folds") == found
    scratch = cross_validate("sound/classify-tiny", "fold", run.folder, overrides, tmp_path / "scratch", scratch=True)
    assert cross_validate("sound/classify-tiny", "fold", run.folder, overrides, tmp_path / "scratch", scratch=True) == scratch
    assert load_recipe(tmp_path / "scratch/fold-1/recipe.yaml").init is None
    with pytest.raises(UserError, match="set by --folds"):
        cross_validate("sound/classify-tiny", "fold", run.folder, [*overrides, "data.valid=x"], tmp_path / "b")
