"""The teacher: an exponential moving average of the student (paper, section 3.3, "Teacher parameterization")."""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import MaskedBatch
from data2vec.nn.ema import update_ema
from data2vec.nn.encoder import Encoder
from data2vec.nn.transformer import BlockOutput, BlockState
from data2vec.settings import Settings

Decay = Annotated[float, Field(ge=0, le=1)]
Source = Literal["averaged", "copied", "shared"]
"""Where a part of the teacher comes from: a moving average of the student's part; a copy of it, refreshed after every step; or
the student's part itself. Apart from dropout the last two give the same training while τ < 1, but a shared part takes no
memory."""


class TeacherSettings(Settings):
    """How the teacher follows the student."""

    decay: Decay = 0.999
    """τ at the start (fairseq: ema_decay)."""
    end_decay: Decay = 0.9999
    """τ from step `anneal_steps` on; 1 freezes the teacher from then on (fairseq: ema_end_decay)."""
    anneal_steps: Annotated[int, Field(ge=0)] = 30000
    """Steps over which τ increases linearly (fairseq: ema_anneal_end_step)."""
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


class Teacher(nn.Module):
    """Θ_teacher ← τ·Θ_teacher + (1-τ)·Θ_student, in float32; always in evaluation mode and without gradients."""

    def __init__(self, student: Encoder, settings: TeacherSettings):
        super().__init__()
        self.settings = settings
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

    @torch.no_grad()
    def block_outputs(
        self, student: Encoder, batch: MaskedBatch, features: Tensor, padding: Tensor | None, source: BlockState = "ffn"
    ) -> Iterator[BlockOutput]:
        """The outputs of the teacher's blocks for the unmasked input, with the state `source` of each, one at a time.

        `features` (B, T, D) and `padding` (B, T) are those of the student's local encoder, which are used where the teacher
        shares it."""
        local_encoder, position_encoder, transformer = (self._part(name, student) for name in Encoder.PARTS)
        if "local_encoder" in self.ema:
            features, padding = local_encoder(batch)
        if self.settings.context == "masked":
            unseen = ~(batch.mask if batch.teacher_visible is None else batch.teacher_visible)
            padding = unseen if padding is None else padding | unseen
        x = position_encoder(features.detach(), padding)
        bias = position_encoder.bias(x.shape[1])
        prenet = student.transformer if self.settings.prenet == "shared" else None
        yield from transformer.block_outputs(x, padding, bias, prenet, source)

    @torch.no_grad()
    def update(self, student: Encoder, step: int) -> None:
        """Follow the student after optimizer step number `step` (counted from 1). With τ = 1 nothing changes, copied parts
        included."""
        if (decay := self.decay(step)) < 1:
            for name, average in self.ema.items():
                averaged = getattr(self.settings, name) == "averaged"
                update_ema(average, getattr(student, name), decay if averaged else 0.0)

    def decay(self, step: int) -> float:
        """τ after `step` optimizer steps: linear from `decay` to `end_decay` over `anneal_steps`."""
        s = self.settings
        return s.end_decay - (s.end_decay - s.decay) * max(0.0, 1 - step / s.anneal_steps) if s.anneal_steps else s.end_decay

    def _part(self, name: str, student: Encoder) -> Any:
        return self.ema[name] if name in self.ema else getattr(student, name)
