"""s3prl: a data2vec model as an upstream, for SUPERB.

Copy this file to s3prl/upstream/data2vec_model/hubconf.py in a checkout of s3prl, with an empty __init__.py beside it, and add
`from s3prl.upstream.data2vec_model.hubconf import *` to s3prl/hub.py. Then:

    python run_downstream.py -m train -u data2vec_model -k RUN -d speech_commands -n NAME

RUN is anything that `data2vec.load` opens. s3prl itself needs an old torchaudio.
"""

from typing import Any

import torch
from torch import Tensor, nn

import data2vec

__all__ = ["data2vec_model"]  # s3prl/hub.py takes all of them, and has a function `data2vec` of its own


class UpstreamExpert(nn.Module):
    """Waveforms to hidden states: the input of the first block and the output of every block."""

    def __init__(self, ckpt: str, model_config: str | None = None, **options: Any):
        super().__init__()
        self.model = data2vec.load(ckpt)
        seconds = self.model.modality.seconds_per_position
        if self.model.modality.kind != "audio" or seconds is None:
            raise data2vec.UserError(f"{ckpt}: is a model of {self.model.recipe.modality.name}; s3prl needs one of speech")
        self.encoder = self.model.encoder.requires_grad_()  # s3prl freezes it, or fine-tunes it
        self.samples_per_position = round(16000 * seconds)

    def get_downsample_rates(self, key: str) -> int:
        """Samples of a position."""
        return self.samples_per_position

    def forward(self, wavs: list[Tensor]) -> dict[str, Any]:
        """Waveforms (S,) at 16 kHz, not padded, to `hidden_states`, blocks + 1 tensors (B, T, D)."""
        batch = self.model.prepare([wav.detach().cpu() for wav in wavs])
        states = list(self.model.encode(batch, layers="states").hidden.to(torch.float32))
        return {"hidden_states": states, "last_hidden_state": states[-1]}


def data2vec_model(ckpt: str, *arguments: Any, **options: Any) -> UpstreamExpert:
    """The upstream of the model at `ckpt`."""
    return UpstreamExpert(ckpt, **options)
