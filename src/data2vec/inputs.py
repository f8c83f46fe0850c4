"""A user's inputs: files, samples, pictures, texts and rows of a dataset, decoded and ready to be collated."""

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.data.audio import SAMPLE_RATE
from data2vec.data.dataset import Row, Rows, array_of
from data2vec.data.sources.formats import SignalKind
from data2vec.errors import CorruptExample, UserError, get_logger
from data2vec.modalities.base import Modality

log = get_logger(__name__)

WANTED: dict[SignalKind, str] = {
    "audio": "a path, samples (S,) at 16 kHz, a pair (samples, sampling rate), the bytes of a file, or a row with column audio",
    "image": "a path, a Pillow image, an array (H, W, 3), the bytes of a file, or a row with column image",
    "recording": "a path, an array (samples, channels) of the model's channels at its rate, a pair (array, sampling rate), a "
    "dict with array, sampling_rate, channels and units, or a row with column recording",
    "video": "a path of a file or of a folder of frames, an array (F, H, W, C) or (F, H, W), the bytes of a file, or a row "
    "with column video",
    "text": "a string, a Path, token ids, or a row with column text",
}
"""What an input can be."""
MAX_NAME = 255
"""A longer text is not looked up as the name of a file."""


def list_inputs(modality: Modality, inputs: Any) -> list[Any]:
    """The inputs of a list, an iterator or a batch as an array; or a list of the only one, given by itself.

    Raises UserError for none, for what is no input, and for an array that may be one input or several."""
    kind = getattr(modality, "kind", None)
    inputs = np.asarray(inputs) if isinstance(inputs, memoryview) else inputs
    if isinstance(inputs, str | bytes | PathLike | Mapping) or (kind is not None and _is_one(kind, inputs)):
        _warn_files(kind, [inputs])
        return [inputs]
    if (
        isinstance(inputs, Set)
        or not isinstance(inputs, Iterable)
        or getattr(inputs, "ndim", 1) == 0
        or hasattr(inputs, "read")
    ):
        wanted = f" of these: {WANTED[kind]}" if kind is not None else ""
        raise UserError(f"inputs: of type {type(inputs).__name__}; give a list{wanted}")
    items = [np.asarray(item) if isinstance(item, memoryview) else item for item in inputs]
    if not items:
        raise UserError("inputs: is empty; give at least one")
    if any(isinstance(item, str | bytes | PathLike | Mapping) for item in items):
        require_tokenizer(modality)
    _warn_files(kind, items)
    return items


def _warn_files(kind: SignalKind | None, inputs: Sequence[Any]) -> None:
    """Warns of texts that are the names of files."""
    if kind != "text":
        return
    texts = [each for each in inputs if isinstance(each, str) and len(each) <= MAX_NAME and "\0" not in each]
    if files := [text for text in texts if Path(text).is_file()]:
        message = "inputs: %s is taken as a text, but there is a file of this name; to read it, pass Path(%r)%s"
        more = f" ({len(files) - 1} more of {len(inputs)} inputs are names of files)" if len(files) > 1 else ""
        log.warning(message, files[0], files[0], more)


def _is_one(kind: SignalKind, value: Any) -> bool:
    """Whether this is a single input rather than several. Raises UserError for an array that may be both."""
    if _is_array(value):
        dims = array_of(value).ndim if not isinstance(value, Tensor) else value.ndim
        if kind == "audio" and dims == 2 and 1 not in value.shape:
            raise UserError(
                f"inputs: an array of shape {tuple(value.shape)} may be several clips, or several channels of one; give a list "
                "of arrays (S,)"
            )
        return dims in {"audio": (1, 2), "recording": (1, 2), "image": (2, 3), "video": (3, 4), "text": (1,)}[kind]
    if kind == "image":
        return _is_picture(value)
    numbers = isinstance(value, list | tuple) and value and all(isinstance(item, Real) for item in value)
    return bool(numbers) or (kind in ("audio", "recording") and _is_pair(value))


def _is_array(value: Any) -> bool:
    """Whether this is an array of numbers, of any library."""
    return isinstance(value, Tensor) or (
        hasattr(value, "__array__") and hasattr(value, "dtype") and value.dtype.kind in "biufc"
    )


