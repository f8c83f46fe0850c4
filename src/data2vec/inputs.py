"""One input, as a user has it, made ready to be batched."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data2vec.errors import BadExample, UserError
from data2vec.modalities.base import Modality


def read_input(modality: Modality, given: Any, name: str) -> Tensor:
    """One input ready to be batched: the path of a file; or an array or tensor, (S,) samples at 16 kHz, (H, W, 3) bytes or
    (T,) token ids; or a string of text; or a row of a data set. `name` is what an array is called in messages.

    Raises BadExample when it cannot be read, and UserError when it cannot be read by this model."""
    kind = getattr(modality, "kind", None)
    if kind == "text" and not isinstance(given, str | Path | dict):
        return _tokens(modality, given, name)
    row = given if kind is None or isinstance(given, dict) else _row(kind, given, name)
    examples = modality.labelled([row])
    if not len(examples):
        raise BadExample((*getattr(examples, "bad", ()), f"{name}: it is too short for a single position")[0])
    return examples.load(0, None, None)


def _row(kind: str, given: Any, name: str) -> dict[str, Any]:
    if kind == "text" and isinstance(given, str):
        return {"text": given}
    if isinstance(given, str | Path):
        return {kind: {"bytes": None, "path": str(given)}}
    array, content = torch.as_tensor(given).cpu(), io.BytesIO()
    if kind == "audio":
        import soundfile

        if array.ndim != 1:
            raise UserError(f"{name}: a wave of shape {tuple(array.shape)}; it must be (S,), samples of one channel at 16 kHz")
        array = array.float() if array.is_floating_point() else array
        soundfile.write(content, array.numpy(), 16000, format="WAV", subtype="FLOAT")
    else:
        from PIL import Image

        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != torch.uint8:
            raise UserError(f"{name}: a picture of {array.dtype} {tuple(array.shape)}; it must be uint8 (H, W, 3)")
        Image.fromarray(array.numpy()).save(content, "BMP")
    return {kind: {"bytes": content.getvalue(), "path": name}}


def _tokens(modality: Modality, given: Any, name: str) -> Tensor:
    ids = torch.as_tensor(given).cpu()
    size, most = modality.settings.vocab_size, modality.settings.max_length
    if ids.ndim != 1 or ids.is_floating_point() or not 1 <= len(ids) <= most or ids.min() < 0 or ids.max() >= size:
        raise UserError(f"{name}: it must be a string, or 1 to {most} token ids from 0 to {size - 1} in one row")
    return ids.long()


def check_tokenizer(modality: Modality) -> None:
    """Raises UserError when this is a model of text that has no tokenizer."""
    if getattr(modality, "kind", None) == "text" and modality.data.tokenizer is None:
        raise UserError(
            "the tokenizer of this model is not known: put its tokenizer.json, or vocab.json and merges.txt, into the model's "
            "folder; or give token ids"
        )
