"""Models as folders of Hugging Face transformers, and their names for our parameters."""

import json
from pathlib import Path

from data2vec.errors import UserError
from data2vec.model import Model


def read_transformers_folder(folder: Path) -> Model:
    """The model in a folder of transformers' `save_pretrained`.

    Raises UserError for an architecture or a setting that is not ours, and for missing or damaged files."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not of transformers, or damaged ({error!r})") from None
    if kind == "data2vec2":
        from data2vec.interop.transformers.remote import read_remote_folder

        return read_remote_folder(folder)
    from data2vec.interop.transformers.native import read_native_folder

    return read_native_folder(folder, config)


def write_transformers_folder(model: Model, folder: Path) -> list[str]:
    """Write a model folder that transformers opens, in place of what was there: version 1 for its own classes, where these
    can express it; all else with the code that it needs.

    Returns, in words, what of the model has no place in it. Raises UserError, which names the setting, when the model
    itself has none."""
    from data2vec.interop.transformers.native import write_native_folder
    from data2vec.interop.transformers.remote import write_remote_folder

    if model.recipe.objective.name == "data2vec2":
        return write_remote_folder(model, folder)
    try:
        return write_native_folder(model, folder)
    except UserError as reason:
        return [f"a class of transformers itself ({reason}); it has its code with it", *write_remote_folder(model, folder)]
