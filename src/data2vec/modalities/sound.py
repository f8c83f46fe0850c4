"""Sound: log-mel spectrograms of sound events, music or any audio, embedded as patches of time and frequency (EAT).

Positions are a grid of (time, frequency), time first. They are fixed sines and cosines of both, for any length. What a clip has
less than the longest of its batch is padding, which no position attends to.

Shapes: B clips, F frames, N mel bands, R patches in time, C patches in frequency, T = R·C positions, D width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.console.progress import progress
from data2vec.data.audio import decode_audio
from data2vec.data.audio_augment import add_noise, mask_spectrogram, vary_waveform
from data2vec.data.dataset import Rows, Signal
from data2vec.data.mixing import ImageMixing
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.audio_clips import ClipData, ClipExamples, Seconds, crop_waveform
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.modalities.chunking import Chunk, split_into_chunks
from data2vec.modalities.fbank import FbankSettings, fbank
from data2vec.nn.position_encoders import PositionEncoder, sincos_positions
from data2vec.settings import Fraction, JsonDict

MAX_POSITIONS = 2**14
"""Of a training example."""
MEASURED_CLIPS = 4096
"""Clips of the training data from which mean and standard deviation are measured, evenly spaced."""
MEASURED_SHARDS = 64
"""Shards of streamed data that are opened for it."""
Side = Annotated[int, Field(gt=0, le=1024)]


class SoundSettings(ModalitySettings):
    """The `modality:` section for sound. Defaults: EAT."""

    name: Literal["sound"] = "sound"
    fbank: FbankSettings = FbankSettings()
    """The log-mel spectrogram."""
    mean: float | None = None
    """Of the log-mel values of the training data, subtracted from them. null: measured, and saved with the weights."""
    std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of these values, by which they are divided. null: measured, and saved with the weights."""
    num_std: Annotated[float, Field(gt=0)] = 2.0
    """Standard deviations that become 1: 2 in EAT, AST, SSAST, Audio-MAE and BEATs; 1 in M2D."""
    frames: Annotated[int, Field(gt=0, le=2**17)] = 1024
    """Frames of the spans in which longer clips are encoded, which should be as long as clips in training: 1024 are 10.24 s."""
    patch: Annotated[tuple[Side, Side], Field(strict=False)] = (16, 16)
    """Frames and mel bands of a patch."""
    patch_init: Literal["beit", "xavier"] = "xavier"
    """Initial weights of the patch projection: N(0, 0.02) truncated at one std; or Xavier uniform (MAE)."""
    position_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Factor of the sines and cosines of the positions. The tiny recipes have 0.2: with 1, short runs predict the position."""
    attend_padding: bool = False
    """Fill clips up to `frames` with log-mel values of 0, which are encoded like sound, as in the released EAT; otherwise
    clips keep their length, and padding is not attended to."""
    mask_vector: bool = True
    """A learned vector for masked positions; data2vec 2.0 does not encode them and needs none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, total, part in (("fbank.bins", self.fbank.bins, self.patch[1]), ("frames", self.frames, self.patch[0])):
            if total % part:
                raise ValueError(f"{name}: {total} is not a multiple of {part}, the side of a patch; change one of them")
        if (count := self.frames // self.patch[0] * self.columns) > MAX_POSITIONS:
            raise ValueError(f"frames: {self.frames} have {count} positions; at most {MAX_POSITIONS}: enlarge patch")
        return self

    @property
    def columns(self) -> int:
        """C, patches in frequency."""
        return self.fbank.bins // self.patch[1]

    @property
    def normalization(self) -> tuple[float, float]:
        """What is subtracted from log-mel values, and what they are then divided by. Raises UserError if not known yet."""
        if self.mean is None or self.std is None:
            raise UserError("modality.mean, modality.std: not measured yet; set them, or the training data (data.train)")
        return self.mean, self.num_std * self.std

    @property
    def fill(self) -> float:
        """The log-mel value where there is no sound."""
        return 0.0 if self.attend_padding or self.mean is None else self.mean


class SoundData(ClipData):
    """The `data:` section for sound."""

    min_seconds: Seconds = 0.5
    """Shorter clips are left out of pre-training."""
    max_seconds: Seconds = 10.24
    """Longer clips are cropped at random, in pre-training and in fine-tuning."""
    batch_seconds: Seconds = 491.52
    """The global batch in seconds of audio; 48 clips of 10.24 s are 491.52."""
    micro_batch_seconds: Seconds = 122.88
    """The per-device micro-batch in seconds of audio; auto: the largest that fits, measured before the run."""
    roll: bool = False
    """Shift the waveform by a random time; what leaves at the end enters at the start. Like the next ones for fine-tuning."""
    gain_db: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Change the loudness by up to this many decibels, up or down."""
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Add noise of up to this many standard deviations of the training data to the spectrogram."""
    time_mask: Fraction = 0.0
    """Replace a span of up to this share of the frames by the mean of the training data (SpecAugment)."""
    frequency_mask: Fraction = 0.0
    """The same for a span of mel bands."""


class SpectrogramPatches(LocalEncoder):
    """A linear projection of the patches of a normalized spectrogram; the mask vector replaces projected patches."""

    offset: Tensor
    scale: Tensor

    def __init__(self, settings: SoundSettings, width: int):
        super().__init__()
        self.settings = settings
        offset, scale = settings.normalization
        self.register_buffer("offset", torch.tensor(offset), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.project = nn.Linear(settings.patch[0] * settings.patch[1], width)
        self.init_projection(width, settings.mask_vector, xavier=self.project if settings.patch_init == "xavier" else None)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        patches = split_patches((batch.input - self.offset) / self.scale, self.settings)
        padding = None if batch.padding is None else padded_patches(batch.padding, self.settings)
        return self.project(patches), padding


def split_patches(spectrogram: Tensor, settings: SoundSettings) -> Tensor:
    """A spectrogram (B, F, N) as its patches (B, T, values of a patch), row by row: all of one time, then of the next."""
    B, frames, bins = spectrogram.shape
    time, band = settings.patch
    patches = spectrogram.view(B, frames // time, time, bins // band, band).transpose(2, 3)
    return patches.reshape(B, -1, time * band)


def padded_patches(padding: Tensor, settings: SoundSettings) -> Tensor:
    """(B, T): the positions that are padding, of the frames (B, F) that are."""
    rows: Tensor = padding.unflatten(1, (-1, settings.patch[0])).all(-1)
    return rows.repeat_interleave(settings.columns, dim=1)


class SpectrogramPositions(PositionEncoder):
    """Fixed sines and cosines of frequency and time, added to the patches of a clip of any length."""

    table: Tensor

    def __init__(self, settings: SoundSettings, width: int):
        super().__init__()
        self.columns, self.width, self.scale = settings.columns, width, settings.position_scale
        self.register_buffer("table", self._sincos(settings.frames // settings.patch[0]), persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        T = x.shape[1]
        table = self.table[:T]
        if len(self.table) < T:
            table = self._sincos(T // self.columns).to(x.device)
        return x + table.to(x.dtype)

    def _sincos(self, rows: int) -> Tensor:
        return self.scale * sincos_positions((rows, self.columns), self.width)


class SoundExamples(ClipExamples):
    """Log-mel spectrograms of clips, as long as a number of patches."""

    def __init__(self, rows: Rows, settings: SoundSettings, data: SoundData, full: bool = False):
        super().__init__(rows, data, settings.fbank.frame / settings.fbank.rate, full)
        self.settings, self.data = settings, data

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(F, N) log-mel values, not normalized, of the clip cropped to `limit` seconds. With `rng`, from a random place and
        augmented; and without `limit`, cropped to `data.max_seconds`, so that long clips do not decide the size of a batch."""
        s, rate = self.settings, self.settings.fbank.rate
        waveform = decode_audio(self.rows[int(self.keys[index])]["audio"], rate)
        if limit is None and rng is not None and len(waveform) > self.data.max_seconds * rate:
            limit = self.data.max_seconds
        if limit is not None:
            waveform = crop_waveform(waveform, limit, rate, rng)
        if rng is not None:
            waveform = vary_waveform(waveform, self.data.roll, self.data.gain_db, rng)
        spectrogram = fbank(waveform, s.fbank)
        if rng is not None:
            spectrogram = add_noise(spectrogram, self.data.noise, s.std or 1.0, rng)
            spectrogram = mask_spectrogram(spectrogram, self.data.time_mask, self.data.frequency_mask, s.mean or 0.0, rng)
        return torch.from_numpy(self._complete(spectrogram))

    def _complete(self, spectrogram: np.ndarray) -> np.ndarray:
        """A spectrogram (F, N) as long as the nearest number of patches, at least one; or at least `frames`, with padding that
        is attended to."""
        s, time = self.settings, self.settings.patch[0]
        length = max(1, (2 * len(spectrogram) + time) // (2 * time)) * time
        if s.attend_padding:
            length = max(length, s.frames)
        missing = max(0, length - len(spectrogram))
        return np.pad(spectrogram[:length], ((0, missing), (0, 0)), constant_values=s.fill)


class Sound(Modality):
    """Audio as patches of a log-mel spectrogram."""

    Settings = SoundSettings
    Data = SoundData
    kind = "audio"
    Mixing = ImageMixing
    supports_padding = True

    settings: SoundSettings
    data: SoundData

    def build_local_encoder(self, width: int) -> SpectrogramPatches:
        return SpectrogramPatches(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> SpectrogramPositions:
        return SpectrogramPositions(self.settings, width)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return batch.input.shape[1] // self.settings.patch[0], self.settings.columns

    def padded_positions(self, batch: Batch) -> np.ndarray | None:
        return None if batch.padding is None else padded_patches(batch.padding, self.settings).numpy()

    def input_features(self) -> Mapping[str, InputFeatures]:
        s = self.settings
        offset, scale = s.normalization
        return {"raw": InputFeatures(s.patch[0] * s.patch[1], lambda batch: split_patches((batch.input - offset) / scale, s))}

    def examples(self, rows: Rows) -> SoundExamples:
        return SoundExamples(rows, self.settings, self.data)

    def labelled(self, rows: Rows) -> SoundExamples:
        return SoundExamples(rows, self.settings, self.data, full=True)

    def collate(self, items: Sequence[Tensor]) -> Batch:
        longest = max(len(item) for item in items)
        if all(len(item) == longest for item in items):
            return Batch(default_collate(list(items)))
        padded = [F.pad(item, (0, 0, 0, longest - len(item)), value=self.settings.fill) for item in items]
        lengths = torch.tensor([len(item) for item in items])
        return Batch(default_collate(padded), torch.arange(longest) >= lengths[:, None])

    def chunks(self, batch: Batch) -> Sequence[Chunk] | None:
        """Spans of `frames` that overlap by half; None if the batch is no longer than one."""
        (time, _), frames, columns = self.settings.patch, self.settings.frames, self.settings.columns
        if batch.input.shape[1] <= frames:
            return None
        found = split_into_chunks(batch.input.shape[1], frames, frames // time // 2 * time, ((1, time, time),), 1)
        return [
            Chunk(each.samples, each.first_frame * columns, slice(each.kept.start * columns, each.kept.stop * columns))
            for each in found
        ]

    def example_input(self, positions: int) -> Tensor:
        if positions % self.settings.columns:
            raise UserError(f"{positions} positions are not a multiple of the {self.settings.columns} of a patch of time")
        frames = positions // self.settings.columns * self.settings.patch[0]
        return torch.randn(frames, self.settings.fbank.bins, generator=torch.Generator().manual_seed(0)) + self.settings.fill

    def measure(self, path: str) -> JsonDict:
        """`modality.mean` and `modality.std` of the log-mel values of the data at `path`, unless the recipe gives them."""
        if self.settings.mean is not None and self.settings.std is not None:
            return {}
        rows = self.selected_rows(path, self.data.train_rows, "data.train_rows")
        signals = streamed_signals(rows) if self.data.streaming else spaced_signals(self.examples(rows))
        mean, std = measure_log_mel(signals, self.settings.fbank, self.data.min_seconds)
        measured = {"mean": mean, "std": std}
        return {f"modality.{key}": value for key, value in measured.items() if getattr(self.settings, key) is None}


def spaced_signals(examples: SoundExamples) -> Iterator[Signal]:
    """The signals of at most `MEASURED_CLIPS` evenly spaced examples."""
    for index in np.linspace(0, len(examples) - 1, min(len(examples), MEASURED_CLIPS)).astype(int):
        yield examples.rows[int(examples.keys[index])]["audio"]


def streamed_signals(rows: Rows) -> Iterator[Signal]:
    """At most `MEASURED_CLIPS` signals of a stream: as many from the beginning of each of at most `MEASURED_SHARDS` evenly
    spaced shards."""
    shards = np.linspace(0, rows.num_shards - 1, min(rows.num_shards, MEASURED_SHARDS)).astype(int)
    for shard in shards.tolist():
        for row in islice(rows.shard(rows.num_shards, shard), MEASURED_CLIPS // len(shards)):
            yield row["audio"]


def measure_log_mel(signals: Iterable[Signal], settings: FbankSettings, min_seconds: float) -> tuple[float, float]:
    """Mean and standard deviation, to 6 digits, of all log-mel values of the complete signals of at least `min_seconds`.

    Raises UserError if there is none."""
    count, total, squares, short, corrupt = 0, 0.0, 0.0, 0, list[str]()
    for signal in progress(signals, desc="measuring log-mel values", unit="clip", delay=3):
        try:
            waveform = decode_audio(signal, settings.rate)
        except CorruptExample as error:
            corrupt.append(str(error))
            continue
        if len(waveform) < min_seconds * settings.rate:
            short += 1
            continue
        values = fbank(waveform, settings)
        count += values.size
        total += float(values.sum(dtype=np.float64))
        squares += float(np.square(values, dtype=np.float64).sum())
    if not count:
        problems = [f"{short} are shorter than data.min_seconds: {min_seconds:g}"] if short else []
        problems += [f"{len(corrupt)} cannot be read, such as {corrupt[0]}"] if corrupt else []
        remedies = ["lower data.min_seconds"] if short else ["repair or replace them"] if corrupt else []
        if not problems or short + len(corrupt) > MEASURED_CLIPS - MEASURED_SHARDS:  # other clips may be usable
            remedies.append("set modality.mean and modality.std")
        found = " and ".join(problems) or "there is none in the first of the data"
        raise UserError(f"modality.mean: cannot be measured on the clips: {found}; {', or '.join(remedies)}")
    mean = total / count
    std = max(squares / count - mean**2, 1e-12) ** 0.5
    return float(f"{mean:.6g}"), float(f"{std:.6g}")
