"""Micro-batches on the device, each copied while the one before is computed."""

import functools
from collections.abc import Iterator, Sequence

import torch

from data2vec.batch import Batch


def on_device(batches: Sequence[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on the device, in order.

    On a GPU they are copied on a stream of their own, the first of a step while the step before is still computed, as the
    host is ahead of the device; from pinned memory, such as the loader's, at most one more than is in use."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies, compute = _copy_stream(device), torch.cuda.current_stream(device)

    def copy(batch: Batch) -> Batch:
        with torch.cuda.stream(copies):
            return batch.to(device, non_blocking=True)

    ahead = copy(batches[0])
    for following in (*batches[1:], None):
        compute.wait_stream(copies)
        batch = ahead
        for tensor in batch.tensors():  # its memory is not given to the next copy before it is used
            tensor.record_stream(compute)
        if following is not None:
            ahead = copy(following)
        yield batch


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
