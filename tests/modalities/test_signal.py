"""Signals: patches, masks on gaps, channels, and the whole way from recordings to predictions."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest
import torch

import data2vec
from data2vec.batch import Batch
from data2vec.data.bucketing import bucket_by_length
from data2vec.data.masked_batches import unmask_padding
from data2vec.errors import CorruptExample, UserError
from data2vec.feature_extraction import extract_features
from data2vec.modalities.signal import SignalData, Signals, SignalSettings
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.nn.transformer import TransformerSettings
from helpers.recordings import CHANNELS, signals, waves, write_folder, write_npz
from helpers.runs import crash_before, measured

SHAPE: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0}
SMALL = [
    *("encoder.width=16", "encoder.layers=2", "encoder.heads=2", "encoder.ffn_width=32", "objective.target.top_k=2"),
    *(
        "modality.patch=10",
        "data.batch_size=8",
        "data.micro_batch_size=4",
        "data.workers=0",
        "train.steps=4",
        "train.device=cpu",
    ),
    *("objective.decoder.width=16", "objective.decoder.groups=2", "log.every=1", "train.checkpoint_every=2"),
]


def encoder(modality: Signals) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(modality, TransformerSettings(**SHAPE)).eval()


def batch(modality: Signals, rows: int = 2, seconds: float = 4.0, missing: Any = None) -> Batch:
    """`missing`: an index into the samples (rows, S, C) that are not there."""
    samples = np.stack([waves(seconds, seed=row) for row in range(rows)]).astype(np.float32)
    if missing is not None:
        samples[missing] = np.nan
    return modality.collate([torch.from_numpy(each) for each in samples])


def joint(**settings: Any) -> Signals:
    return signals(**settings)


def grid(**settings: Any) -> Signals:
    return signals(layout="grid", **settings)


VARIANTS = {
    "joint": joint(), "grid": grid(), "joint conv": joint(stem="conv", spectrum=True), "grid conv": grid(stem="conv"),
    "grid spectrum": grid(spectrum=True, positions="sincos", channel_identity="none"),
    "electrodes": grid(channels=("C3", "EEG Cz-REF", "T4"), channel_identity="position"),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_vector_of_a_patch_depends_on_no_sample_of_another_patch(name: str) -> None:
    modality = VARIANTS[name]
    local_encoder, given = modality.build_local_encoder(16), batch(modality)
    before, _ = local_encoder(given)
    changed = given.input.clone()
    changed[:, 70:80, 1] += 1  # patch 7 of channel 1
    after, _ = local_encoder(Batch(changed))
    different = (before != after).any(-1)[0].view(modality.grid(given)).nonzero().tolist()
    assert different == ([[7]] if modality.settings.layout == "joint" else [[7, 1]])


def test_place_of_an_electrode_does_not_outweigh_what_it_records() -> None:
    torch.manual_seed(0)
    modality = VARIANTS["electrodes"]
    content, _ = modality.build_local_encoder(64)(Batch(torch.randn(2, 200, 3)))
    position_encoder = modality.build_position_encoder(64, 4, 0)
    assert position_encoder.place is not None and position_encoder.places is not None
    assert position_encoder.place(position_encoder.places).std() < content.std()


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("layout", [joint, grid])
def test_positions_do_not_outweigh_what_is_recorded(layout: Callable[..., Signals], positions: str) -> None:
    torch.manual_seed(0)
    modality = layout(positions=positions)
    content, _ = modality.build_local_encoder(64)(Batch(torch.randn(8, 200, len(modality.settings.names))))
    position_encoder = modality.build_position_encoder(64, 4, 0)
    position_encoder.norm = torch.nn.Identity()
    added = position_encoder(torch.zeros_like(content), None)
    assert added.std() < 1.5 * content.std()


@pytest.mark.parametrize("modality", [joint(), grid()])
def test_missing_patch_is_padding_and_changes_nothing_elsewhere(modality: Signals) -> None:
    whole, given = encoder(modality), batch(modality, missing=np.s_[0, 50:120])
    features, padding = whole(given)
    assert padding is not None and padding.shape == features.shape[:2]
    at = padding.view(2, *modality.grid(given))
    assert at[0].flatten(1).all(1).tolist() if at.ndim == 3 else True
    assert sorted({index for row, index, *_ in at.nonzero().tolist() if row == 0}) == list(range(5, 12)) and not at[1].any()
    other = batch(modality)
    other.padding, other.input[0, 50:120] = given.padding, 99.0  # what is there counts for nothing
    other.input[given.padding] = 0.0
    assert torch.equal(whole(other)[0][~padding], features[~padding])


def test_missing_channel_is_padding_in_a_grid_and_told_to_a_joint_embedding() -> None:
    given = batch(grid(), missing=np.s_[:, :, 2])
    _, padding = encoder(grid())(given)
    assert padding is not None and padding.view(2, 20, 3)[..., 2].all() and not padding.view(2, 20, 3)[..., :2].any()
    local_encoder = joint().build_local_encoder(16)
    with torch.no_grad():
        local_encoder.missing[2] += 1
    zero = Batch(given.input)
    assert torch.allclose(local_encoder(given)[0], local_encoder(zero)[0] + 1, atol=1e-6)


def test_partly_missing_patch_is_kept_up_to_max_missing() -> None:
    given = batch(joint(), missing=np.s_[0, 50:54])
    assert not encoder(joint())(given)[1].any()
    assert encoder(joint(max_missing=0.3))(given)[1].nonzero().tolist() == [[0, 5]]


def test_masks_leave_padding_out_and_have_one_size_in_every_row() -> None:
    padded = np.zeros((2, 20), bool)
    padded[0, 4:12] = True
    mask = np.random.default_rng(0).random((2, 3, 20)) < 0.5
    found = unmask_padding(mask, padded, np.random.default_rng(1))
    assert not (found & padded[:, None]).any() and (found <= mask).all()
    assert len({*found.sum(-1).flatten().tolist()}) == 1 and found.sum() > 0
    hidden = np.broadcast_to(padded[:, None], mask.shape)[:1]
    assert unmask_padding(hidden, padded[:1], np.random.default_rng(1)).sum(-1).tolist() == [[1, 1, 1]]
    with pytest.raises(UserError, match="nothing but padding"):
        unmask_padding(mask, np.ones((2, 20), bool), np.random.default_rng(1))


@pytest.mark.parametrize("modality", [joint(), grid()])
def test_chunks_of_a_long_recording_cover_it_and_pooling_leaves_gaps_out(modality: Signals) -> None:
    whole = encoder(modality)
    item = torch.from_numpy(waves(21).astype(np.float32))
    ((features, length),) = extract_features(whole, modality, [item], None, pool=False)
    assert length == 105 * (1 if modality.settings.layout == "joint" else 3) == features.shape[1]
    item[400:800] = torch.nan  # more than a chunk
    ((pooled, _),) = extract_features(whole, modality, [item], None, pool=True)
    ((features, _),) = extract_features(whole, modality, [item], None, pool=False)
    there = torch.ones(105, dtype=torch.bool)
    there[40:80] = False
    there = there if modality.settings.layout == "joint" else there.repeat_interleave(3)
    assert pooled[0] == pytest.approx(features[0, there].mean(0), abs=1e-5)


def test_training_windows_are_random_near_their_turn_and_evaluation_windows_follow_each_other(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(1000.0)[:, None], 3, axis=1)
    write_npz(tmp_path / "a.npz", ramp)
    modality = signals({"hop_seconds": 2.0}, scale={"by": "none", "clip": 1e9})
    rows = modality.rows(str(tmp_path))
    training, evaluation = modality.examples(rows), modality.labelled(rows)
    starts = [float(training.load(2, None, np.random.default_rng(seed))[0, 0]) for seed in range(20)]
    assert len(training) == 5 and min(starts) >= 300 and max(starts) <= 500 and len({*starts}) > 10
    assert [float(evaluation.load(index, None, None)[0, 0]) for index in range(len(evaluation))] == list(range(0, 801, 100))
    assert modality.labelled([{"recording": {"path": str(tmp_path / "a.npz")}}]).load(0, None, None).shape == (1000, 3)


def test_windows_with_too_little_in_them_are_not_used(tmp_path: Path) -> None:
    array = waves(40)
    array[200:1800] = np.nan
    write_npz(tmp_path / "a.npz", array)
    write_npz(tmp_path / "c.npz", np.where(np.arange(400)[:, None] < 150, waves(8), np.nan))
    modality = signals()
    examples = modality.examples(modality.rows(str(tmp_path)))
    found = [examples.load(index, None, np.random.default_rng(seed)) for index in (0, 9) for seed in range(5)]
    assert max(each.isnan().float().mean() for each in found) <= 0.5
    examples.data = SignalData(min_present=0.9)
    with pytest.raises(CorruptExample, match=r"c.npz: 8 random windows in a row have less than data.min_present: 0.9"):
        examples.load(10, None, np.random.default_rng(0))
    write_npz(tmp_path / "b.npz", waves(1))
    assert modality.examples(modality.rows(str(tmp_path))).num_short == 1


def test_dropped_channels_are_missing_in_training_only(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    modality = signals({"channel_dropout": 0.9})
    examples = modality.examples(modality.rows(str(tmp_path)))
    there = [(~examples.load(0, None, np.random.default_rng(seed)).isnan()).all(0).sum().item() for seed in range(20)]
    assert min(there) == 2 and max(there) <= 3 and not examples.load(0, None, None).isnan().any()
    modality = signals({"channel_dropout": 0.9}, layout="grid")
    examples = modality.examples(modality.rows(str(tmp_path)))
    there = [(~examples.load(0, None, np.random.default_rng(seed)).isnan()).all(0).sum().item() for seed in range(20)]
    assert min(there) == 1 and max(there) <= 3


def test_dropped_channels_leave_positions_to_be_predicted_in_every_example(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    for modality in (joint(), grid()):
        modality.data = SignalData(channel_dropout=0.9)
        examples = modality.examples(modality.rows(str(tmp_path)))
        for seed in range(20):
            padded = modality.padded_positions(modality.collate([examples.load(0, None, np.random.default_rng(seed))]))
            assert padded is None or not padded.all()


def test_recording_that_lacks_most_channels_is_corrupt_in_the_joint_layout_and_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8, channels=1), channels=("ax",))
    for layout in ("joint", "grid"):
        modality = signals({"missing_channels": "pad"}, layout=layout)
        examples = modality.examples(modality.rows(str(tmp_path)))
        if layout == "grid":
            assert examples.load(0, None, np.random.default_rng(0)).isnan().all(0).tolist() == [False, True, True]
            continue
        with pytest.raises(CorruptExample, match=r"a.npz: of every position more than modality.max_missing: 0.5 is missing"):
            examples.load(0, None, np.random.default_rng(0))


def test_batches_are_of_one_set_of_channels(tmp_path: Path) -> None:
    for index in range(8):
        write_npz(tmp_path / f"{index}.npz", waves(4, channels=2 + index % 2), CHANNELS[: 2 + index % 2])
    examples = (modality := signals({"missing_channels": "pad"}, layout="grid")).examples(modality.rows(str(tmp_path)))
    for seed in range(3):
        for batch in bucket_by_length(examples.costs, 2, np.random.default_rng(seed)):
            lacking = {bool(examples.load(index).isnan().any()) for index in batch.tolist()}
            assert len(batch) == 2 and len(lacking) == 1
    assert examples.costs.sum() == pytest.approx(8)


def test_span_without_samples_is_corrupt_also_when_channels_are_dropped(tmp_path: Path) -> None:
    array = waves(12)
    array[200:400] = np.nan
    write_npz(tmp_path / "a.npz", array)
    modality = signals({"channel_dropout": 0.5})
    with pytest.raises(CorruptExample, match="there are no samples in it"):
        modality.labelled(modality.rows(str(tmp_path))).load(1, None, np.random.default_rng(0))


def test_training_sees_a_recording_to_its_end(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", np.repeat(np.arange(590.0)[:, None], 3, axis=1))  # 2.95 windows
    modality = signals(scale={"by": "none", "clip": 1e9})
    examples = modality.examples(modality.rows(str(tmp_path)))
    windows = [examples.load(index, None, np.random.default_rng(seed)) for index in (0, 1) for seed in range(100)]
    assert min(float(each[0, 0]) for each in windows) < 5 and max(float(each[-1, 0]) for each in windows) > 580


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ("ax", "acc_x", "ay")}, "acc_x is named twice"),
        ({"units": ("g",)}, "units: 1 values for 3 channels"),
        ({"patch": 16}, "200 samples, not a multiple of patch: 16"),
        ({"window_seconds": 4.01}, "200.5 samples"),
        ({"layout": "grid", "channel_identity": "position"}, "acc_x, acc_y, acc_z is no electrode"),
        ({"channels": None, "units": ("g",) * 3}, "but not the channels that they are of"),
        ({"window_seconds": 4000.0, "patch": 2}, "100000 positions; at most 16384"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signals(**settings)


def test_recipe_takes_channels_units_rate_and_scale_from_the_data(tmp_path: Path) -> None:
    for index in range(2):
        write_npz(tmp_path / f"{index}.npz", 3 * waves(8, seed=index) + 1, units=np.array(["g", "g", ""]))
    found = Signals(SignalSettings(), SignalData()).measure(str(tmp_path))
    scale = found.pop("modality.scale.mean"), found.pop("modality.scale.std")
    assert found == {"modality.channels": list(CHANNELS), "modality.units": ["g", "g", ""], "modality.rate": 50.0}
    assert scale[0] == pytest.approx([1] * 3, abs=0.05) and scale[1] == pytest.approx([3 * 0.7141] * 3, rel=0.02)


def test_recordings_that_differ_in_channels_or_rate_are_refused_with_both(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8))
    write_npz(tmp_path / "b.npz", waves(8)[:, :2], ["ax", "pulse"])
    modality = Signals(SignalSettings(), SignalData())
    with pytest.raises(UserError, match=r"a.npz has ax, ay, az; .*b.npz has ax, pulse: name those to use by modality.channels"):
        modality.measure(str(tmp_path))
    assert modality.reading(missing_channels="pad").measure(str(tmp_path))["modality.channels"] == [*CHANNELS, "pulse"]
    write_npz(tmp_path / "b.npz", waves(8, rate=25), rate=25)
    with pytest.raises(UserError, match=r"50 Hz \(.*a.npz\), 25 Hz \(.*b.npz\); set modality.rate"):
        modality.measure(str(tmp_path))


def test_recordings_that_lack_channels_are_counted_in_one_error(tmp_path: Path) -> None:
    for index in range(4):
        write_npz(tmp_path / f"{index}.npz", waves(8)[:, : 2 + (index == 2)], CHANNELS[: 2 + (index == 2)])
    modality = signals()
    with pytest.raises(UserError, match=r"^3 of 4 recordings do not fit, as \S+0\.npz: lacks az of the channels"):
        modality.labelled(modality.rows(str(tmp_path)))


def test_channels_that_no_recording_has_are_refused_with_those_of_a_recording(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", waves(8))
    modality = Signals(SignalSettings(channels=("pulse", "breath")), SignalData())
    message = r"modality.channels: no recording has any of pulse, breath; .*a.npz has ax, ay, az"
    with pytest.raises(UserError, match=message):
        modality.measure(str(tmp_path))


def test_index_names_files_rates_labels_and_subjects(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", waves(8))
    (tmp_path / "metadata.csv").write_text("file_name,rate,label,subject\n0.npy,50,a,s1\n1.npy,100,b,s2\n2.npy,50,a,s1\n")
    modality = signals({"train_rows": {"exclude": {"subject": ["s2"]}}}, channels=("ch1", "ch2", "ch3"))
    rows = modality.selected_rows(str(tmp_path), modality.data.train_rows, "data.train_rows")
    assert rows["subject"][:] == ["s1", "s1"] and [row["rate"] for row in rows["recording"]] == [50.0, 50.0]
    assert modality.labelled(rows).label(0, "label") == "a"
    assert len(modality.labelled(modality.rows(str(tmp_path))).load(2, None, None)) == 200


def test_recordings_in_one_array_are_rows_with_their_labels_and_subjects(tmp_path: Path) -> None:
    array = np.stack([waves(8, seed=seed) for seed in range(4)])
    write_npz(tmp_path / "all.npz", array, label=np.array(["a", "b", "a", "b"]), subject=np.array([1, 1, 2, 2]))
    modality = signals({"train_rows": {"where": {"subject": [2]}}})
    rows = modality.selected_rows(str(tmp_path / "all.npz"), modality.data.train_rows, "data.train_rows")
    assert rows["label"][:] == ["a", "b"] and [row["entry"] for row in rows["recording"]] == ["2", "3"]


@pytest.mark.parametrize("layout", ["joint", "grid"])
def test_signals_are_pretrained_probed_fine_tuned_and_predicted(tmp_path: Path, layout: str) -> None:
    data, kernel = str(write_folder(tmp_path / "data")), "[3]" if layout == "joint" else "[3, 1]"
    small = [*SMALL, f"modality.layout={layout}", f"objective.decoder.kernel={kernel}"]
    run = data2vec.pretrain("signal/v2-tiny", data, small, out=tmp_path / "run")
    model = data2vec.load(run.folder)
    assert model.recipe.modality.channels == CHANNELS and model.recipe.modality.scale.std is not None
    assert (run.folder / "report.html").is_file()
    assert data2vec.probe(run.folder, data, overrides={"data.workers": 0}).valid == 6  # the windows of three recordings
    tuning = [*SMALL[5:8], "data.workers=0", "train.steps=4", "train.device=cpu", "objective.validate_every=2"]
    tuning += ["log.every=2", "log.report=false"]
    tuned = data2vec.finetune("signal/classify-tiny", run.folder, data, data, tuning, out=tmp_path / "tuned")
    paths = sorted(Path(data).glob("*/*.npz"))
    (by_path,) = data2vec.load(tuned.folder).predict(paths[0])
    (by_array,) = data2vec.load(tuned.folder).predict([{"array": waves(), "sampling_rate": 50, "channels": CHANNELS}])
    (plain,) = data2vec.load(tuned.folder).predict([waves()])
    assert by_path.value == by_array.value == plain.value and by_path.probability == pytest.approx(plain.probability, abs=1e-5)
    mixed = {"array": waves()[:, ::-1], "sampling_rate": 50, "channels": CHANNELS[::-1]}
    assert torch.equal(model.features([mixed]).hidden, model.features([waves()]).hidden)
    with pytest.raises(UserError, match="it has a, b, c; the model takes ax, ay, az"):
        data2vec.load(tuned.folder).predict([{"array": waves(), "sampling_rate": 50, "channels": ["a", "b", "c"]}])


def test_run_resumes_bit_exactly_with_gaps_in_the_data(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    holes = waves()
    holes[50:130] = np.nan
    write_npz(data / "class0" / "hole.npz", holes)
    small = [*SMALL, "log.report=false"]
    whole = data2vec.pretrain("signal/v2-tiny", str(data), small, out=tmp_path / "whole")
    with crash_before(4):
        data2vec.pretrain("signal/v2-tiny", str(data), small, out=tmp_path / "broken")
    resumed = data2vec.pretrain("signal/v2-tiny", str(data), small, out=tmp_path / "broken", resume=True)
    assert measured(resumed) == measured(whole)


LARGE = [pytest.param(f"signal/{name}", marks=pytest.mark.slow) for name in ("v2-imu-base", "v2-ecg-small", "v2-eeg-base")]


@pytest.mark.parametrize("name", ["signal/v1-tiny", "signal/v2-tiny", "signal/mae-tiny", *LARGE])
def test_recipe_trains_one_step_with_finite_gradients(name: str) -> None:
    known = {"modality.channels": list(CHANNELS), "modality.rate": 50.0} if name.endswith("-tiny") else {}
    recipe = data2vec.load_recipe(name, known | {"modality.scale.by": "none"})
    whole, modality = recipe.build_objective().train(), recipe.build_modality()
    samples = torch.randn(2, recipe.modality.window, len(recipe.modality.channels))
    samples[0, : recipe.modality.window // 3] = torch.nan
    given, masks = modality.collate(list(samples)), recipe.objective.masks_per_sample
    mask = recipe.objective.mask.draw(2 * masks, modality.grid(given), np.random.default_rng(0)).masked
    mask = unmask_padding(mask.reshape(2, masks, -1), modality.padded_positions(given), np.random.default_rng(0))
    flat = torch.from_numpy(mask).flatten(0, 1)
    indices = flat.flatten().nonzero()[:, 0]
    output = whole(data2vec.batch.MaskedBatch(given.input, given.padding, mask=flat, predicted_indices=indices))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in whole.parameters() if p.grad is not None)


def test_every_weight_has_a_gradient_when_no_sample_is_missing() -> None:
    """As several processes wait for the gradients of all weights in every step."""
    encoder = signals().build_local_encoder(16)
    encoder(Batch(torch.randn(2, 200, 3)))[0].sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None and name != "mask_vector"] == []


def test_annotation_in_the_middle_of_a_window_is_its_label(tmp_path: Path) -> None:
    signal = edfio.EdfSignal(waves(16)[:, 0], 50, label="Fpz-Cz", physical_dimension="uV", physical_range=(-2, 2))
    stages = edfio.EdfAnnotation(0, 6, "W"), edfio.EdfAnnotation(6, 4, "N1"), edfio.EdfAnnotation(14.5, None, "arousal")
    edfio.Edf([signal], annotations=stages).write(tmp_path / "a.edf")
    modality = signals(channels=("Fpz-Cz",), units=("uV",))
    examples = modality.labelled(modality.rows(str(tmp_path)))
    assert [examples.label(index, "event") for index in range(len(examples))] == ["W", "N1", None, None]
    with pytest.raises(UserError, match="no column 'stage'"):
        examples.label(0, "stage")


def test_hours_at_500_hz_are_read_in_bounded_memory(tmp_path: Path) -> None:
    samples = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.int16, (2 * 3600 * 500, 12))  # 86 MB, sparse on disk
    samples[1_800_000:1_801_000] = 7
    samples.flush()
    names = tuple(f"ch{number}" for number in range(1, 13))
    data = {"rate": 500.0, "time_axis": "first"}
    modality = signals(data, channels=names, rate=250.0, window_seconds=10.0, patch=25, filter={"high": 100.0})
    examples = modality.examples(modality.rows(str(tmp_path)))
    assert len(examples) == 720
    tracemalloc.start()
    found = examples.load(360, None, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (2500, 12) and float(found[100, 0]) == pytest.approx(7, abs=0.2) and peak < 20e6


def test_recording_of_one_sample_has_no_position(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", waves(8)[:1])
    modality = signals()
    with pytest.raises(UserError, match="1 recordings can be used, they are too short"):
        modality.examples(modality.rows(str(tmp_path)))
    with pytest.raises(CorruptExample, match="no samples in it"):
        modality.labelled([{"recording": {"array": np.full((40, 3), np.nan)}}]).load(0, None, None)
