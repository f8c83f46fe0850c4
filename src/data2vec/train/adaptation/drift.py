"""Drift: how far a run has moved from the trained model that it started from."""

import copy
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from data2vec.data.masked_batches import LoadedBatch
from data2vec.distributed import Process
from data2vec.nn.encoder import Encoder
from data2vec.settings import JsonDict
from data2vec.train.held_out_loss import HeldOutLoss

MAX_POSITIONS = 2048
"""Positions whose features are compared, evenly spaced over those of MAX_EXAMPLES held-out examples."""
MAX_EXAMPLES = 64


class Drift:
    """Measures how much weights and features of a student differ from those that it started with.

    It compares copies in float32 and evaluation mode, on the first examples of the held-out data, unmasked. Every process
    creates one and calls it at the same steps."""

    def __init__(self, start: Encoder, held_out: HeldOutLoss, process: Process):
        """`start`: the encoder with the weights that training starts from, of which a copy is made."""
        self.process, self.held_out = process, held_out
        self.encoder = copy.deepcopy(start).cpu().eval().requires_grad_(False)
        self.start = {name: weight.clone() for name, weight in self.encoder.state_dict().items()}
        self.features = self._features()

    @property
    def fingerprint(self) -> int:
        """A checksum of the start weights."""
        total = 0
        for weight in self.start.values():
            total = zlib.crc32(weight.reshape(-1).view(torch.uint8).numpy().data, total)
        return total

    def __call__(self, student: Mapping[str, Tensor]) -> JsonDict:
        """`drift_weights`: ‖w - w₀‖ / ‖w₀‖ over all weights of the encoder; `drift_features`: 1 minus the linear CKA of the
        output now and at the start, 0 for the same up to rotation and scale."""
        names = [name for name, _ in self.encoder.named_parameters()]
        moved = sum(float((student[name].cpu().float() - self.start[name]).square().sum()) for name in names)
        norm = sum(float(self.start[name].square().sum()) for name in names)
        self.encoder.load_state_dict(student)
        distance = 1 - linear_cka(self._features(), self.features)
        return {"drift_weights": (moved / norm) ** 0.5, "drift_features": float(distance)}

    @torch.no_grad()
    def _features(self) -> Tensor:
        """The encoder's output (N, D) at the compared positions, on the CPU."""
        encoder = self.encoder.to(self.process.device)
        rows, examples = list[Tensor](), 0
        for micro_batch in self.held_out.micro_batches:
            loaded = self.held_out.batches[micro_batch]
            if not isinstance(loaded, LoadedBatch):
                raise loaded
            x, padding = encoder(loaded.batch.to(self.process.device))  # (B, T, D), (B, T)
            rows.append((x.flatten(0, 1) if padding is None else x[~padding]).cpu().float())
            examples += len(x)
            if examples >= MAX_EXAMPLES:
                break
        self.encoder.to("cpu")
        features = torch.cat(rows)
        return features[:: -(-len(features) // MAX_POSITIONS)]


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """The linear centred kernel alignment (Kornblith et al., 2019) of (N, D) and (N, E), 0 to 1: 1 for the same features up to
    rotation and scale."""
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    both, own = (x.T @ y).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return (both / own.clamp(min=1e-30)).float()
