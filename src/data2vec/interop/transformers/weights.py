"""The tensors of a transformers folder: safetensors or a pickled state dict, whole or in parts."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.key_mapping import TensorMap

NAMES = ("model.safetensors", "pytorch_model.bin")
"""In the order of preference; either may be in parts, with an index beside them."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors under their names there.

    Raises UserError when there are none, when a part is missing or damaged, and for pickles that ask for anything but
    tensors."""
    for name in NAMES:
        if (folder / name).is_file():
            return dict(_load(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is damaged ({error!r}); copy the whole folder again") from None
            return {key: tensor for part in parts for key, tensor in _load(folder / part).items()}
    raise UserError(f"{folder}: no weights; looked for {' and '.join(NAMES)}, whole or in parts")


def _load(path: Path) -> TensorMap:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole folder again")
    if path.suffix == ".bin":
        from data2vec.interop.safe_load import safe_load

        found = safe_load(path)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise UserError(f"{path} holds more than named tensors; it is no weights file of transformers")
        return found
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
