"""The teacher: a moving average of the student (paper, section 3.3, "Teacher parameterization")."""

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import MaskedBatch
from data2vec.nn.encoder import Encoder
from data2vec.nn.transformer import Visit
from data2vec.settings import Settings

Decay = Annotated[float, Field(ge=0, le=1)]
Source = Literal["averaged", "copied", "shared"]
"""Where a part of the teacher comes from: a moving average of the student's; a copy of it, renewed after every step;
or the student's own. The last two are the same in training, but only the last one costs nothing."""


class TeacherSettings(Settings):
    """How the teacher follows the student."""

    decay: Decay = 0.999
    """τ at the start (fairseq: ema_decay)."""
    end_decay: Decay = 0.9999
    """τ from step `anneal_steps` on; 1 freezes the teacher there (fairseq: ema_end_decay)."""
    anneal_steps: Annotated[int, Field(ge=0)] = 30000
    """τ grows linearly over so many steps (fairseq: ema_anneal_end_step)."""
    local_encoder: Source = "shared"
    """The local encoder."""
    position_encoder: Source = "shared"
    """The position encoder."""
    transformer: Literal["averaged"] = "averaged"
    """Always averaged: this is what makes it a teacher."""
    prenet: Literal["averaged", "shared"] = "averaged"
    """Of the Transformer, what stands before its main blocks: extra tokens, input norm, prenet blocks. Shared, they are the
    student's in every way, dropout included, as in the released code (fairseq: ema_encoder_only)."""
    context: Literal["full", "masked"] = "full"
    """What the teacher sees: everything; or only the masked positions, as the released text model did by mistake."""


class Teacher(nn.Module):
    """Θ_teacher ← τ·Θ_teacher + (1-τ)·Θ_student, in float32; always in evaluation mode, never with gradients."""

    def __init__(self, student: Encoder, settings: TeacherSettings):
        super().__init__()
        self.settings = settings
        averaged = [part for part in Encoder.PARTS if getattr(settings, part) != "shared"]
        self.ema = nn.ModuleDict({part: copy.deepcopy(getattr(student, part)) for part in averaged})
        if settings.prenet == "shared":
            transformer: Any = self.ema["transformer"]
            transformer.extra_tokens, transformer.input_norm = None, nn.Identity()
            for index in range(transformer.settings.prenet_layers):
                transformer.blocks[index] = nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def decay(self, step: int) -> float:
        """τ after so many optimizer steps."""
        s = self.settings
        return s.end_decay - (s.end_decay - s.decay) * max(0.0, 1 - step / s.anneal_steps) if s.anneal_steps else s.end_decay

    @torch.no_grad()
    def update(self, student: Encoder, step: int) -> None:
        """Follow the student once, after optimizer step number `step` (counted from 1). With τ = 1 nothing moves."""
        if (decay := self.decay(step)) >= 1:
            return
        for part, mine in self.ema.items():
            theirs = getattr(student, part)
            averages: list[Tensor] = list(mine.parameters())
            found = dict(theirs.named_parameters())
            values = [found[name].to(q.dtype) for name, q in mine.named_parameters()]
            if averages and getattr(self.settings, part) == "averaged":
                torch._foreach_lerp_(averages, values, 1 - decay)
            elif averages:  # there are none in fixed sines and cosines
                torch._foreach_copy_(averages, values)
            buffers, sources = dict(mine.named_buffers()), dict(theirs.named_buffers())
            if buffers:
                torch._foreach_copy_(list(buffers.values()), [sources[name] for name in buffers])

    @torch.no_grad()
    def forward(self, student: Encoder, batch: MaskedBatch, features: Tensor, padding: Tensor | None, visit: Visit) -> None:
        """Run on the full, unmasked input. `features` (B, T, D) and `padding` are the student's, before masking."""
        parts: dict[str, Any] = {part: self.ema[part] if part in self.ema else getattr(student, part) for part in Encoder.PARTS}
        if "local_encoder" in self.ema:
            features, padding = parts["local_encoder"](batch)
        if self.settings.context == "masked":
            unseen = ~(batch.mask if batch.teacher_visible is None else batch.teacher_visible)
            padding = unseen if padding is None else padding | unseen
        x = parts["position_encoder"](features.detach(), padding)
        prenet = student.transformer if self.settings.prenet == "shared" else None
        parts["transformer"].encode(x, padding, parts["position_encoder"].bias(x.shape[1]), visit, prenet)
