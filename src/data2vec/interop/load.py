"""Open a model of any form: a run or model folder of ours, one of transformers, or an official file."""

import json
from pathlib import Path

from data2vec.errors import UserError
from data2vec.interop.fairseq.read import read_fairseq_checkpoint
from data2vec.interop.transformers.folder import read_transformers_folder
from data2vec.model import Model, load_model_folder


def load(model: str | Path | Model) -> Model:
    """A trained model, on the CPU, in evaluation mode.

    `model`: a run folder or a model folder; a folder of transformers' `save_pretrained`; an official `.pt` or `.pth` of
    version 1 or 2, pre-trained or fine-tuned; or the name of any such folder on the hub, "owner/name".

    Raises UserError when there is none, when its files are damaged or ask for anything but weights, when weights are
    missing, or when it is a model that cannot be represented."""
    if isinstance(model, Model):
        return model
    path = Path(model).expanduser()
    if path.is_file():
        return read_fairseq_checkpoint(path)
    if not path.exists() and _is_hub_name(str(model)):
        path = _download(str(model))
    if _kind(path / "config.json") is not None:
        return read_transformers_folder(path)
    return load_model_folder(path)


def _kind(config: Path) -> str | None:
    """transformers' name for the architecture, where this is a folder of theirs."""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _is_hub_name(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner and slash and rest) and "/" not in rest and not name.startswith((".", "~"))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: there is no such folder or file, and the hub does not give it ({why})") from None
