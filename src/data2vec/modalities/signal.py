"""Signals: multi-channel time series such as EEG, ECG, EMG or inertial sensors, embedded as patches of time.

In the `joint` layout a position is a patch of time with all channels; in the `grid` layout it is a patch of one channel, and
positions are a grid of (patches, channels), on which masks have two axes. What is missing, such as a gap, or a channel that a
recording does not have, is padding: no position attends to it, and it is never predicted.

Shapes: B samples, T patches of time, S samples in time, C channels, P samples of a patch, D width.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.console.progress import progress
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import CountedDataSettings, ExampleDataset, Rows, Signal, column_value
from data2vec.data.recordings.channels import canonical, named_twice, unit_factor
from data2vec.data.recordings.electrodes import POSITIONS
from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.preprocessing import FilterSettings
from data2vec.data.recordings.recording import Description, Recording, TimeAxis, TimeUnit
from data2vec.data.recordings.rows import KIND, one_row_each
from data2vec.data.recordings.scaling import ScaleSettings, statistics
from data2vec.data.recordings.windows import Montage, WindowReader, recording_name
from data2vec.errors import CorruptExample, UserError, get_logger
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.modalities.chunking import Chunk, split_into_chunks
from data2vec.nn.cpu_kernels import norm_gelu
from data2vec.nn.layer_norm import LayerNorm
from data2vec.nn.position_encoders import PaddingMode, PositionEncoder, sincos_positions
from data2vec.settings import Fraction, JsonDict

log = get_logger(__name__)

MAX_POSITIONS = 2**14
"""Of a window."""
STEM_CHANNELS = 8
"""Channels of the convolutions of a stem, for each channel of the input."""
STEM_STRIDE = 8
"""The largest stride of its first convolution."""
TRIES = 8
"""Random windows that are tried until one has enough samples."""
MEASURED_WINDOWS = 4096
"""Windows of the training data from which mean and standard deviation are measured, evenly spaced."""
SET_STEP = 1e-9
"""By how much the costs of windows with different sets of channels differ."""
SHOWN = 5
EVENT = "event"
"""The label column that stands for the annotations in the files of recordings."""

Names = Annotated[tuple[str, ...], Field(strict=False, max_length=4096)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class SignalSettings(ModalitySettings):
    """The `modality:` section for signals. What is null is read off the training data, and saved with the weights."""

    name: Literal["signal"] = "signal"
    channels: Names | None = None
    """The channels that the model takes, in this order; of a recording they are found by name. null: those of the data."""
    units: Names | None = None
    """The unit of each channel; "" for any. null: those of the data."""
    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Hz, to which recordings are resampled. null: that of the data."""
    window_seconds: Seconds = 4.0
    """Length of a training example, and of the spans in which longer recordings are encoded."""
    patch: Annotated[int, Field(gt=0, le=2**14)] = 8
    """Samples of a patch; a window must be a multiple of it."""
    layout: Literal["joint", "grid"] = "joint"
    """What a position is: a patch of time with all channels; or a patch of one channel."""
    stem: Literal["linear", "conv"] = "linear"
    """How a patch becomes a vector: a linear projection; or two convolutions inside the patch before it."""
    spectrum: bool = False
    """Add a linear projection of the amplitude spectrum of the patch."""
    channel_identity: Literal["name", "position", "none"] = "name"
    """With the grid layout, what is added to a vector to say which channel it is of: a learned vector for each name; a
    projection of the place of the electrode on the head (10-20 and 10-10 names); or nothing."""
    positions: Literal["learned", "sincos"] = "learned"
    """The position in time: a learned vector for each patch of a window; or fixed sines and cosines."""
    aliases: dict[str, str] = Field(default={})
    """Other names of channels: {accX: ax}. Electrodes and inertial sensors have built-in ones: EEG T3-REF is T7, ax acc_x."""
    filter: FilterSettings = FilterSettings()
    """Filters, before resampling."""
    scale: ScaleSettings = ScaleSettings()
    """Scaling of the readings."""
    max_missing: Fraction = 0.5
    """A position is padding if more than this fraction of its samples is missing; otherwise these are 0, the mean."""
    mask_vector: bool = True
    """A learned vector for masked positions; data2vec 2.0 does not encode them and needs none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.channels is not None:
            if not self.channels:
                raise ValueError("channels: none; name at least one")
            names = [canonical(name, self.aliases) for name in self.channels]
            if twice := named_twice(self.channels, self.aliases):
                raise ValueError(f"channels: {twice} is named twice")
            for key, values in (("units", self.units), ("scale.mean", self.scale.mean), ("scale.std", self.scale.std)):
                if values is not None and len(values) != len(self.channels):
                    raise ValueError(f"{key}: {len(values)} values for {len(self.channels)} channels")
            by_place = self.layout == "grid" and self.channel_identity == "position"
            if by_place and (unknown := [name for name in names if name not in POSITIONS]):
                shown = ", ".join(unknown[:SHOWN])
                raise ValueError(f"channel_identity: position, but {shown} is no electrode of the 10-20 system; use name")
        elif self.units is not None or self.scale.mean is not None or self.scale.std is not None:
            raise ValueError("units, scale.mean or scale.std are given, but not the channels that they are of")
        if self.rate is not None:
            samples = self.window_seconds * self.rate
            if abs(samples - round(samples)) > 1e-6 or round(samples) % self.patch or round(samples) < 2 * self.patch:
                raise ValueError(
                    f"window_seconds: {self.window_seconds:g} at {self.rate:g} Hz are {samples:g} samples, not a multiple of "
                    f"patch: {self.patch}, and at least two"
                )
            positions = round(samples) // self.patch * (len(self.channels or ()) if self.layout == "grid" else 1)
            if positions > MAX_POSITIONS:
                raise ValueError(f"a window has {positions} positions; at most {MAX_POSITIONS}: enlarge patch")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The channels. Raises UserError if they are not known yet."""
        if self.channels is None:
            raise UserError("modality.channels: not known yet; name them, or the training data (data.train) that has them")
        return self.channels

    @property
    def hertz(self) -> float:
        """The rate. Raises UserError if it is not known yet."""
        if self.rate is None:
            raise UserError("modality.rate: not known yet; set it, in Hz, or the training data (data.train) that has it")
        return self.rate

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(self.window_seconds * self.hertz)


