"""MTEB and its audio benchmark MAEB: a data2vec model as an encoder, for `pip install mteb`.

    import mteb
    from data2vec_mteb import Data2VecEncoder

    tasks = mteb.get_tasks(tasks=["FSDD"])
    mteb.evaluate(Data2VecEncoder("RUN"), tasks)

RUN is anything that `data2vec.load` opens; models of images and text serve the tasks of these. Inputs are encoded without
padding, so a batch does not change them.
"""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import data2vec


class Data2VecEncoder:
    """Implements mteb's EncoderProtocol: one vector per input, the encoder's output averaged over positions."""

    def __init__(self, model_name: str, revision: str | None = None, layers: Any = "last", device: str = "cpu", **options: Any):
        self.name, self.revision, self.layers = model_name, revision, layers
        self.model = data2vec.load(model_name).to(torch.device(device))
        self.column = {"audio": "audio", "image": "image", "text": "text"}[self.model.modality.kind]

    def encode(self, inputs: Any, *, task_metadata: Any = None, **options: Any) -> np.ndarray:
        """The inputs of a DataLoader, whose batches are dicts of lists, to (N, D) float32."""
        parts = []
        for batch in inputs:
            if self.column not in batch:
                raise data2vec.UserError(f"{self.name}: takes {self.column}; this task has {', '.join(batch)}")
            items = [self._read(item) for item in batch[self.column]]
            hidden = self.model.features(items, layers=self.layers, pool=True).hidden
            if len(hidden) != 1:
                raise data2vec.UserError(f"layers: {self.layers!r} gives {len(hidden)} vectors for an input; choose one layer")
            parts.append(hidden[0].float().cpu().numpy())
        return np.concatenate(parts)

    def _read(self, item: Any) -> Any:
        """Audio is a dict with array and sampling_rate, or an object with these as attributes; other inputs are as they are."""
        if self.column != "audio":
            return item
        get = item.get if isinstance(item, dict) else lambda name: getattr(item, name, None)
        rate = get("sampling_rate")
        if rate is None:
            raise data2vec.UserError(f"{self.name}: audio without sampling_rate; mteb's AudioCollator sets it")
        samples = np.asarray(get("array"), dtype=np.float32)
        return (samples.mean(0) if samples.ndim == 2 else samples), int(rate)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines (N, M) of embeddings (N, D) and (M, D)."""
        return _normalize(embeddings1) @ _normalize(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines (N,) of embeddings (N, D) with those of the same row."""
        return (_normalize(embeddings1) * _normalize(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the results."""
        settings, weights = self.model.recipe.encoder, sum(p.numel() for p in self.model.encoder.parameters())
        unknown = [
            *("release_date", "languages", "memory_usage_mb", "max_tokens", "license", "open_weights"),
            *("use_instructions", "public_training_code", "public_training_data", "training_datasets"),
        ]
        return importlib.import_module("mteb.models.model_meta").ModelMeta(
            loader=None,
            name=f"data2vec/{self.name.strip('/').rpartition('/')[2]}",
            revision=self.revision,
            n_parameters=weights,
            embed_dim=settings.width,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            modalities=[self.column],
            **dict.fromkeys(unknown),
        )


def _normalize(embeddings: Any) -> Tensor:
    return F.normalize(torch.atleast_2d(torch.as_tensor(embeddings, dtype=torch.float32)), dim=-1)
