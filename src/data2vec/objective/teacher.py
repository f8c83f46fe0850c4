"""The teacher: an exponential moving average of the student (paper, section 3.3, "Teacher parameterization")."""

import copy
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import LocalEncoder
from data2vec.nn.ema import update_ema
from data2vec.nn.encoder import Encoder
from data2vec.nn.transformer import Bias, BlockOutput, BlockState
from data2vec.settings import Settings

Decay = Annotated[float, Field(ge=0, le=1)]
Source = Literal["averaged", "copied", "shared"]
"""Where a part of the teacher comes from: a moving average of the student's part; a copy of it, refreshed after every step; or
the student's part itself. Apart from dropout the last two give the same training while τ < 1, but a shared part takes no
memory."""


PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""A share of the steps of the run."""


DECAYS = ("decay", "end_decay", "anneal_steps")
"""The settings that a half-life replaces."""
HALF_LIVES = ("half_life", "end_half_life", "anneal")
"""The settings that decays replace."""


class DecaySchedule(NamedTuple):
    """τ over the steps: linear from `decay` to `end_decay` over `anneal_steps`."""

    decay: float
    end_decay: float
    anneal_steps: int

    def __call__(self, step: int) -> float:
        """τ after `step` optimizer steps."""
        start, end, steps = self
        return end - (end - start) * max(0.0, 1 - step / steps) if steps else end


class TeacherSettings(Settings):
    """How the teacher follows the student, and what it sees."""

    decay: Decay | None = 0.999
    """τ at the start (fairseq: ema_decay); null with a half-life."""
    end_decay: Decay | None = 0.9999
    """τ from step `anneal_steps` on; 1 freezes the teacher from then on (fairseq: ema_end_decay); null with a half-life."""
    anneal_steps: Annotated[int, Field(ge=0)] | None = 30000
    """Steps over which τ increases linearly (fairseq: ema_anneal_end_step); null with a half-life."""
    half_life: PositiveFraction | None = None
    """Instead of the three settings above: the share of the run's steps after which the teacher has forgotten half of its
    weights, so that a schedule fits runs of any length. τ is 0.5^(1 / (share · steps)). As an override it replaces them,
    and they replace it."""
    end_half_life: PositiveFraction | None = None
    """The same from the end of `anneal` on; null: as at the start."""
    anneal: PositiveFraction | None = None
    """The share of the run's steps over which τ changes linearly to that of `end_half_life`."""
    local_encoder: Source = "shared"
    """The local encoder."""
    position_encoder: Source = "shared"
    """The position encoder."""
    transformer: Literal["averaged"] = "averaged"
    """Always averaged: this is what makes it a teacher."""
    prenet: Literal["averaged", "shared"] = "averaged"
    """The part of the Transformer before its main blocks: extra tokens, input norm and prenet blocks. Shared, they are the
    student's, with its dropout, as in the released code (fairseq: ema_encoder_only)."""
    context: Literal["full", "masked"] = "full"
    """What the teacher sees: the full input; or only the masked positions, as in the released text model by mistake."""
    window: Annotated[int, Field(gt=0)] | None = None
    """Size, an odd number, of the neighbourhood that a position of the teacher attends to in each block: as many positions of a
    sequence, centred on it, or as many rows and columns of an image; null: all. Extra tokens attend to all positions, and all
    attend to them. Position convolutions are not restricted."""
    mask_prob: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the positions that are masked in the teacher's input, as in the student's: other ones for each input and step,
    drawn on the device. Needs a mask vector, which in version 2 is not trained."""

    @model_validator(mode="before")
    @classmethod
    def _half_life_replaces_decay(cls, raw: Any) -> Any:
        """Without the defaults of the decays where half-lives are given."""
        by_decay = dict.fromkeys(DECAYS)
        return by_decay | raw if isinstance(raw, dict) and raw.get("half_life") is not None else raw

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        by_decay = {key: getattr(self, key) for key in DECAYS}
        given = [key for key, value in by_decay.items() if value is not None]
        if self.half_life is not None and given:
            raise ValueError(
                f"half_life and {given[0]} are two schedules; set {', '.join(given)} to null, or half_life to null"
            )
        if self.half_life is None and len(given) < 3:
            raise ValueError(
                f"{next(key for key in by_decay if key not in given)}: null needs a half_life; set it, or a number"
            )
        if (self.end_half_life is None) != (self.anneal is None) or (self.anneal is not None and self.half_life is None):
            raise ValueError("end_half_life, anneal and half_life belong together; set all three, or half_life alone")
        if self.window is not None and self.window % 2 == 0:
            raise ValueError(f"window {self.window} is not odd, so it has no centre; set {self.window + 1}")
        return self

    def schedule(self, steps: int) -> DecaySchedule:
        """τ over a run of `steps` optimizer steps."""
        if self.half_life is None:
            assert self.decay is not None and self.end_decay is not None and self.anneal_steps is not None
            return DecaySchedule(self.decay, self.end_decay, self.anneal_steps)
        first, last = (0.5 ** (1 / (share * steps)) for share in (self.half_life, self.end_half_life or self.half_life))
        return DecaySchedule(first, last, round((self.anneal or 0) * steps))


class Teacher(nn.Module):
    """Θ_teacher ← τ·Θ_teacher + (1-τ)·Θ_student, in float32; always in evaluation mode and without gradients."""

    def __init__(self, student: Encoder, settings: TeacherSettings, steps: int):
        """`steps`: the length of the run, of which half-lives are shares. Raises UserError without a needed mask vector."""
        super().__init__()
        self.settings = settings
        self.decay = settings.schedule(steps)
        """τ after a number of optimizer steps."""
        local_encoder: Any = student.local_encoder
        masks_by_vector = getattr(type(local_encoder), "apply_mask", None) is LocalEncoder.apply_mask
        if settings.mask_prob and masks_by_vector and local_encoder.mask_vector is None:
            raise UserError(
                f"objective.teacher.mask_prob: {settings.mask_prob} needs a mask vector: set modality.mask_vector to true, "
                "or this to 0"
            )
        parts = [part for part in Encoder.PARTS if getattr(settings, part) != "shared"]
        self.ema = nn.ModuleDict({part: copy.deepcopy(getattr(student, part)) for part in parts})
        """The parts that are not shared with the student."""
        if settings.prenet == "shared":
            transformer: Any = self.ema["transformer"]
            transformer.extra_tokens, transformer.input_norm = None, nn.Identity()
            for index in range(transformer.settings.prenet_layers):
                transformer.blocks[index] = nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def block_outputs(
        self, student: Encoder, batch: MaskedBatch, features: Tensor, padding: Tensor | None, source: BlockState = "ffn"
    ) -> Iterator[BlockOutput]:
        """The outputs of the teacher's blocks for the unmasked input, with the state `source` of each, one at a time.

        `features` (B, T, D) and `padding` (B, T) are those of the student's local encoder, which are used where the teacher
        shares it. To be iterated without gradients, which parts that are shared with the student have."""
        local_encoder, position_encoder, transformer = (self._part(name, student) for name in Encoder.PARTS)
        if "local_encoder" in self.ema:
            features, padding = local_encoder(batch)
        if self.settings.mask_prob:
            rank = torch.rand(features.shape[:2], device=features.device).argsort(1)
            masked = rank < round(self.settings.mask_prob * features.shape[1])
            features = local_encoder.apply_mask(features, masked, batch.input)
        if self.settings.context == "masked":
            unseen = ~(batch.mask if batch.teacher_visible is None else batch.teacher_visible)
            padding = unseen if padding is None else padding | unseen
        x = position_encoder(features.detach(), padding)
        bias = position_encoder.bias(x.shape[1])
        if self.settings.window is not None:
            bias = restrict_to_window(
                bias, student.grid(batch), self.settings.window, padding, transformer.settings.extra_tokens, x
            )
        prenet = student.transformer if self.settings.prenet == "shared" else None
        yield from transformer.block_outputs(x, padding, bias, prenet, source)

    @torch.no_grad()
    def update(self, student: Encoder, step: int, without: Collection[str] = ()) -> None:
        """Follow the student after optimizer step number `step` (counted from 1), but for the parts `without`. With τ = 1
        nothing changes, copied parts included."""
        if (decay := self.decay(step)) < 1:
            for name, average in self.ema.items():
                averaged = getattr(self.settings, name) == "averaged"
                if name not in without:
                    update_ema(average, getattr(student, name), decay if averaged else 0.0)

    def _part(self, name: str, student: Encoder) -> Any:
        return self.ema[name] if name in self.ema else getattr(student, name)


def restrict_to_window(
    bias: Bias, grid: tuple[int, ...], window: int, padding: Tensor | None, extra: int, like: Tensor
) -> Bias:
    """The attention bias, -inf between positions of `grid` that are more than `window` // 2 apart along some axis.

    `bias`: (H, E+T, E+T), or one per block, or None; `extra`: E, the extra tokens, which are at no distance. Padded positions,
    `padding` (B, T), keep all keys, since their window may hold padding only. `like` has the dtype and the device."""
    axes = torch.meshgrid(*(torch.arange(size, device=like.device) for size in grid), indexing="ij")
    where = torch.stack([axis.flatten() for axis in axes])  # (A, T)
    outside = ((where[:, :, None] - where[:, None, :]).abs() > window // 2).any(0)[None]  # (1, T, T)
    if padding is not None:
        outside = (outside & ~padding[:, :, None])[:, None]  # (B, 1, T, T)
    outside = F.pad(outside, (extra, 0, extra, 0))
    if bias is None:
        bias = torch.zeros_like(outside, dtype=like.dtype)
    if isinstance(bias, list):
        return [one.masked_fill(outside, float("-inf")) for one in bias]
    return bias.masked_fill(outside, float("-inf"))
