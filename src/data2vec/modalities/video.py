"""Videos and volumes: clips of a few frames, embedded as a grid of tubelets in time, rows and columns.

Shapes: B batch, F frames, C channels, T tubelets.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import CountedDataSettings, ExampleDataset, Rows, column_value
from data2vec.data.image import IMAGENET_MEAN, IMAGENET_STD, RGB, Range, random_crop_box, resize
from data2vec.data.mixing import ImageMixing
from data2vec.data.videos.clips import open_clip
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.nn.position_encoders import PositionEncoder, SinCosPositionEncoder

Count = Annotated[int, Field(gt=0)]
MAX_POSITIONS = 2**15
"""Tubelets of a clip."""
CLIPPED = (0.5, 99.5)
"""Percentiles of the values of a volume, beyond which they are cut."""


class VideoSettings(ModalitySettings):
    """The `modality:` section for videos and volumes. Defaults: the clips of VideoMAE."""

    name: Literal["video"] = "video"
    frames: Annotated[int, Field(gt=0, le=2**10)] = 16
    """Frames of a clip, or slices of a volume; a multiple of `tubelet`."""
    tubelet: Annotated[int, Field(gt=0, le=2**7)] = 2
    """Frames of a position."""
    patch: Annotated[int, Field(gt=0, le=2**7)] = 16
    """Rows and columns of pixels of a position."""
    image: Annotated[int, Field(gt=0, le=2**12)] = 224
    """Side of a frame in pixels; a multiple of `patch`."""
    channels: Literal[1, 3] = 3
    """3: red, green and blue; 1: gray, as of volumes, of which colours are converted (ITU-R 601)."""
    values: Literal["pixels", "volume"] = "pixels"
    """pixels: bytes, or floats from 0 to 1, normalized by `mean` and `std`. volume: any numbers; each clip is cut at its 0.5th
    and 99.5th percentile, and brought to mean 0 and standard deviation 1."""
    mean: RGB = IMAGENET_MEAN
    """Subtracted from red, green and blue in 0..1; of gray, their mean."""
    std: RGB = IMAGENET_STD
    """Red, green and blue are then divided by this; gray by their mean."""
    mask_vector: bool = True
    """A learned vector for masked positions; data2vec 2.0 does not encode them and needs none."""


class VideoData(CountedDataSettings):
    """The `data:` section for videos and volumes."""

    frame_stride: Count = 1
    """Every so many frames is taken: 4 for videos of 25 to 30 frames a second (VideoMAE on Kinetics)."""
    crop_scale: Range = (0.5, 1.0)
    """Smallest and largest fraction of a frame's area that a random crop covers; the same for all frames."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip; 0 where left and right matter."""
    batch_size: Count = 256
    """The global batch in clips."""
    micro_batch_size: Count = 16
    """The per-device micro-batch in clips."""


class TubeletEmbedding(LocalEncoder):
    """A linear projection of tubelets; the mask vector replaces projected ones."""

    def __init__(self, settings: VideoSettings, width: int):
        super().__init__()
        self.settings = settings
        self.project = nn.Linear(settings.channels * settings.tubelet * settings.patch**2, width)
        self.init_projection(width, settings.mask_vector, xavier=self.project)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.project(split_tubelets(batch.input, self.settings)), None


