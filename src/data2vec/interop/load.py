"""Opening a model of any form: a run or model folder, a transformers folder, an official checkpoint, or hf://owner/name."""

from pathlib import Path

from data2vec.data.sources.hub import hub_name, no_such_path, split_revision
from data2vec.errors import UserError
from data2vec.interop.fairseq.read import read_fairseq_checkpoint
from data2vec.interop.run_weights import load_checkpoint_model, load_run_weights
from data2vec.interop.transformers.folder import read_transformers_folder
from data2vec.local_path import local_path, split_weights
from data2vec.modalities.custom_classes import CustomClass, trust_class, trusted_class
from data2vec.model import Model, load_model_folder
from data2vec.run_dir import Run, is_checkpoint, latest_checkpoint
from data2vec.untrusted import read_json


def load(
    model: str | Path | Model,
    modality: CustomClass | None = None,
    objective: CustomClass | None = None,
    revision: str | None = None,
) -> Model:
    """A trained model, on the CPU, in evaluation mode.

    `model`: a run folder or a model folder; RUN@step-N, RUN@last or RUN@best for other weights of a run, or the folder of a
    checkpoint; of a run without a model yet, its latest complete checkpoint; a folder of transformers' `save_pretrained`; an
    official checkpoint (`.pt`, `.pth`) of version 1 or 2, pre-trained or fine-tuned; or such a folder on the hub,
    "hf://owner/name", or "owner/name" if it has been downloaded before. `modality` and `objective`: the class outside the
    package that the model needs, or its name "package.module:Class"; nothing that a model names is imported. `revision`: the
    commit, tag or branch on the hub.

    Raises UserError when there is none, when its files are damaged or refused, when weights are missing, and for models that
    are not supported."""
    for custom, setting in ((modality, "modality"), (objective, "objective")):
        if custom is not None:
            trust_class(custom, setting)
    loaded = model if isinstance(model, Model) else _load(model, revision)
    if modality is not None and type(loaded.modality) is not trusted_class(name := trust_class(modality, "modality"), "", ""):
        raise UserError(f"modality: {name}, but {_shown(model)} is a model of modality {loaded.recipe.modality.name}")
    return loaded


def _shown(model: str | Path | Model) -> str:
    return "this" if isinstance(model, Model) else str(model)


def _load(model: str | Path, revision: str | None) -> Model:
    path, (run, which) = local_path(model), split_weights(model)
    if which:
        return load_run_weights(local_path(run), which)
    if revision is not None and path.exists():
        raise UserError(f"revision: {revision}, but {model} is a path; revisions are of models on the hub, hf://owner/name")
    if path.is_file():
        return read_fairseq_checkpoint(path)
    if not path.exists():
        name = hub_name(str(model), "model")
        if name is None:
            raise no_such_path(str(model))
        name, named = split_revision(name)
        if named is not None and revision not in (None, named):
            raise UserError(f"revision: {revision}, but {model} names {named}; name one")
        path = _download(name, revision or named)
    if is_transformers_folder(path):
        return read_transformers_folder(path)
    if is_checkpoint(path):
        return load_checkpoint_model(path)
    if parts := Run(path).parts:
        raise UserError(f"{model} is a joint run; open the model of a part: {', '.join(str(part.folder) for part in parts)}")
    has_model = any((path / name).is_file() for name in ("config.json", "model/config.json"))
    if not has_model and (checkpoint := latest_checkpoint(path)) is not None:
        return load_checkpoint_model(checkpoint)
    return load_model_folder(path)


def is_transformers_folder(folder: Path) -> bool:
    """Whether the folder has a config.json of transformers, which names a model type."""
    try:
        return isinstance(read_json(folder / "config.json").get("model_type"), str)
    except (OSError, ValueError, AttributeError):
        return False


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.bin", "*.md"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise UserError(f"hf://{name}: has no revision {revision}; use a commit, tag or branch of it") from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"hf://{name}: is not available on the hub ({reason})") from None
