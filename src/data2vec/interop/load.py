"""Opening a model of any form: a run or model folder, a transformers folder, an official checkpoint, or hf://owner/name."""

import json
from pathlib import Path

from data2vec.data.sources.hub import hub_name, no_such_path
from data2vec.errors import UserError
from data2vec.interop.fairseq.read import read_fairseq_checkpoint
from data2vec.interop.transformers.folder import read_transformers_folder
from data2vec.model import Model, load_model_folder


def load(model: str | Path | Model) -> Model:
    """A trained model, on the CPU, in evaluation mode.

    `model`: a run folder or a model folder; a folder of transformers' `save_pretrained`; an official checkpoint (`.pt`, `.pth`)
    of version 1 or 2, pre-trained or fine-tuned; or such a folder on the hub, "hf://owner/name", or "owner/name" if it has been
    downloaded before.

    Raises UserError when there is none, when its files are damaged or refused, when weights are missing, and for models that
    are not supported."""
    if isinstance(model, Model):
        return model
    path = Path(model).expanduser()
    if path.is_file():
        return read_fairseq_checkpoint(path)
    if not path.exists():
        name = hub_name(str(model), "model")
        if name is None:
            raise no_such_path(str(model))
        path = _download(name)
    if is_transformers_folder(path):
        return read_transformers_folder(path)
    return load_model_folder(path)


def is_transformers_folder(folder: Path) -> bool:
    """Whether the folder has a config.json of transformers, which names a model type."""
    try:
        return isinstance(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"), str)
    except (OSError, ValueError, AttributeError):
        return False


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"hf://{name}: is not available on the hub ({reason})") from None
