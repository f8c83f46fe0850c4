"""X-ARES: a data2vec model as an audio encoder, for `pip install xares`.

Set MODEL to anything that `data2vec.load` opens, or the environment variable DATA2VEC_MODEL, and run
`python -m xares.run` on this file, as for the encoders in its folder example/.
"""

import os

import torch
from torch import Tensor, nn

import data2vec

MODEL = os.environ.get("DATA2VEC_MODEL", "")


class Data2VecEncoder(nn.Module):
    """Audio (B, S) at 16 kHz to features (B, T, D)."""

    def __init__(self, path: str = MODEL):
        super().__init__()
        if not path:
            raise data2vec.UserError("no model: set MODEL in this file, or the environment variable DATA2VEC_MODEL")
        self.model = data2vec.load(path)
        seconds = self.model.modality.seconds_per_position
        if self.model.modality.kind != "audio" or seconds is None:
            raise data2vec.UserError(f"{path}: is a model of {self.model.recipe.modality.name}; X-ARES needs one of speech")
        self.encoder = self.model.encoder
        self.sampling_rate = 16000
        self.output_dim = self.encoder.transformer.settings.width
        self.hop_size_in_ms = 1000 * seconds

    def forward(self, audio: Tensor) -> Tensor:
        """The encoder's output for each clip; one clip may also be (S,)."""
        audio = audio[None] if audio.ndim == 1 else audio
        with torch.no_grad():
            return self.model.features(list(audio.detach().cpu())).hidden[0].float()
