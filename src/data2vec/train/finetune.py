"""Fine-tuning: `finetune()` and its task, which trains on labelled data and keeps the best model by validation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from data2vec.atomic_io import write_json
from data2vec.data.loader import Loader
from data2vec.data.sources.library import data_path
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.health.collapse import is_finite
from data2vec.health.verdict import Verdict
from data2vec.interop.load import load
from data2vec.local_path import absolute_path, local_path
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model, blank_model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import Classifier, Head, build_head, scale_logits
from data2vec.recipe.loading import list_overrides, load_recipe, name_of, with_absolute_paths
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings, TaskSettings
from data2vec.recipe.training_history import TrainingStage, make_scores, origin_of, training_stage
from data2vec.run_dir import Run, default_run_dir
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.finetuning.evaluate import load_eval_set, validate
from data2vec.tasks.finetuning.labelled_batches import LabelledBatches, Subset
from data2vec.tasks.finetuning.labels import (
    balancing_repeats,
    class_weights,
    encode_labels,
    read_labels,
    targets_from_labels,
    warn_cut,
    warn_long_transcripts,
)
from data2vec.tasks.finetuning.supervised import SupervisedObjective
from data2vec.tasks.finetuning.verdict import judge_run
from data2vec.tasks.metrics import is_better
from data2vec.train.init_from import load_encoder_weights, weight_semantics
from data2vec.train.parallel import full_state_dict
from data2vec.train.planning.auto import NOTHING_AUTO, find_auto
from data2vec.train.resumed_recipe import named_recipe, recipe_to_resume, resumes
from data2vec.train.trainer import SingleTask, run_training


def finetune(
    recipe: str | Path | Recipe,
    model: str | Path | None = None,
    data: Any = None,
    valid: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    resume: bool = False,
    scratch: bool = False,
    modality: CustomClass | None = None,
) -> Run:
    """Fine-tune a model on labelled data, and write the best model, its metrics and its checkpoints to a run folder.

    `recipe`: a shipped name such as "speech/ctc-v1-base-10h", a YAML file, or a Recipe. Encoder settings that it does not set,
    such as sizes, are those of the model. `model`: anything that `data2vec.load` opens; None: an encoder with new weights, of
    the recipe's own shape. `scratch`: the model's encoder, but with new weights, as a baseline. `data` and `valid`: labelled
    data, as paths, or as a `datasets.Dataset` or `DatasetDict`, instead of the recipe's `data.train` and `data.valid`. The rest
    is as in `data2vec.pretrain`.

    Raises UserError for wrong arguments, and RunStopped when the run ends before its last step."""
    folder = local_path(out) if out is not None else default_run_dir(recipe)
    overrides, auto = list_overrides(overrides), NOTHING_AUTO
    if resume := resumes(folder, resume):
        datasets = {"data.train": data, "data.valid": valid}
        resolved = recipe_to_resume(folder, overrides, modality, recipe, "finetune", datasets)
        init = None if model is None or scratch else absolute_path(str(model))
        if model is not None and init != resolved.init:
            before, after = (f"from {each}" if each is not None else "from new weights" for each in (resolved.init, init))
            raise UserError(f"--resume: the run in {folder} was started {before}, not {after}; omit --model and --scratch")
    else:
        keys: set[str] = set()
        resolved = resolve_recipe(recipe, model, data, valid, overrides, scratch, modality, keys)
        auto = find_auto(recipe, overrides, keys, modality)
    return run_training(folder, resolved, resume, FinetuneTask, named_recipe(recipe), auto)


class FinetuneTask(SingleTask):
    """Training on labels, from a model. It validates on `data.valid`, and keeps the best model by that."""

    source: Model | None
    """The model that training starts from; once the task is built, without its weights, which would be a second copy."""

    def __init__(self, recipe: Recipe, process: Process, resume: bool = False):
        self.recipe, self.process, self.state = recipe, process, JsonDict()
        modality = recipe.build_modality()
        self.source = None if recipe.init is None else load(recipe.init)
        self.loader = self._build_loader(modality)
        torch.manual_seed(recipe.train.seed)
        self.objective = self._build_objective(modality)
        self.init_message = None if resume else self._init_objective()
        task, valid = recipe.task, recipe.data.valid
        assert isinstance(task, SupervisedSettings)
        self.evaluate_every = None if valid is None else task.validate_every
        if valid is None and task.patience is not None:
            raise UserError(
                f"objective.patience: {task.patience}, but there is nothing to validate on; set data.valid=FOLDER, or "
                "objective.patience=null"
            )
        self.evaluate_also = ()
        if valid is not None:
            self.valid_model = blank_model(load_recipe(recipe, {"data.streaming": False}), self.targets.head)
            self.eval_set = load_eval_set(self.valid_model.modality, valid, self.targets, task.label)
        self.state["model"] = self._describe_model()
        if self.source is not None:
            self.source.encoder.to("meta")
            self.source = replace(self.source, pretraining={})

    def _build_loader(self, modality: Modality) -> Loader:
        recipe, process = self.recipe, self.process
        task: TaskSettings = recipe.task
        where = str(recipe.data.train)
        rows = modality.selected_rows(where, recipe.data.train_rows, "data.train_rows")
        examples = modality.labelled(rows)
        values = read_labels(examples, task.label, where)
        known = None if self.source is None or self.source.head is None else self.source.head.settings
        targets = targets_from_labels([value for value in values if value is not None], task, known)
        if task.weighted_layers:
            targets.head = targets.head.model_copy(update={"weighted_layers": recipe.encoder.layers})
        self.targets = targets
        indices, labels = encode_labels(values, self.targets, where)
        if process.rank == 0:
            warn_cut(examples, indices, where)
        if task.name == "ctc":
            positions = np.floor(examples.costs[indices] / (modality.seconds_per_position or 1) + 1e-6)
            warn_long_transcripts(indices, labels, positions, where)
        if getattr(task, "balance_classes", False):
            repeats = balancing_repeats(labels)
            indices, labels = (
                np.repeat(indices, repeats),
                [x for x, times in zip(labels, repeats, strict=True) for _ in range(times)],
            )
        weights = class_weights(labels) if getattr(task, "draws_per_epoch", None) else None
        subset = Subset(examples, indices)
        batches = LabelledBatches(modality, subset, labels, self.targets, task, recipe.encoder.width, weights)
        pin = process.device.type == "cuda"
        return Loader(modality, None, rows, recipe.train.seed, process.rank, process.world_size, pin, batches=batches)

    def _build_objective(self, modality: Modality) -> SupervisedObjective:
        encoder = build_encoder(modality, self.recipe.encoder)
        head = build_head(self.targets.head, self.recipe.encoder.width)
        task: TaskSettings = self.recipe.objective
        if self.source is None:  # there are no pre-trained weights to protect
            task = task.model_copy(update={"freeze_steps": 0})
        return SupervisedObjective(encoder, head, task)

    @torch.no_grad()
    def _init_objective(self) -> str:
        """Load the weights of the source model into the objective; returns a line for the log."""
        if self.source is None:
            return "init: none, all weights are new"
        load_encoder_weights(str(self.recipe.init), self.source, self.objective.student, self.recipe)
        head = self.source.head
        if same_head := head is not None and head.settings == self.targets.head:
            self.objective.head.load_state_dict(head.state_dict())
            self._scale_numbers(self.objective.head, 1 / getattr(self.recipe.objective, "label_scale", 1.0))
        self.objective.start_average()
        return f"init: the encoder of {self.recipe.init}; {'its head is loaded too' if same_head else 'the head is new'}"

    def evaluate(self, step: int, run: Run) -> JsonDict:
        """Scores on the validation data. Writes the model if they are the best so far."""
        weights = full_state_dict(self.objective)
        model = self.valid_model
        self._load_best_weights(model, weights)
        assert model.head is not None
        encoder, head = model.encoder.to(self.process.device), model.head.to(self.process.device)
        found = validate(encoder, head, model.modality, self.eval_set, self.process, self.recipe.objective)
        metric = self.recipe.objective.metric
        if metric not in found.scores:
            allowed = get_args(type(self.recipe.objective).model_fields["metric"].annotation)
            usable = ", ".join(name for name in found.scores if name in allowed)
            raise UserError(f"objective.metric: {metric!r} is not measured here; use one of {usable}")
        value, best = found.scores[metric], self.state.get("best")
        improved = best is None or not math.isfinite(best["value"]) or is_better(metric, value, best["value"])
        self.state["validations_since_best"] = 0 if improved else self.state.get("validations_since_best", 0) + 1
        # Of equal scores the later model: all are 100 % until a recognizer has learned more than blanks.
        if best is None or (value == value and not is_better(metric, best["value"], value)):
            shown = found.scores | {key: value for key, value in found.evidence.items() if key.startswith("chance_")}
            scores = make_scores(shown, self.recipe.data.valid, f"{found.examples} examples")
            self._write_model(weights, run, training_stage(self.recipe, step, scores, metric))
            if (details := found.details) is not None:
                self.process.on_main_process(lambda: write_json(run.folder / "validation.json", details.to_json(step)))
            self.state["best"] = {"step": step, "metric": metric, "value": value}
        measured = found.scores | found.evidence | {"examples": found.examples}
        measured |= {f"best_{metric}": self.state["best"]["value"], "best_step": self.state["best"]["step"]}
        return {f"valid_{name}": value for name, value in measured.items()}

    @property
    def early_stop(self) -> str | None:
        """Why the run ends now, by `objective.patience`; None if it does not."""
        patience, waited = self.recipe.objective.patience, self.state.get("validations_since_best", 0)
        if patience is None or waited < patience:
            return None
        return f"{self.recipe.objective.metric} is not better in the last {waited} validations, objective.patience={patience}"

    def has_collapsed(self, metrics: JsonDict) -> bool:
        """Whether the loss or the gradient norm is NaN or inf."""
        return not is_finite(metrics)

    def verdict(self, metrics: Sequence[JsonMapping]) -> Verdict:
        """The health of the run so far."""
        return judge_run(metrics, self.recipe)

    def save_model(self, run: Run) -> None:
        """Write the last model, unless validation has chosen the best one already."""
        if "best" not in self.state:
            last = training_stage(self.recipe, self.recipe.train.steps, ())
            self._write_model(full_state_dict(self.objective), run, last)

    def _describe_model(self) -> JsonDict:
        """What a checkpoint has to record for its weights to be opened as a model."""
        return {
            "head": self.targets.head.model_dump(mode="json"),
            "objective": self._model_recipe().objective.model_dump(mode="json"),
            "label_scale": getattr(self.recipe.objective, "label_scale", 1.0),
            "origin": {} if self.source is None else origin_of(self.source),
        }

    def _write_model(self, weights: Mapping[str, Tensor], run: Run, stage: TrainingStage) -> None:
        model = blank_model(self.recipe, self.targets.head)
        self._load_best_weights(model, weights)
        model = replace(model, recipe=self._model_recipe(), training=(stage,))
        if (source := self.source) is not None:
            model = replace(model, source=source.source, license=source.license, training=(*source.training, stage))
        self.process.on_main_process(lambda: save_model_folder(model, run.model, self.loader.examples))

    def _load_best_weights(self, model: Model, weights: Mapping[str, Tensor]) -> None:
        """Load the weights to use, averaged if the recipe averages them, from the objective's state into a model."""
        for part, name in ((model.encoder, "student."), (model.head, "head.")):
            prefix = self.objective.best_weights_prefix + name
            assert part is not None
            part.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        assert model.head is not None
        self._scale_numbers(model.head, getattr(self.recipe.objective, "label_scale", 1.0))

    def _scale_numbers(self, head: Head, factor: float) -> None:
        """Training divides the labels of a regression by `objective.label_scale`; a model predicts the labels themselves."""
        if factor != 1 and isinstance(head, Classifier) and head.settings.problem_type == "regression":
            scale_logits(head, factor)

    def _model_recipe(self) -> Recipe:
        """The recipe in the model: its encoder, and the objective of its pre-training; without any, that of this run."""
        objective = self.recipe.objective if self.source is None else self.source.recipe.objective
        return self.recipe.model_copy(update={"objective": objective, "init": None})


