"""A model of a run's checkpoint: RUN@step-N, RUN@last, RUN@best, and a run that is not finished.

The run may be a stranger's: only regular files within bounds are read, by a recipe that names no class to import and no file.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from data2vec.errors import UserError, printable, quoted
from data2vec.model import Model, blank_model, load_model_folder
from data2vec.nn.heads import AnyHeadSettings, Classifier, scale_logits
from data2vec.recipe.joint import JOINT
from data2vec.recipe.loading import untrusted_recipe
from data2vec.recipe.recipe import data_name
from data2vec.recipe.shipped import SUPERVISED
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.training_history import TrainingStage, pretraining_settings, read_origin
from data2vec.run_dir import (
    PARTS,
    Run,
    checkpoint_damage,
    latest_checkpoint,
    load_run_recipe,
    read_checkpoint_tensors,
    read_state,
    runs_below,
)
from data2vec.settings import JsonDict


def load_run_weights(run: Path, which: str) -> Model:
    """The model of `which` weights of a run: "step-N", "last" or "best", on the CPU, in evaluation mode.

    Raises UserError when the run has none, or the checkpoint is damaged."""
    name = f"{run}@{which}"
    if not (run / "recipe.yaml").is_file() and not Run(run).checkpoints:
        raise UserError(f"{name}: {run} is not a run folder{runs_below(run)}")
    if which == "best":
        return _load_best(run, name)
    if which == "last":
        if (checkpoint := latest_checkpoint(run)) is None:
            raise UserError(f"{name}: the run has no complete checkpoint; its model is opened by {run}")
        return load_checkpoint_model(checkpoint)
    checkpoint = run / "checkpoints" / which
    if not checkpoint.is_dir():
        raise UserError(f"{name}: there is no such checkpoint; {_complete_ones(run)}")
    return load_checkpoint_model(checkpoint)


def _load_best(run: Path, name: str) -> Model:
    if not Run(run).recipe.is_file():
        raise UserError(
            f"{name}: the run has no recipe.yaml, which says how the best weights were chosen; use {run}@last or a step; "
            f"{_complete_ones(run)}"
        )
    recipe = load_run_recipe(run)
    if not isinstance(recipe.objective, SupervisedSettings):
        raise UserError(
            f"{name}: pre-training has no score to choose weights by; use {run}@last or a step; {_complete_ones(run)}"
        )
    if recipe.data.valid is None:
        raise UserError(f"{name}: the run has no data.valid to choose weights by; use {run}@last")
    return load_model_folder(run / "model")


def _complete_ones(run: Path) -> str:
    steps = [path.name for path in reversed(Run(run).checkpoints) if checkpoint_damage(path) is None]
    return f"the run has {', '.join(steps)}" if steps else "the run has no complete checkpoint"


def load_checkpoint_model(checkpoint: Path) -> Model:
    """The model of a checkpoint, with the step that it is of; reported on stderr. Of fine-tuning, the weights that would be
    validated: averaged ones, if the recipe averages them.

    Raises UserError when the checkpoint is damaged, or does not fit its recipe."""
    if damage := checkpoint_damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {damage}; {_complete_ones(checkpoint.parent.parent)}")
    try:
        state = read_state(checkpoint)
        raw, files = dict(state["recipe"]), dict(state.get("files", {}))
        steps, supervised = int(raw["train"]["steps"]), state["task"].get("model")
        if raw["modality"]["name"] == JOINT:
            raise UserError(
                f"{checkpoint} is of a joint run, whose end writes the model of each part: {PARTS}/NAME in its folder"
            )
        raw["data"] = raw["data"] | {"tokenizer": None} if "tokenizer" in raw["data"] else raw["data"]
        raw["data"] = raw["data"] | {key: str(_inside(checkpoint, name)) for key, name in files.items()}
        raw_objective = raw["objective"]
        if supervised is None and raw_objective["name"] in SUPERVISED:
            raise ValueError("it is of fine-tuning, and has no record of the head")
        raw["objective"] = raw_objective if supervised is None else supervised["objective"]
        head = None if supervised is None else TypeAdapter(AnyHeadSettings).validate_python(supervised["head"])
        label_scale = 1.0 if supervised is None else float(supervised["label_scale"])
        where = str(checkpoint / "state.json")
        origin = read_origin((state["task"] if supervised is None else supervised).get("origin", {}), where)
        task, data = str(raw_objective["name"]), raw["data"]["train"]
        stage = TrainingStage(
            task=task,
            data=None if data is None else data_name(str(data)),
            step=int(checkpoint.name[5:]),
            steps=steps,
            continued=raw.get("init") is not None,
        )
    except UserError:
        raise
    except Exception as error:  # others may have written anything
        raise UserError(f"{checkpoint / 'state.json'} does not describe a model: {quoted(error)}; train again") from None
    recipe = untrusted_recipe(raw, where)
    if supervised is None and not stage.continued:
        stage = stage.model_copy(update={"pretraining": pretraining_settings(recipe)})
    weights = _read_weights(checkpoint)
    model = blank_model(recipe, head, sum(weight.nbytes for weight in weights.values()))
    prefix = "average." if any(name.startswith("average.") for name in weights) else ""
    try:
        _load(model.encoder, weights, f"{prefix}student.")
        if model.head is not None:
            _load(model.head, weights, f"{prefix}head.")
            if label_scale != 1 and isinstance(model.head, Classifier) and model.head.settings.problem_type == "regression":
                scale_logits(model.head, label_scale)
    except RuntimeError as error:
        raise UserError(f"{checkpoint} does not fit its recipe: {' '.join(str(error).split())[:200]}") from None
    rest = {} if head is not None else {name: each for name, each in weights.items() if not name.startswith("student.")}
    print(f"data2vec: {printable(str(checkpoint))}: weights of step {stage.step} of {steps}", file=sys.stderr)
    training = (*origin.pop("training"), stage)
    return replace(model, pretraining=rest, training=training, **origin)


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name and name != ".":
        raise ValueError("it names files outside of the checkpoint")
    return (folder / name).resolve()


def _read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the objective by name, complete also if several processes have written a shard each.

    Raises UserError when the files cannot be read, or claim more than they hold."""
    import torch.distributed.checkpoint as dcp

    try:
        found = dcp.HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
        sizes: JsonDict = {name: each for name, each in found.items() if not name.startswith("optimizer.")}
        with torch.device("meta"):
            empty = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in sizes.items()}
    except Exception as error:  # others may have written anything
        raise UserError(f"{checkpoint} is damaged: {quoted(error)}") from None
    if sum(each.nbytes for each in empty.values()) > _bytes(checkpoint.glob("*.safetensors")):
        raise UserError(f"{checkpoint} is damaged: its weights claim to be larger than their files")
    weights = {name: torch.empty_like(each, device="cpu") for name, each in empty.items()}
    read_checkpoint_tensors(checkpoint, weights)
    return weights


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _load(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict({key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(prefix)})
