"""Folders for the classes that transformers itself has for version 1: Data2VecAudio, Data2VecVision, Data2VecText."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data2vec.atomic_io import merge_dir
from data2vec.errors import UserError, get_logger
from data2vec.interop.key_mapping import Table, TensorMap, foreign_keys, to_foreign_keys, to_our_keys
from data2vec.interop.transformers.card import omitted_parts, usage_example
from data2vec.interop.transformers.config import (
    FAMILIES,
    HINT,
    NativeFamily,
    config_to_sections,
    recipe_to_config,
    unsupported_setting,
)
from data2vec.interop.transformers.heads import head_from_transformers, head_to_transformers
from data2vec.interop.transformers.processors import read_processors, write_processors
from data2vec.interop.transformers.weights import read_weights
from data2vec.modalities.vision import VisionSettings
from data2vec.model import Model, blank_model
from data2vec.model_card import render_model_card
from data2vec.recipe.loading import load_recipe, untrusted_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.recipe.training_history import origin_of, read_origin
from data2vec.settings import JsonDict, JsonMapping

log = get_logger(__name__)

RECOMPUTED = ("position_ids", "token_type_ids", "relative_position_index")
"""Ends of the names of buffers that older versions stored and that are recomputed."""
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
"""The embedding of the only segment, which this package adds to the positions."""


def read_native_folder(folder: Path, config: JsonDict) -> Model:
    """The model in a folder with this `config.json`. An unsupported head is ignored, with a warning.

    Raises UserError as `read_transformers_folder`."""
    family = next((family for family in FAMILIES if family.type == config["model_type"]), None)
    where = str(folder / "config.json")
    if family is None:
        known = ", ".join(family.type for family in FAMILIES)
        raise UserError(f"{where}: model_type: {config['model_type']!r} is not supported, only {known}, data2vec2")
    processors = read_processors(folder, family.modality)
    tensors: TensorMap = read_weights(folder)
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    if (mask_key := family.table.get("local_encoder.mask_vector")) is not None:
        processors.setdefault("modality", {})["mask_vector"] = f"{prefix}{mask_key}" in tensors
    try:
        recipe = _recipe(family, config, processors, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({error!r}); copy the complete folder again") from None
    head, tensors = head_from_transformers(family, config, tensors, processors.get("head", {}).get("labels", []), where)
    model = blank_model(recipe, head, sum(tensor.nbytes for tensor in tensors.values()))
    used = _load_weights(model.encoder, _table(family, recipe, prefix), tensors, folder)
    if model.head is not None and head is not None:
        used |= _load_weights(model.head, family.heads[head.name][1], tensors, folder)
    token_types = tensors.get(prefix + TOKEN_TYPES)
    if token_types is not None:
        model.encoder.get_parameter("position_encoder.table.weight").add_(token_types[0])
        used |= {prefix + TOKEN_TYPES} if len(token_types) == 1 else set()
    unknown = sorted(name for name in tensors.keys() - used if not name.endswith(RECOMPUTED))
    if unknown:
        log.warning("%s: ignored unknown weights: %s", folder, ", ".join(unknown))
    return replace(model, **read_origin(config.get(HINT, {}), str(folder / "config.json")))


def write_native_folder(model: Model, folder: Path) -> list[str]:
    """As `write_transformers_folder`, for models that the classes of transformers support."""
    recipe = model.recipe
    family = next((family for family in FAMILIES if family.modality == model.modality.settings.name), None)
    if family is None:
        raise unsupported_setting("modality.name", model.modality.settings.name, "transformers has no such model")
    config = recipe_to_config(family, recipe)
    class_ending, head_config, head_tensors = head_to_transformers(family, model)
    stored_recipe = recipe.without_local_paths()
    if "tokenizer" in stored_recipe["data"]:
        stored_recipe["data"]["tokenizer"] = None  # it is in the folder
    config |= {"architectures": [family.name + class_ending], "dtype": "float32", **head_config}
    settings = None if model.head is None else model.head.settings.model_dump(mode="json")
    config[HINT] = {"recipe": stored_recipe, "head": settings, **origin_of(model)}
    tensors = _tensors(family, model) | head_tensors
    with merge_dir(folder, "config.json") as tmp:
        save_file(tensors, tmp / "model.safetensors", metadata={"format": "pt"})
        (tmp / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        write_processors(model, tmp)
        (tmp / "README.md").write_text(
            render_model_card(model, library="transformers", usage=usage_example(model)), encoding="utf-8"
        )
    return omitted_parts(model, "the prediction head", "zero_input")


def _recipe(family: NativeFamily, config: JsonMapping, processors: JsonMapping, where: str) -> Recipe:
    """The recipe stored in config.json, else the released one of this size, updated by config.json and the preprocessor."""
    raw = config.get(HINT, {}).get("recipe", {})
    sections = config_to_sections(family, config, where)
    has_stored_recipe = raw.get("modality", {}).get("name") == family.modality
    if not has_stored_recipe:
        large = f"{family.modality}/v1-large"
        name = large if sections["encoder"]["width"] >= 1024 and large in recipe_names() else f"{family.modality}/v1-base"
        raw = load_recipe(name).model_dump(mode="json")
    for section in ("modality", "encoder", "data"):
        raw[section] = {**raw[section], **sections.get(section, {}), **processors.get(section, {})}
    if not has_stored_recipe:
        target = raw["objective"]["target"]
        target["top_k"] = min(target["top_k"], raw["encoder"]["layers"])
        if family.modality == "text":
            raw["data"]["block_size"] = min(raw["data"]["block_size"], raw["modality"]["max_length"])
    return untrusted_recipe(raw, where)


def _table(family: NativeFamily, recipe: Recipe, prefix: str) -> Table:
    """The key table of the encoder."""
    table = dict(family.table)
    if getattr(recipe.modality, "position_tables", 1) > 1:
        table["position_encoder.table"] = _table_per_block(recipe.encoder.layers)
    return {
        ours: prefix + theirs if isinstance(theirs, str) else tuple(prefix + key for key in theirs)
        for ours, theirs in table.items()
    }


def _table_per_block(layers: int) -> tuple[str, ...]:
    name = "encoder.layer.{}.attention.attention.relative_position_bias.relative_position_bias_table"
    return tuple(name.format(i) for i in range(layers))


def _load_weights(part: nn.Module, table: Table, tensors: TensorMap, folder: Path) -> set[str]:
    """Load weights; returns the keys that were used. Raises UserError for missing weights and for a wrong size."""
    ours = dict(part.named_parameters())
    keys = foreign_keys(ours, table)
    used = {key for several in keys.values() for key in several}
    if missing := sorted(used - tensors.keys()):
        raise UserError(f"{folder}: weights are missing: {', '.join(missing)}")
    for name, parameter in ours.items():
        try:
            parameter.copy_(to_our_keys(tensors, {name: parameter}, table)[name])
        except RuntimeError:
            shapes = " and ".join(str(tuple(tensors[key].shape)) for key in keys[name])
            raise UserError(f"{folder}: {keys[name][0]} has shape {shapes}, which does not match config.json") from None
    return used


def _tensors(family: NativeFamily, model: Model) -> dict[str, Tensor]:
    """All weights of the encoder under their names in transformers."""
    prefix = family.prefix if model.head is not None else ""
    table, settings = _table(family, model.recipe, prefix), model.modality.settings
    ours = {name: value.detach().cpu().clone() for name, value in model.encoder.named_parameters()}
    width = model.recipe.encoder.width
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(settings, VisionSettings):
        shapes["embeddings.patch_embeddings.projection.weight"] = (width, 3, settings.patch, settings.patch)
        shapes |= dict.fromkeys(("embeddings.mask_token", "embeddings.cls_token"), (1, 1, width))
        if settings.position_tables > 1:
            shapes |= dict.fromkeys(_table_per_block(model.recipe.encoder.layers), ours["position_encoder.table"].shape[1:])
    theirs = to_foreign_keys(ours, {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, table)
    if family.modality == "text":
        theirs[prefix + TOKEN_TYPES] = torch.zeros(1, width)
    return theirs
