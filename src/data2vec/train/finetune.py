"""Fine-tuning: the training loop on labelled data, from a model, keeping the best one by its validation."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.data.loader import Loader
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.health.verdict import Verdict
from data2vec.interop.load import load
from data2vec.modalities.base import Modality
from data2vec.model import Model, blank_model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import build_head
from data2vec.objective import Data2Vec2Settings
from data2vec.objective import diagnostics as health
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.run_dir import Run
from data2vec.tasks.finetuning.evaluate import compute_scores, load_eval_set, predict
from data2vec.tasks.finetuning.labelled_batches import LabelledBatches, Subset
from data2vec.tasks.finetuning.labels import (
    balancing_repeats,
    encode_labels,
    read_labels,
    targets_from_labels,
    warn_long_transcripts,
)
from data2vec.tasks.finetuning.supervised import SupervisedObjective
from data2vec.tasks.finetuning.verdict import judge_run
from data2vec.tasks.metrics import is_better
from data2vec.train.init_from import fit, meaning
from data2vec.train.parallel import all_weights
from data2vec.train.trainer import Training, run_in


def finetune(
    recipe: str | Path | Recipe,
    model: str | Path | None = None,
    data: str | None = None,
    valid: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    resume: bool = False,
    scratch: bool = False,
) -> Run:
    """Fine-tune a model on labelled data, and write the best one with all that happened into a run folder.

    `recipe`: a shipped name such as "speech/ctc-v1-base-10h", a YAML file, or a Recipe; its encoder is the model's, but for
    what the recipe itself says of it, such as dropout. `model`: anything that `data2vec.load` opens; none: an encoder with
    fresh weights, of the recipe's own shape. `scratch`: the model's encoder, but with fresh weights, to compare with. `data`
    and `valid`: labelled data, in place of the recipe's `data.train` and `data.valid`. The rest is as in `data2vec.pretrain`.

    Raises UserError for a mistake in what was given, RunStopped when the run ends before its last step."""
    place = Path(out) if out is not None else Path("runs") / f"{str(recipe).replace('/', '-')}"
    resolved = _resolve(recipe, model, data, valid, overrides, scratch)
    return run_in(place, resolved, resume, Finetuning)


class Finetuning(Training):
    """A run that learns from labels."""

    given: Model | None
    """The model that it starts from; once the run is built, without its weights, which would only be a second copy."""

    def __init__(self, recipe: Recipe, process: Process, newest: Path | None = None):
        super().__init__(recipe, process, newest)
        if self.given is not None:
            self.given.encoder.to("meta")
            self.given = replace(self.given, pretraining={})

    def _open(self, modality: Modality) -> Loader:
        recipe, process = self.recipe, self.process
        self.given = None if recipe.init is None else load(recipe.init)
        task: Any = recipe.objective
        where = str(recipe.data.train)
        examples = modality.labelled(modality.rows(where))
        values = read_labels(examples, task.label, where)
        known = None if self.given is None or self.given.head is None else self.given.head.settings
        targets = targets_from_labels([value for value in values if value is not None], task, known)
        if task.weighted_layers:
            targets.head = targets.head.model_copy(update={"weighted_layers": recipe.encoder.layers})
        self.targets = targets
        indices, labels = encode_labels(values, self.targets, where)
        if task.name == "ctc":
            positions = np.floor(examples.costs[indices] / (modality.seconds_per_position or 1) + 1e-6)
            warn_long_transcripts(indices, labels, positions, where)
        if getattr(task, "balance_classes", False):
            repeats = balancing_repeats(labels)
            indices, labels = (
                np.repeat(indices, repeats),
                [x for x, times in zip(labels, repeats, strict=True) for _ in range(times)],
            )
        batches = LabelledBatches(modality, Subset(examples, indices), labels, self.targets, task, recipe.encoder.width)
        pin = process.device.type == "cuda"
        return Loader(modality, None, [], self.settings.seed, process.rank, process.world_size, pin, batches=batches)

    def _build(self, modality: Modality) -> SupervisedObjective:
        encoder = build_encoder(modality, self.recipe.encoder)
        head = build_head(self.targets.head, self.recipe.encoder.width)
        task: Any = self.recipe.objective
        if self.given is None:  # nothing is there to be kept from harm
            task = task.model_copy(update={"freeze_steps": 0})
        return SupervisedObjective(encoder, head, task)

    @torch.no_grad()
    def _start(self) -> str | None:
        if self.given is None:
            return "init: none, every weight is fresh"
        fit(str(self.recipe.init), self.given, self.objective.student, self.recipe)
        head = self.given.head
        if same := head is not None and head.settings == self.targets.head:
            self.objective.head.load_state_dict(head.state_dict())
        self.objective.start_average()
        return f"init: the encoder of {self.recipe.init}; {'its head, too' if same else 'the head is new'}"

    def _probe(self) -> tuple[Any, int]:
        task, valid = self.recipe.objective, self.recipe.data.valid
        assert isinstance(task, SupervisedSettings)
        if valid is None:
            return None, task.validate_every
        recipe = load_recipe(self.recipe, {"data.streaming": False})
        modality = recipe.build_modality()
        eval_set = load_eval_set(modality, valid, self.targets, task.label)
        copy = blank_model(recipe, self.targets.head)

        def validate(weights: Mapping[str, Tensor]) -> dict[str, float]:
            self._fill(copy, weights)
            assert copy.head is not None
            copy.encoder.to(self.process.device)
            copy.head.to(self.process.device)
            predictions = predict(copy.encoder, copy.head, modality, eval_set, self.process)
            scores, _ = compute_scores(predictions, copy.head, eval_set, self.process, task)
            return {f"valid_{name}": value for name, value in scores.items()}

        return validate, task.validate_every

    def _measure(self, probe: Any) -> dict[str, Any]:
        """Validate, and write the model where it is the best one so far."""
        weights = all_weights(self.objective)
        scores = probe(weights)
        metric = self.recipe.objective.metric
        if f"valid_{metric}" not in scores:
            raise UserError(f"objective.metric: {metric!r} is not measured here, only {', '.join(k[6:] for k in scores)}")
        value, best = scores[f"valid_{metric}"], self.noted.get("best")
        if best is None or is_better(metric, value, best["value"]):
            self.noted["best"] = {"step": self.step, "metric": metric, "value": value}
            self._write_model(weights)
        return scores

    def _save_model(self) -> None:
        """The best one was written when it was met; without validation it is the last one."""
        if "best" not in self.noted:
            self._write_model(all_weights(self.objective))

    def _write_model(self, weights: Mapping[str, Tensor]) -> None:
        model = blank_model(self.recipe, self.targets.head)
        self._fill(model, weights)
        model = replace(model, recipe=self._model_recipe())
        if self.given is not None:
            model = replace(model, source=self.given.source, license=self.given.license)
        self.process.on_main_process(lambda: save_model_folder(model, self.run.model, self.loader.examples, self.run.metrics))

    def _fill(self, model: Model, weights: Mapping[str, Tensor]) -> None:
        for part, name in ((model.encoder, "student."), (model.head, "head.")):
            prefix = self.objective.best_weights_prefix + name
            assert part is not None
            part.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})

    def _model_recipe(self) -> Recipe:
        """What the model is: the encoder as it is now, and the pre-training it comes from. How it was tuned is in the run."""
        objective = Data2Vec2Settings() if self.given is None else self.given.recipe.objective
        return self.recipe.model_copy(update={"objective": objective, "init": None})

    def _collapsed(self, line: dict[str, Any]) -> str | None:
        return None if health.finite(line) else "the loss, or the norm of the gradients, is no number any more"

    def _verdict(self) -> Verdict:
        return judge_run(self.run.metrics, self.recipe)


def _resolve(
    recipe: str | Path | Recipe,
    model: Any,
    data: str | None,
    valid: str | None,
    overrides: Iterable[str] | Mapping[str, Any],
    scratch: bool,
) -> Recipe:
    """The complete recipe of this run, with encoder and modality defaults from the model and absolute data paths."""
    given = None if model is None else load(model)
    defaults: dict[str, Any] = {}
    if given is not None:
        defaults = {part: getattr(given.recipe, part).model_dump(mode="json") for part in ("modality", "encoder")}
        if (tokenizer := getattr(given.modality.data, "tokenizer", None)) is not None:
            defaults["data"] = {"tokenizer": str(Path(tokenizer).resolve())}
    first = load_recipe(recipe)
    if not isinstance(first.objective, SupervisedSettings):
        raise UserError(f"{recipe}: is a recipe of pre-training, not of fine-tuning; 'data2vec recipes' lists both")
    kinds = [each.modality.name for each in (first, *([] if given is None else [given.recipe]))]
    if len(set(kinds)) > 1:
        raise UserError(f"--model {model}: is a model of {kinds[1]}, but {recipe} is for {kinds[0]}")
    known = {} if given is None else meaning(given.recipe)
    if given is not None and not given.recipe.encoder.final_norm:  # it can be left out, but not come from nowhere
        known["encoder.final_norm"] = False
    resolved = load_recipe(load_recipe(recipe, known, defaults), overrides)
    places = {"data.train": data or resolved.data.train, "data.valid": valid or resolved.data.valid}
    if places["data.train"] is None:
        raise UserError("data.train: where is the labelled training data? data.train=FOLDER")
    if model is not None and not scratch:
        places["init"] = str(model)
    found = {key: str(Path(place).resolve()) if Path(place).exists() else place for key, place in places.items() if place}
    return load_recipe(resolved, found)