class SignalData(CountedDataSettings):
    """The `data:` section for signals."""

    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Hz, of files that do not say it: numpy arrays, and tables without a column of times."""
    time_axis: TimeAxis | None = None
    """Of arrays: first for (samples, channels), last for (channels, samples). Needed unless names of channels decide it."""
    channels: Names | None = None
    """Names, in the order of the file, of channels of files without names."""
    time_column: str | None = None
    """The column of times of a table; null: one with a known name, such as time."""
    time_unit: TimeUnit | None = None
    """Of the numbers in this column; null: what its name says, as time_ms does, or seconds where nothing else is likely."""
    array: str | None = None
    """The array that holds the signal, of files with several."""
    missing_channels: Literal["error", "pad"] = "error"
    """What becomes of a recording that lacks channels of the model: an error; or they are padding."""
    channel_dropout: Fraction = 0.0
    """In training, the probability that a channel is left out of an example, as if it were missing; one at least stays, and all
    do where too few would be left for any position, by `modality.max_missing`."""
    min_present: Fraction = 0.5
    """In training, windows of which less than this fraction is there are not used: gaps, and the end of short recordings."""
    hop_seconds: Seconds | None = None
    """In evaluation, the distance of windows of a recording; null: a window."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """The global batch in windows."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 64
    """The per-device micro-batch in windows; auto: the largest that fits, measured before the run."""

    @property
    def description(self) -> Description:
        """What these settings say of files that do not say it themselves."""
        return Description(self.time_axis, self.rate, self.channels, self.time_column, self.time_unit, self.array)


