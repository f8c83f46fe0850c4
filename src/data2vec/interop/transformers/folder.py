"""Model folders of Hugging Face transformers: opened and written, with its own classes or with our model code."""

from pathlib import Path

from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.untrusted import read_json


def read_transformers_folder(folder: Path) -> Model:
    """The model in a folder of transformers' `save_pretrained`.

    Raises UserError for an unsupported architecture or setting, and for missing or damaged files."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config.json of transformers, or is damaged ({error!r})") from None
    if kind == "data2vec2":
        from data2vec.interop.transformers.remote import read_remote_folder

        return read_remote_folder(folder)
    from data2vec.interop.transformers.native import read_native_folder

    return read_native_folder(folder, config)


def write_transformers_folder(model: Model, folder: Path) -> list[str]:
    """Write a model folder that transformers opens; other files in it are left alone.

    Version 1 is written for the classes of transformers if they support it, everything else with its own model code. Returns a
    description of each part of the model that is left out. Raises UserError, naming the setting, for an unsupported model."""
    from data2vec.interop.transformers.native import write_native_folder
    from data2vec.interop.transformers.remote import write_remote_folder

    if model.recipe.objective.name == "data2vec2":
        return write_remote_folder(model, folder)
    try:
        return write_native_folder(model, folder)
    except UserError as reason:
        return [f"a class of transformers ({reason}); the folder has its own model code", *write_remote_folder(model, folder)]
