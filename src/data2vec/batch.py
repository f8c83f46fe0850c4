"""A batch on its way from the loader to the objective.

Shapes: B samples, M masked views of each, T positions, N masked positions of the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch:
    """What a modality collates: inputs of one shape, or padded to one."""

    input: Tensor
    """The raw signal, (B, …)."""
    padding: Tensor | None = None
    """Bool, True = not there, at the resolution of `input`; None when every row is full."""

    def __len__(self) -> int:
        return len(self.input)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; called by the DataLoader."""
        return self._map(Tensor.pin_memory)

    def rows(self, first: int, last: int) -> "Batch":
        """Some of the samples, without masks or labels."""
        return Batch(self.input[first:last], None if self.padding is None else self.padding[first:last])

    def _map(self, action: Callable[[Tensor], Tensor]) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: action(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass(eq=False, kw_only=True)
class MaskedBatch(Batch):
    """A batch for pre-training."""

    mask: Tensor
    """Bool (B·M, T), True = hidden from the student and predicted: M masks a sample, sample by sample; 1 in version 1."""
    masked_indices: Tensor
    """Int64 (N,), where `mask` is True in the flattened order; drawn with the mask, so that no step waits for it."""
    replaced_input: Tensor | None = None
    """`input` with random content at some positions, which the student is given in its place; None: nothing is replaced."""
    teacher_visible: Tensor | None = None
    """Bool (B, T), what a teacher that sees only some positions sees; `mask` where it is None."""

    @property
    def student_input(self) -> Tensor:
        """The raw signal that the student is given, before masks hide some of it."""
        return self.input if self.replaced_input is None else self.replaced_input


@dataclass(eq=False, kw_only=True)
class LabelledBatch(Batch):
    """A batch for fine-tuning."""

    labels: Tensor
    """Classes (B,), shares of classes (B, C), numbers (B,), or label sequences (B, L) that end in -1."""
    mask: Tensor | None = None
    """Bool (B, T), positions that are hidden; none without it."""
    channel_mask: Tensor | None = None
    """Bool (B, D), channels that are set to zero; none without it."""