class PatchStem(nn.Module):
    """Two convolutions inside a patch, each with a layer norm over the channels without parameters and GELU.

    No output depends on a sample of another patch, which may be masked."""

    def __init__(self, channels: int, patch: int):
        super().__init__()
        stride = max(each for each in range(1, STEM_STRIDE + 1) if patch % each == 0)
        inner = STEM_CHANNELS * channels
        self.first = nn.Conv1d(channels, inner, 2 * stride + 1, stride, padding=stride)
        self.second = nn.Conv1d(inner, inner, 3, padding=1)
        self.width = inner * (patch // stride)

    def forward(self, patches: Tensor) -> Tensor:
        """(R, channels, P) to (R, width)."""
        y = norm_gelu(self.first(patches).mT)
        y = norm_gelu(self.second(y.mT).mT)
        return y.flatten(1)


class PatchEmbedding(LocalEncoder):
    """Patches of time to vectors. In the joint layout a learned vector for each channel encodes how much of it is missing."""

    def __init__(self, settings: SignalSettings, width: int):
        super().__init__()
        self.settings, self.channels = settings, len(settings.names)
        inner = self.channels if settings.layout == "joint" else 1
        self.stem = PatchStem(inner, settings.patch) if settings.stem == "conv" else None
        self.project = nn.Linear(inner * settings.patch if self.stem is None else self.stem.width, width)
        self.spectrum = nn.Linear(inner * (settings.patch // 2 + 1), width) if settings.spectrum else None
        self.missing = nn.Parameter(torch.zeros(self.channels, width)) if settings.layout == "joint" else None
        # Sines have an amplitude of 1; vectors that start as small as beside learned positions would be lost in them.
        self.init_projection(width, settings.mask_vector, xavier=self.project if settings.positions == "sincos" else None)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        patches = split_patches(batch.input, self.settings)  # (B, positions, channels, P)
        rows = patches.flatten(0, 1)
        x: Tensor = self.project(rows.flatten(1) if self.stem is None else self.stem(rows))
        if self.spectrum is not None:
            amplitudes = torch.fft.rfft(rows.float(), norm="forward").abs().to(rows.dtype)
            x = x + self.spectrum(amplitudes.flatten(1))
        x = x.view(*patches.shape[:2], -1)
        if batch.padding is None:  # the unused weight has a gradient all the same, which several processes wait for
            return x if self.missing is None else x + 0 * self.missing.sum(), None
        absent = absent_shares(batch.padding, self.settings)
        if self.missing is not None:
            x = x + absent.to(x.dtype) @ self.missing
        return x, absent.mean(-1) > self.settings.max_missing


def split_patches(samples: Tensor, settings: SignalSettings) -> Tensor:
    """Samples (B, S, C) as patches (B, positions, channels, P): positions are patches of time, with all channels; or patches of
    time and of one channel, channel by channel within a time. Samples at the end that fill no patch are left out."""
    B, S, C = samples.shape
    P = settings.patch
    patches = samples[:, : S // P * P].reshape(B, S // P, P, C).mT  # (B, T, C, P)
    return patches if settings.layout == "joint" else patches.reshape(B, S // P * C, 1, P)


def absent_shares(missing: Tensor, settings: SignalSettings) -> Tensor:
    """The share of samples that is missing (B, positions, channels), of `missing` (B, S, C).

    A position is padding where its mean over channels is more than `max_missing`."""
    return split_patches(missing, settings).float().mean(-1)


class SignalPositionEncoder(PositionEncoder):
    """Adds the position in time, and which channel a vector is of; padding becomes zero. Then a layer norm."""

    table: Tensor
    places: Tensor | None

    def __init__(self, settings: SignalSettings, width: int, padding: PaddingMode = "zero_every_layer"):
        super().__init__()
        self.padding = padding
        self.channels = len(settings.names) if settings.layout == "grid" else 1
        self.length = settings.window // settings.patch
        self.time: nn.Parameter | None = None
        if settings.positions == "learned":
            self.time = nn.Parameter(nn.init.normal_(torch.empty(self.length, width), std=0.02))
        else:
            self.register_buffer("table", sincos_positions((self.length,), width), persistent=False)
        identity = settings.channel_identity if settings.layout == "grid" else "none"
        self.identity = (
            nn.Parameter(nn.init.normal_(torch.empty(self.channels, width), std=0.02)) if identity == "name" else None
        )
        self.place = nn.Linear(3, width) if identity == "position" else None
        if self.place is not None:  # as small as a learned vector: a larger one than the content is all that targets would hold
            nn.init.normal_(self.place.weight, std=0.02)
            nn.init.zeros_(self.place.bias)
        places = [POSITIONS[canonical(name, settings.aliases)] for name in settings.names] if self.place is not None else None
        self.register_buffer("places", None if places is None else torch.tensor(places), persistent=False)
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Raises ValueError for more positions than a window has."""
        B, positions, D = x.shape
        T = positions // self.channels
        if self.length < T:
            raise ValueError(f"{T} patches are longer than the {self.length} of a window of this model; encode it in chunks")
        added = (self.table if self.time is None else self.time)[:T, None]
        if self.identity is not None:
            added = added + self.identity
        if self.place is not None:
            assert self.places is not None
            added = added + self.place(self.places.to(added.dtype))
        y: Tensor = self.norm((x.view(B, T, self.channels, D) + added.to(x.dtype)).view(B, positions, D))
        return y if padding is None else y.masked_fill(padding[..., None], 0.0)


class SignalExamples(ExampleDataset):
    """Windows of recordings, as (S, C) float32 with NaN for what is missing.

    In training each is at a random place around its turn. In evaluation, `full`, windows follow each other at `hop_seconds`; or
    with `complete`, an example is a complete recording. `num_short` counts recordings left out in training as less than
    `min_present` of a window."""

    def __init__(self, rows: Rows, modality: "Signals", full: bool = False, complete: bool = False):
        self.rows, self.settings, self.data, self.full = rows, modality.settings, modality.data, full
        self.complete = complete
        self.reader = modality.window_reader()
        lengths, self.corrupt = _lengths(rows, self.reader)
        window, hop = self.settings.window, self.settings.window
        least = 1 if complete or full else math.ceil(self.data.min_present * window)
        if full and self.data.hop_seconds is not None:
            hop = max(1, round(self.data.hop_seconds * self.settings.hertz))
        usable = lengths >= least
        self.num_short = int((lengths >= 0).sum() - usable.sum())
        keys, starts = list[np.ndarray](), list[np.ndarray]()
        for row in np.flatnonzero(usable).tolist():
            first = np.arange(0, 1 if complete else max(lengths[row] - window, 0) + 1, hop)
            keys.append(np.full(len(first), row))
            starts.append(first)
        self.keys = np.concatenate(keys) if keys else np.empty(0, np.int64)
        """(n,) the recording of each window."""
        self.starts = np.concatenate(starts) if starts else np.empty(0, np.int64)
        self.lengths, self.recordings = lengths, self.keys
        self.costs = self._costs()
        if isinstance(rows, list):
            return
        if self.num_short:
            log.warning(
                "%d of %d recordings are shorter than %g s and are left out",
                *(self.num_short, len(rows), least / self.settings.hertz),
            )
        if not len(self.keys):
            problem = f"such as {self.corrupt[0]}" if self.corrupt else "they are too short: lower modality.window_seconds"
            raise UserError(f"none of the {len(rows)} recordings can be used, {problem}")

    @property
    def total(self) -> int:
        return len(self.keys) + len(self.corrupt)

    def _costs(self) -> np.ndarray:
        """(n,) one for each window. Batches are of examples with about the same cost, so less by a hair for each other set of
        channels: a row that lacks most of them would leave few positions to mask in all rows of its batch."""
        if self.complete or self.data.missing_channels == "error":
            return np.ones(len(self.keys))
        recordings, windows = np.unique(self.keys, return_inverse=True)
        views = self.rows if isinstance(self.rows, list) else self.rows.select_columns(KIND)
        sets = [self.reader.channels(views[key][KIND]) for key in recordings.tolist()]
        numbers = {each: number for number, each in enumerate(sorted(set(sets)))}
        return 1 - SET_STEP * np.array([numbers[each] for each in sets])[windows]

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(S, C) scaled samples, NaN where there are none. Raises CorruptExample, also if nothing or too little is there."""
        key = int(self.keys[index])
        signal, window, length = self.rows[key][KIND], self.settings.window, int(self.lengths[key])
        if self.complete:
            samples = self.reader.read(signal, 0, max(length // self.settings.patch, 1) * self.settings.patch)
        elif rng is None or self.full:
            samples = self.reader.read(signal, int(self.starts[index]), window)
        else:
            samples = self._random_window(signal, int(self.starts[index]), length, rng)
        if np.isnan(samples).all():
            raise CorruptExample(f"{recording_name(signal)}: there are no samples in it, only missing ones")
        if not self._has_position(samples):
            raise CorruptExample(
                f"{recording_name(signal)}: of every position more than modality.max_missing: {self.settings.max_missing:g} is "
                "missing"
            )
        if rng is not None:
            samples = self._drop_channels(samples, rng)
        return torch.from_numpy(np.ascontiguousarray(samples))

    def _random_window(self, signal: Signal, start: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """A window at a random place near its turn, so that an epoch covers the recording; elsewhere if too little is there."""
        window = self.settings.window
        spare = max(0, length - window)
        low, high = max(0, start - window // 2), min(spare, start + window // 2)
        if start + window > spare:  # the last one: no other has its turn in what comes after it
            high = spare
        for _ in range(TRIES):
            samples = self.reader.read(signal, int(rng.integers(low, high + 1)), window)
            if 1 - np.isnan(samples).mean() >= self.data.min_present or self._lacks_channels(samples):
                return samples
            low, high = 0, spare
        raise CorruptExample(
            f"{recording_name(signal)}: {TRIES} random windows in a row have less than data.min_present: "
            f"{self.data.min_present:g} of their samples"
        )

    def _lacks_channels(self, samples: np.ndarray) -> bool:
        """Whether enough is there of the channels that the recording has at all."""
        absent = np.isnan(samples)
        there = ~absent.all(0)
        return bool(there.any() and 1 - absent[:, there].mean() >= self.data.min_present)

    def _has_position(self, samples: np.ndarray) -> bool:
        """Whether a position is not padding."""
        absent = absent_shares(torch.from_numpy(np.isnan(samples))[None], self.settings)
        return bool((absent.mean(-1) <= self.settings.max_missing).any())

    def _drop_channels(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.data.channel_dropout:
            return samples
        dropped = np.less(rng.random(samples.shape[1]), self.data.channel_dropout)
        dropped[rng.choice(np.flatnonzero(~np.isnan(samples).all(0)))] = False
        left = np.where(dropped, np.nan, samples).astype(np.float32)
        return left if self._has_position(left) else samples

    def label(self, index: int, column: str) -> Any:
        """The value of `column` for the recording; of `event` the text of the annotation in the middle of the window, None if
        there is none, unless the data has a column of this name."""
        key = int(self.keys[index])
        if column == EVENT and column not in (self.rows[key] if isinstance(self.rows, list) else self.rows.features):
            middle = (int(self.starts[index]) + self.settings.window / 2) / self.settings.hertz
            try:
                events = self.reader.events(self.rows[key][KIND])
            except CorruptExample:
                return None
            return next((event.text for event in events if event.start <= middle < event.start + event.seconds), None)
        return column_value(self.rows, key, column)


def _lengths(rows: Rows, reader: WindowReader) -> tuple[np.ndarray, list[str]]:
    """(n,) samples of each recording at the rate of the model, -1 where it cannot be read, and "name: reason" of those. Raises
    UserError if some have other channels than the model takes."""
    views = rows if isinstance(rows, list) else rows.select_columns(KIND)
    unfit = list[UserError]()

    def measure(index: int) -> int | str:
        try:
            return reader.length(views[index][KIND])
        except (CorruptExample, UserError) as error:
            if isinstance(error, UserError):
                unfit.append(error)
            return str(error)

    hidden = isinstance(rows, list)
    indices = progress(range(len(views)), "reading headers", unit="recording", delay=3, hidden=hidden)
    found = [measure(index) for index in indices]
    if unfit:
        raise unfit[0] if len(unfit) == 1 else UserError(f"{len(unfit)} of {len(views)} recordings do not fit, as {unfit[0]}")
    return np.array([-1 if isinstance(each, str) else each for each in found]), [
        each for each in found if isinstance(each, str)
    ]


class Signals(Modality):
    """Multi-channel time series as patches."""

    Settings = SignalSettings
    Data = SignalData
    kind = "recording"
    supports_padding = True

    settings: SignalSettings
    data: SignalData

    def __init__(self, settings: SignalSettings, data: SignalData):
        super().__init__(settings, data)
        if settings.layout == "joint" and settings.rate is not None:
            self.seconds_per_position = settings.patch / settings.rate

    def build_local_encoder(self, width: int) -> PatchEmbedding:
        return PatchEmbedding(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> SignalPositionEncoder:
        return SignalPositionEncoder(self.settings, width)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        patches = batch.input.shape[1] // self.settings.patch
        return (patches,) if self.settings.layout == "joint" else (patches, len(self.settings.names))

    def padded_positions(self, batch: Batch) -> np.ndarray | None:
        if batch.padding is None:
            return None
        absent = absent_shares(batch.padding, self.settings).mean(-1)
        return (absent > self.settings.max_missing).numpy()

    def input_features(self) -> Mapping[str, InputFeatures]:
        s = self.settings
        width = s.patch * (len(s.names) if s.layout == "joint" else 1)
        return {"raw": InputFeatures(width, lambda batch: split_patches(batch.input, s).flatten(2))}

    def window_reader(self) -> WindowReader:
        """Reads what this model takes of recordings."""
        s = self.settings
        units = s.units or ("",) * len(s.names)
        missing = self.data.missing_channels == "pad"
        montage = Montage(s.names, units, s.hertz, s.filter, s.scale, s.aliases, missing)
        if s.scale.by == "training" and (s.scale.mean is None or s.scale.std is None):
            raise UserError(
                "modality.scale: mean and std are not known yet; they are measured in the training data (data.train)"
            )
        return WindowReader(montage, self.description)

    @property
    def description(self) -> Description:
        """What the user says of files, and how many channels to expect in an array."""
        names = self.settings.channels
        return replace(self.data.description, known=None if names is None else len(names))

    def rows(self, path: str) -> Rows:
        rows = super().rows(path)
        return one_row_each(rows, self.description) if hasattr(rows, "__len__") else rows

    def examples(self, rows: Rows) -> SignalExamples:
        return SignalExamples(rows, self)

    def labelled(self, rows: Rows) -> SignalExamples:
        """Windows of the recordings of a data set; or, of a list of inputs, each as a whole."""
        return SignalExamples(rows, self, full=True, complete=isinstance(rows, list))

    def collate(self, items: Sequence[Tensor]) -> Batch:
        longest = max(len(item) for item in items)
        padded = [F.pad(item, (0, 0, 0, longest - len(item)), value=math.nan) for item in items]
        samples = default_collate(padded)
        missing = samples.isnan()
        return Batch(samples.nan_to_num(0.0), missing if missing.any() else None)

    def chunks(self, batch: Batch) -> Sequence[Chunk] | None:
        """Windows that overlap by half; None if the batch is no longer than a window."""
        s = self.settings
        if batch.input.shape[1] <= s.window:
            return None
        half = s.window // s.patch // 2 * s.patch / s.hertz
        layers = ((1, s.patch, s.patch),)
        found = split_into_chunks(batch.input.shape[1], s.window_seconds, half, layers, s.hertz)
        channels = 1 if s.layout == "joint" else len(s.names)
        return [
            Chunk(each.samples, each.first_frame * channels, slice(each.kept.start * channels, each.kept.stop * channels))
            for each in found
        ]

    def measure(self, path: str) -> JsonDict:
        """Channels, units and rate, if the recipe does not give them, and with scale.by training, mean and std, of the data at
        `path`. Raises UserError if recordings differ in what is to be read off them."""
        found: JsonDict = {}
        s = self.settings
        reader = self.reading(self.whole_split, streaming=False)
        if s.channels is None or s.rate is None or s.units is None:
            rows = reader.selected_rows(path, self.data.train_rows, "data.train_rows")
            found = _read_off(rows, self)
        if s.scale.by == "training" and (s.scale.mean is None or s.scale.std is None):
            changes = {key.removeprefix("modality."): value for key, value in found.items()}
            changes["scale"] = {"by": "none", "unit_size": 1.0, "clip": 1e30}
            measuring = Signals(SignalSettings.model_validate(s.model_dump() | changes), reader.data)
            rows = measuring.selected_rows(path, self.data.train_rows, "data.train_rows")
            centre, width = _measure_scale(SignalExamples(rows, measuring), s.scale)
            digits = [[float(f"{value:.6g}") for value in values] for values in (centre.tolist(), width.tolist())]
            found |= {"modality.scale.mean": digits[0], "modality.scale.std": digits[1]}
        return found


def _read_off(rows: Rows, modality: Signals) -> JsonDict:
    """The channels, units and rate that all recordings have. Raises UserError if they differ."""
    s, description, aliases = modality.settings, modality.description, modality.settings.aliases
    views = rows.select_columns(KIND)
    first: tuple[str, Recording] | None = None
    problems = list[str]()
    channels, units, rates = list[str](), dict[str, str](), dict[float, str]()

    def opened(index: int) -> tuple[str, Recording] | str:
        signal = views[index][KIND]
        name = recording_name(signal)
        try:
            with decoding({**signal, "path": name, "array": 0}, name):
                return name, open_recording(signal, description)
        except CorruptExample as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        for result in threads.map(opened, range(len(views))):
            if isinstance(result, str):
                problems.append(result)
                continue
            name, recording = result
            names = list(recording.channels) if s.channels is None else list(s.channels)
            by_name = {canonical(each, aliases): i for i, each in enumerate(recording.channels)}
            if first is None:
                first, channels = result, names
            elif s.channels is None and {canonical(each, aliases) for each in names} != {
                canonical(each, aliases) for each in channels
            }:
                if modality.data.missing_channels == "error":
                    raise UserError(
                        f"recordings have different channels: {first[0]} has {', '.join(first[1].channels)}; {name} has "
                        f"{', '.join(recording.channels)}: name those to use by modality.channels, or take all by "
                        "data.missing_channels=pad"
                    )
                known = {canonical(each, aliases) for each in channels}
                channels += [each for each in names if canonical(each, aliases) not in known]
            for each in names:
                index = by_name.get(canonical(each, aliases))
                if index is None:
                    continue
                rates.setdefault(recording.rates[index], name)
                unit, before = recording.units[index], units.get(canonical(each, aliases), "")
                if unit and before and unit_factor(unit, before) is None:
                    raise UserError(f"channel {each} is in {unit!r} in {name}, but in {before!r} in others; correct the files")
                units[canonical(each, aliases)] = before or unit
    if first is None:
        raise UserError(f"none of the {len(rows)} recordings can be opened, such as {problems[0]}")
    if s.rate is None and not rates:
        raise UserError(
            f"modality.channels: no recording has any of {', '.join(channels)}; {first[0]} has {', '.join(first[1].channels)}"
        )
    if s.rate is None and len(rates) > 1:
        shown = ", ".join(f"{rate:g} Hz ({name})" for rate, name in list(rates.items())[:SHOWN])
        raise UserError(f"channels have different sampling rates: {shown}; set modality.rate to that of the model, in Hz")
    found: JsonDict = {}
    if s.channels is None:
        if twice := named_twice(channels, aliases):
            raise UserError(
                f"modality.channels: {first[0]} has two channels {twice}; name those to use by modality.channels, or tell them "
                "apart by modality.aliases"
            )
        found["modality.channels"] = channels
    if s.rate is None:
        found["modality.rate"] = float(next(iter(rates)))
    if s.units is None:
        found["modality.units"] = [units.get(canonical(each, aliases), "") for each in channels]
    return found


def _measure_scale(examples: SignalExamples, settings: ScaleSettings) -> tuple[np.ndarray, np.ndarray]:
    """(C,) centre and width of each channel of the training data."""
    indices = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), MEASURED_WINDOWS)).astype(int))
    windows = []
    for index in indices.tolist():
        try:
            windows.append(examples.load(index, None, None).numpy())
        except CorruptExample:
            continue
    if not windows:
        raise UserError("modality.scale: no window of the training data can be read")
    return statistics(np.concatenate(windows), settings.model_copy(update={"by": "channel"}))
