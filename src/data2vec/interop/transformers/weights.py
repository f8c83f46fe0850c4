"""The tensors of a transformers folder: safetensors or a pickled state dict, in one file or sharded."""

from pathlib import Path, PurePath

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.key_mapping import TensorMap
from data2vec.untrusted import read_json

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; both may be sharded, with an index file."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder.

    Raises UserError when there are none, when a shard is missing or damaged, and for pickles of anything but tensors."""
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return dict(_load(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = sorted(set(read_json(index)["weight_map"].values()))
                if any(PurePath(shard).name != shard for shard in shards):
                    raise ValueError("it names files in other folders")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is damaged ({error!r}); copy the complete folder again") from None
            return {key: tensor for shard in shards for key, tensor in _load(folder / shard).items()}
    raise UserError(f"{folder}: no weights; expected {' or '.join(FILE_NAMES)}, in one file or sharded")


def _load(path: Path) -> TensorMap:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the complete folder again")
    if path.suffix == ".bin":
        from data2vec.interop.safe_load import safe_load

        content = safe_load(path)
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise UserError(f"{path} contains more than named tensors; it is not a weights file of transformers")
        return content
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
