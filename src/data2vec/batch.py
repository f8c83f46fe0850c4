"""Batches, as the loader makes them and the objective takes them.

Shapes: B samples, M masked views of each, T positions, N masked positions of the whole batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import default_collate


@dataclass(eq=False)
class Batch:
    """Inputs of one shape, or padded to one."""

    input: Tensor
    """The raw signal, (B, …)."""
    padding: Tensor | None = None
    """Bool, True = padding, at the resolution of `input`; None when no row is padded."""

    @staticmethod
    def stack(items: Sequence[Tensor], padding_value: float = 0) -> "Batch":
        """Batch one-dimensional inputs: `input` (B, T), shorter ones filled up with `padding_value`."""
        if len({len(item) for item in items}) == 1:
            return Batch(default_collate(list(items)))  # in a worker: directly into memory shared with the training process
        lengths = torch.tensor([len(item) for item in items])
        padded = torch.nn.utils.rnn.pad_sequence(list(items), batch_first=True, padding_value=padding_value)
        return Batch(padded, padding=torch.arange(int(lengths.max())) >= lengths[:, None])

    def __len__(self) -> int:
        return len(self.input)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; called by the DataLoader."""
        return self._map(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return [value for field in fields(self) if (value := getattr(self, field.name)) is not None]

    def rows(self, first: int, last: int) -> "Batch":
        """Samples `first` to `last`, without masks or labels."""
        return Batch(self.input[first:last], None if self.padding is None else self.padding[first:last])

    def _map(self, action: Callable[[Tensor], Tensor]) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: action(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass(eq=False, kw_only=True)
class MaskedBatch(Batch):
    """A batch for pre-training."""

    mask: Tensor
    """Bool (B·M, T), True = masked in the student's input: M masks a sample, sample by sample; M is 1 in data2vec 1."""
    predicted_indices: Tensor
    """Int64 (N,), the flat indices of the predicted positions, which are those where `mask` is True unless the masks predict
    others too (BERT); computed by the loader to avoid a device sync in the training step."""
    replaced_input: Tensor | None = None
    """`input` with random content at some positions, for the student only; None: the student sees `input`."""
    teacher_visible: Tensor | None = None
    """Bool (B, T), the positions that a teacher with partial input sees; None: those where `mask` is True."""

    @property
    def student_input(self) -> Tensor:
        """The student's raw signal, before masking."""
        return self.input if self.replaced_input is None else self.replaced_input

    def at_predicted(self, targets: Tensor) -> Tensor:
        """Targets (B, T, …) of every sample at the predicted positions of its views, (N, …)."""
        views, T = self.mask.shape
        M = views // len(targets)
        return targets.flatten(0, 1).index_select(0, self.predicted_indices // (T * M) * T + self.predicted_indices % T)


@dataclass(eq=False, kw_only=True)
class LabelledBatch(Batch):
    """A batch for fine-tuning."""

    labels: Tensor
    """Classes (B,), class probabilities (B, C), numbers (B,), or label sequences (B, L) padded with -1."""
    mask: Tensor | None = None
    """Bool (B, T), masked positions; None: no position is masked."""
    channel_mask: Tensor | None = None
    """Bool (B, D), channels that are set to zero; None: no channel is."""