def split_tubelets(clip: Tensor, settings: VideoSettings) -> Tensor:
    """A clip (B, F, C, H, W) as its tubelets (B, T, C·tubelet·patch²), by time, row and column."""
    B, F, C, H, W = clip.shape
    t, p = settings.tubelet, settings.patch
    parts = clip.view(B, F // t, t, C, H // p, p, W // p, p).permute(0, 1, 4, 6, 3, 2, 5, 7)
    return parts.reshape(B, (F // t) * (H // p) * (W // p), C * t * p * p)


class VideoExamples(ExampleDataset):
    """Clips (F, C, side, side) of floats, normalized."""

    def __init__(self, rows: Rows, settings: VideoSettings, data: VideoData):
        self.rows, self.settings, self.data = rows, settings, data
        self.costs = np.ones(len(rows))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """A clip at a random time, cropped and flipped with `rng`; without `rng` the middle one, and its center.

        Raises CorruptExample for a video of fewer frames than a clip needs."""
        s, signal = self.settings, self.rows[int(index)]["video"]
        with decoding(signal, "an unnamed video"):
            clip = open_clip(signal)
            stride = self.data.frame_stride
            spare = clip.count - (s.frames - 1) * stride - 1
            if spare < 0:
                strided = f" and data.frame_stride: {stride}" if stride > 1 else ""
                raise CorruptExample(f"too short for modality.frames: {s.frames}{strided}; frames in it: {clip.count}")
            start = spare // 2 if rng is None else int(rng.integers(spare + 1))
            frames = clip.read(range(start, start + (s.frames - 1) * stride + 1, stride))
            video = torch.from_numpy(to_channels(frames, s)).permute(0, 3, 1, 2)  # (F, C, H, W)
        height, width = video.shape[2:]
        if rng is None:
            side = min(height, width)
            box = ((height - side) // 2, (width - side) // 2, side, side)
        else:
            box = random_crop_box(height, width, self.data.crop_scale, self.data.crop_ratio, rng)
        top, left, h, w = box
        crop = video[:, :, top : top + h, left : left + w]
        clip_of_model = resize(crop.flatten(0, 1), (s.image, s.image)).view(s.frames, s.channels, s.image, s.image)
        if rng is not None and rng.random() < self.data.flip:
            clip_of_model = clip_of_model.flip(3)
        return normalized(clip_of_model, s)

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(index), column)


def to_channels(frames: np.ndarray, settings: VideoSettings) -> np.ndarray:
    """Frames (F, H, W, 1 or 3) with the channels of the model, as float32: pixels from 0 to 1, or the numbers of a volume.

    Raises CorruptExample for values that are no pixels, and for a volume with a value that is NaN or inf."""
    if not np.isfinite(frames).all():
        raise CorruptExample("it has values that are NaN or inf")
    numbers = frames.astype(np.float32)
    if settings.values == "pixels":
        highest = 1 if frames.dtype.kind in "fb" else 255
        if numbers.min() < 0 or numbers.max() > highest:
            raise CorruptExample(
                f"values from {numbers.min():g} to {numbers.max():g} in {frames.dtype}, which are no pixels: give integers "
                "from 0 to 255 or floats from 0 to 1, or set modality.values to volume"
            )
        numbers /= highest
    if settings.channels == 3:
        return np.repeat(numbers, 3, axis=3) if numbers.shape[3] == 1 else numbers
    return numbers if numbers.shape[3] == 1 else numbers @ np.array([[0.299], [0.587], [0.114]], np.float32)


def normalized(clip: Tensor, settings: VideoSettings) -> Tensor:
    """A clip (F, C, H, W) of pixels from 0 to 1, or of the numbers of a volume, as the model takes it."""
    if settings.values == "volume":
        low, high = np.percentile(clip.numpy(), CLIPPED)
        cut = clip.clamp(float(low), float(high))
        return (cut - cut.mean()) / (cut.std() + 1e-6)
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    if settings.channels == 1:
        mean, std = mean.mean()[None], std.mean()[None]
    return (clip - mean[:, None, None]) / std[:, None, None]


class Video(Modality):
    """Clips as tubelets."""

    Settings = VideoSettings
    Data = VideoData
    kind = "video"
    Mixing = ImageMixing

    settings: VideoSettings
    data: VideoData

    def __init__(self, settings: VideoSettings, data: VideoData):
        super().__init__(settings, data)
        s = settings
        for key, size, part, unit in (("frames", s.frames, "tubelet", s.tubelet), ("image", s.image, "patch", s.patch)):
            if size % unit:
                raise UserError(f"modality.{key}: {size} is not a multiple of modality.{part}: {unit}; change one of them")
        self.shape = (s.frames // s.tubelet, s.image // s.patch, s.image // s.patch)
        if np.prod(self.shape) > MAX_POSITIONS:
            raise UserError(
                f"modality.frames: a clip has {' x '.join(map(str, self.shape))} positions, more than {MAX_POSITIONS}; set "
                "fewer frames, a smaller modality.image or a larger modality.patch"
            )

    def build_local_encoder(self, width: int) -> TubeletEmbedding:
        return TubeletEmbedding(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        return SinCosPositionEncoder(self.shape, width)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return self.shape

    def input_features(self) -> Mapping[str, InputFeatures]:
        s = self.settings
        return {"raw": InputFeatures(s.channels * s.tubelet * s.patch**2, lambda batch: split_tubelets(batch.input, s))}

    def examples(self, rows: Rows) -> VideoExamples:
        return VideoExamples(rows, self.settings, self.data)

    def collate(self, items: Sequence[Tensor]) -> Batch:
        return Batch(default_collate([item.contiguous() for item in items]))  # in a worker: directly into shared memory