def _is_picture(value: object) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _is_pair(value: Any) -> bool:
    """Whether this is (samples, sampling rate), or the reverse as of SciPy."""
    return isinstance(value, tuple) and len(value) == 2 and sum(isinstance(each, Real) for each in value) == 1


def read_input(modality: Modality, value: Any, name: str) -> Tensor:
    """One input, decoded: what `WANTED` lists for the kind of the modality; a row for custom modalities without a kind.

    `name` stands for inputs without a path in messages. Raises CorruptExample when it cannot be decoded, and UserError when
    this is no input of the model."""
    kind = getattr(modality, "kind", None)
    require_pairs(modality, [value], name)
    if kind == "text" and (_is_array(value) or isinstance(value, list | tuple)):
        return _token_ids(modality, value, name)
    examples = modality.labelled([value if kind is None else _row(kind, value, name)])
    if not len(examples):
        raise CorruptExample((*examples.corrupt, f"{name}: too short for a single position")[0])
    return examples.load(0, None, None)


def _row(kind: SignalKind, value: Any, name: str) -> Row:
    """A row of a dataset with the undecoded signal."""
    if not isinstance(value, Mapping):
        return {kind: _signal(kind, value, name)}
    if kind in value:
        return {**value, kind: _signal(kind, value[kind], name)}
    if {"bytes", "path", "array"} & set(value):
        return {kind: _signal(kind, value, name)}
    raise UserError(f"{name}: a row without column {kind!r}, only {', '.join(map(str, value)) or 'none'}")


def _signal(kind: SignalKind, value: Any, name: str) -> Any:
    if value is None or (kind == "text" and isinstance(value, str)):
        return value
    if isinstance(value, Mapping):
        return {**value, "path": value.get("path") or name}
    if isinstance(value, str | PathLike):
        return {"bytes": None, "path": str(Path(value))}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": name}
    if kind in ("audio", "recording") and _is_pair(value):
        samples, rate = value if isinstance(value[1], Real) else value[::-1]
        return {"array": samples, "sampling_rate": rate, "path": name}
    sequence = kind == "audio" and isinstance(value, Sequence | np.ndarray)
    if kind == "text" or not (_is_array(value) or sequence or (kind == "image" and _is_picture(value))):
        raise UserError(f"{name}: of type {type(value).__name__}; give {WANTED[kind]}")
    return {"array": value, "path": name} | ({"sampling_rate": SAMPLE_RATE} if kind == "audio" else {})


def _token_ids(modality: Modality, value: Any, name: str) -> Tensor:
    settings: Any = modality.settings
    size, most = settings.vocab_size, settings.max_length
    wanted = f"{name}: must be {WANTED['text']}; token ids are a 1-D array of 1 to {most} integers from 0 to {size - 1}"
    try:
        ids = array_of(value)
    except ValueError:
        raise UserError(wanted) from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(ids) <= most or ids.min() < 0 or ids.max() >= size:
        raise UserError(wanted)
    return torch.from_numpy(ids.astype(np.int64))


def require_tokenizer(modality: Modality) -> None:
    """Raises UserError for a text model without a tokenizer."""
    if getattr(modality, "kind", None) == "text" and getattr(modality.data, "tokenizer", None) is None:
        raise UserError(
            "this text model has no tokenizer: put its tokenizer.json, or vocab.json and merges.txt, into the model folder, or "
            "pass token ids"
        )


def require_pairs(modality: Modality, inputs: Rows, name: str | None = None) -> None:
    """Raises UserError for a data set, or a list with an input, that lacks the second text (`data.second`) of a model of pairs.
    `name`: of the only input."""
    second = getattr(getattr(modality, "data", None), "second", None)
    if second is None:
        return
    wanted = f"the model takes pairs of texts, whose second text is in column {second!r}"
    if hasattr(inputs, "features"):
        if second not in inputs.features:
            raise UserError(f"data.second: {wanted}; the data has only {', '.join(inputs.features)}")
        return
    for number, value in enumerate(inputs, 1):
        if isinstance(value, str | bytes | PathLike) or (isinstance(value, Mapping) and second not in value):
            example = f"{{'text': 'a text', {second!r}: 'another'}}"
            raise UserError(f"{name or f'input {number}'}: {wanted}; give a table with both columns, or rows such as {example}")