def resolve_recipe(
    recipe: str | Path | Recipe,
    model: Any,
    data: Any,
    valid: Any,
    overrides: Iterable[str] | JsonMapping,
    scratch: bool,
    modality: CustomClass | None = None,
    auto: set[str] | None = None,
) -> Recipe:
    """The complete recipe of this run: settings of encoder and modality default to the model's, and data paths are absolute.
    `auto`: see `load_recipe`."""
    if scratch and model is None:
        raise UserError(
            "--scratch: needs --model, whose shape the new encoder gets; without --model, it has the recipe's and new weights"
        )
    source = None if model is None else load(model, modality)
    defaults: JsonDict = {}
    if source is not None:
        defaults = {part: getattr(source.recipe, part).model_dump(mode="json") for part in ("modality", "encoder")}
        defaults["data"] = source.modality.data_defaults()
    own = defaults if modality is not None else None  # settings of the class that have no default
    first = load_recipe(recipe, defaults=own, modality=modality, auto=auto)
    if not isinstance(first.objective, SupervisedSettings):
        raise UserError(f"{name_of(recipe)}: is a recipe for pre-training, not for fine-tuning; 'data2vec recipes' lists both")
    kinds = [each.modality.name for each in (first, *([] if source is None else [source.recipe]))]
    if len(set(kinds)) > 1:
        raise UserError(
            f"--model {model}: is a {kinds[1]} model, but {name_of(recipe)} is for {kinds[0]}; use a recipe for {kinds[1]}"
        )
    known = {} if source is None else weight_semantics(source.recipe)
    if source is not None and not source.recipe.encoder.final_norm:  # which can be removed, but not added without weights
        known["encoder.final_norm"] = False
    resolved = load_recipe(load_recipe(recipe, known, defaults, modality, auto=auto), overrides, auto=auto)
    given = {"data.train": data, "data.valid": valid}
    paths = {key: data_path(each) for key, each in given.items() if each is not None}
    if model is not None and not scratch:
        paths["init"] = str(model)
    resolved = with_absolute_paths(load_recipe(resolved, paths))
    if resolved.data.train is None:
        raise UserError("data.train: no labelled training data; give it with data.train=FOLDER")
    return load_recipe(resolved, resolved.build_modality().measure(str(resolved.data.train)))
