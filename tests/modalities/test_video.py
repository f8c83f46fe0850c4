"""Videos and volumes: clips, tubelets, positions and masks in time, rows and columns; data sets of folders of frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data2vec
from data2vec.batch import Batch
from data2vec.conformance.check_modality import check_modality
from data2vec.data.dataset import ExampleDataset
from data2vec.demo.moving_shapes import DIRECTIONS, write_moving_shapes
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.video import Video, VideoData, VideoSettings, split_tubelets
from data2vec.nn.conv_decoder import ConvDecoder, ConvDecoderSettings
from data2vec.nn.position_encoders import sincos_positions
from data2vec.objective.masking import FixedBlockMask, RandomMask
from data2vec.report.renderers import ClipRenderer, build_renderer

SMALL = {"frames": 4, "tubelet": 2, "image": 16, "patch": 8}


def video(data: dict[str, Any] | None = None, **settings: Any) -> Video:
    return Video(VideoSettings(**SMALL | settings), VideoData(**(data or {})))


def examples(clip: np.ndarray, data: dict[str, Any] | None = None, **settings: Any) -> ExampleDataset:
    """A data set of a single clip."""
    return video(data, **settings).examples([{"video": {"array": clip, "path": "a clip"}}])


def test_tubelet_holds_its_frames_rows_and_columns_of_pixels() -> None:
    settings = VideoSettings(**SMALL)
    clip = torch.arange(4 * 3 * 16 * 16.0).view(1, 4, 3, 16, 16)
    tubelets = split_tubelets(clip, settings)
    assert tubelets.shape == (1, 8, 3 * 2 * 8 * 8)
    assert torch.equal(tubelets[0, 5], clip[0, 2:4, :, 0:8, 8:16].transpose(0, 1).flatten()), "time 1, row 0, column 1"
    assert video().grid(Batch(clip)) == (2, 2, 2)


def test_positions_of_three_axes_are_all_different_and_fill_the_width() -> None:
    table = sincos_positions((3, 4, 5), 64)
    assert table.shape == (60, 64)
    assert len(torch.unique(table, dim=0)) == 60
    assert torch.equal(table[:, 60:], torch.zeros(60, 4)), "64 is no multiple of 6"
    by_axis = table[:, :60].view(3, 4, 5, 3, 20)
    assert torch.equal(by_axis[0, 0, :, 0], by_axis[2, 3, :, 0]), "the first part is that of the column"
    assert torch.equal(by_axis[:, 0, 0, 2], by_axis[:, 3, 4, 2]), "the last that of time"


@pytest.mark.parametrize("mask", [FixedBlockMask(prob=0.6, length=2, inverse=True), RandomMask(prob=0.6)])
def test_extruded_mask_is_the_same_at_all_times(mask: Any) -> None:
    drawn = mask.model_copy(update={"extrude": "time"}).draw(6, (3, 4, 5), np.random.default_rng(0)).masked.reshape(6, 3, 20)
    assert (drawn == drawn[:, :1]).all()
    assert len({row.tobytes() for row in drawn[:, 0]}) == 6
    assert len(set(drawn[:, 0].sum(1))) == 1
    free = mask.draw(6, (3, 4, 5), np.random.default_rng(0)).masked.reshape(6, 3, 20)
    assert (free != free[:, :1]).any(), "blocks of time, rows and columns"
    with pytest.raises(UserError, match=r"objective\.mask\.extrude"):
        mask.model_copy(update={"extrude": "time"}).draw(6, (4, 5), np.random.default_rng(0))


def test_decoder_with_a_kernel_of_three_axes_sees_neighbours_in_time() -> None:
    torch.manual_seed(0)
    settings = ConvDecoderSettings(layers=1, kernel=(3, 1, 1), groups=1, width=8, noise_std=0, dropout=0)
    decoder = ConvDecoder(settings, 8).eval()
    masked = torch.tensor([i for i in range(12) if i != 4])  # all but time 1, row 0, column 0

    def output(x: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(12, 8)
        full[masked] = decoder(x, torch.tensor([[4]]), masked, (3, 2, 2))
        return full

    seen, nothing = output(torch.randn(1, 1, 8)), output(torch.zeros(1, 1, 8))
    changed = (seen != nothing).any(1).nonzero()[:, 0].tolist()
    assert changed == [0, 8], "the same place at the time before and after"


def test_clip_in_evaluation_is_the_middle_of_the_video_and_its_center() -> None:
    clip = np.zeros((11, 16, 20, 3), np.uint8)
    clip[:, :, 2:18] = 10 * np.arange(11, dtype=np.uint8)[:, None, None, None]
    data = examples(clip, {"frame_stride": 2}, mean=(0, 0, 0), std=(1, 1, 1))
    loaded = data.load(0, None, None)
    assert loaded.shape == (4, 3, 16, 16)
    assert torch.allclose(loaded.mean((1, 2, 3)) * 255, torch.tensor([20.0, 40, 60, 80]), atol=1e-3), "frames 2, 4, 6, 8"


def test_clip_in_training_depends_on_the_generator_alone() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (9, 24, 30, 3), dtype=np.uint8)
    first, again, other = (examples(clip).load(0, None, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_video_that_is_too_short_is_corrupt() -> None:
    with pytest.raises(
        CorruptExample, match=r"a clip: too short for modality\.frames: 4 and data\.frame_stride: 2; .* in it: 6"
    ):
        examples(np.zeros((6, 16, 16)), {"frame_stride": 2}).load(0, None, None)


def test_numbers_of_a_volume_are_cut_and_standardized() -> None:
    volume = np.random.default_rng(0).normal(1000, 300, (6, 16, 16)).astype(np.int16)
    volume[3, 0, 0] = 32000
    loaded = examples(volume, values="volume", channels=1).load(0, None, None)
    assert loaded.shape == (4, 1, 16, 16)
    assert (abs(float(loaded.mean())), float(loaded.std())) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-3))
    assert float(loaded.max()) < 4, "the outlier is cut"
    with pytest.raises(CorruptExample, match=r"which are no pixels: .* set modality\.values to volume"):
        examples(volume, channels=1).load(0, None, None)
    with pytest.raises(CorruptExample, match="NaN or inf"):
        examples(np.full((6, 16, 16), np.nan), values="volume", channels=1).load(0, None, None)


def test_settings_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"modality\.frames: 5 is not a multiple of modality\.tubelet: 2"):
        video(frames=5)
    with pytest.raises(UserError, match=r"modality\.image: 20 is not a multiple"):
        video(image=20)
    with pytest.raises(UserError, match="more than 32768"):
        video(frames=1024, image=512, patch=8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_moving_shapes(folder, 16, frames=6, side=16)
    return folder


def test_moving_shapes_move_in_the_direction_of_their_folder(clips: Path) -> None:
    assert {path.name for path in clips.iterdir()} == set(DIRECTIONS)
    clip = np.load(clips / "right" / "0.npy").astype(float).sum(-1)
    shift = [np.abs(np.roll(clip[0], s, axis=1) - clip[1]).mean() for s in (-2, -1, 1, 2)]
    assert min(shift[2:]) < min(shift[:2])


def test_folders_of_frames_are_clips_with_labels_and_splits(clips: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for path in sorted(clips.rglob("*.npy"))[:: 1 if split == "train" else 4]:
            folder = tmp_path / split / path.parent.name / path.stem
            folder.mkdir(parents=True)
            for number, frame in enumerate(np.load(path)):
                Image.fromarray(frame).save(folder / f"{number}.png")
    modality = video({"train": str(tmp_path)})
    found = modality.examples(modality.rows(str(tmp_path)))
    valid = modality.validation()
    assert (len(found), len(valid.rows(str(tmp_path)))) == (16, 4)
    assert {found.label(i, "label") for i in range(16)} == set(DIRECTIONS)
    arrays = modality.examples(modality.rows(str(clips)))
    assert torch.equal(found.load(0, None, None), arrays.load(0, None, None)), "the same frames as an array"
    one = tmp_path / "valid" / "up"
    assert len(modality.reading(split="all").rows(str(next(one.iterdir())))) == 1, "a folder of frames by itself is a clip"


def test_animated_images_are_clips_not_frames_of_their_folder(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(5)]
    for name in ("up/a.gif", "up/b.gif", "down/a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        flat[0].save(tmp_path / name, save_all=True, append_images=flat[1:])
    rows = video().rows(str(tmp_path))
    assert [(Path(row["video"]["path"]).name, row["label"]) for row in rows] == [
        ("a.webp", "down"),
        ("a.gif", "up"),
        ("b.gif", "up"),
    ]


def test_a_stream_of_clips_has_the_same_clips(clips: Path) -> None:
    streamed = list(video({"streaming": True}).rows(str(clips)))
    assert sorted(row["video"]["path"] for row in streamed) == sorted(map(str, clips.rglob("*.npy")))


def test_clips_are_drawn_as_frames_side_by_side_with_their_positions() -> None:
    inputs = np.random.default_rng(0).normal(size=(2, 4, 3, 16, 16))
    renderer = build_renderer("video", inputs, (2, 2, 2), None, [])
    assert isinstance(renderer, ClipRenderer)
    assert renderer.images.shape == (2, 16, 32, 3)
    colours = np.zeros((1, 1, 8, 4))
    colours[0, 0, 5] = (1, 0, 0, 1)  # time 1, row 0, column 1
    figure = renderer.render(colours, ["mask"])
    image = figure.axes[0].images[0].get_array()
    red = np.argwhere((np.asarray(image)[..., :3] == (1, 0, 0)).all(-1))
    assert (red.min(0).tolist(), red.max(0).tolist()) == ([0, 24], [7, 31]), "in the second frame, at the upper right"
    views = renderer.render(np.zeros((3, 1, 8, 4)), ["input", "mask 1", "mask 2"])
    height, width = np.asarray(views.axes[0].images[0].get_array()).shape[:2]
    assert height > 3 * 16 and width < 2 * 32, "views are below each other: side by side, frames would be too small"
    assert [label.get_text() for label in views.axes[0].get_yticklabels()] == ["input", "mask 1", "mask 2"]


def test_video_keeps_the_contract_of_modalities(clips: Path) -> None:
    tiny = {"modality.frames": 4, "modality.image": 16, "modality.patch": 8, "data.batch_size": 4, "data.micro_batch_size": 2}
    report = check_modality("video", str(clips), tiny)
    others = {result.name: result.status for result in report.results if result.status != "ok"}
    assert others == dict.fromkeys(("padding", "chunks", "labels"), "skipped"), str(report)


def test_shipped_recipes_train_and_their_models_take_files_and_arrays(clips: Path, tmp_path: Path) -> None:
    common = {
        **{"modality.frames": 4, "modality.image": 16, "encoder.width": 16, "encoder.layers": 2, "encoder.ffn_width": 32},
        **{"data.batch_size": 4, "data.micro_batch_size": 4, "data.workers": 0, "train.steps": 2, "train.device": "cpu"},
        **{"train.schedule.warmup_steps": 1, "log.report": False},
    }
    method = {"objective.target.top_k": 1, "objective.decoder.width": 8, "objective.masks_per_sample": 2}
    run = data2vec.pretrain("video/v2-tiny", str(clips), common | method, tmp_path / "run")
    model = data2vec.load(run.folder)
    path = clips / "up" / "3.npy"
    by_path, by_array = (model.features(each).hidden for each in (str(path), np.load(path)))
    assert by_path.shape == (1, 1, 2 * 2 * 2, 16)
    assert torch.equal(by_path, by_array)
    tuned = data2vec.finetune("video/classify-tiny", run.folder, str(clips), str(clips), common, tmp_path / "tuned")
    (answer,) = data2vec.load(tuned.folder).predict(str(path))
    assert answer.value in DIRECTIONS
