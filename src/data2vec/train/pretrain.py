"""Pre-training: `pretrain()` and its task."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from data2vec.data.dataset import Rows
from data2vec.data.loader import Loader
from data2vec.data.sources.library import data_path
from data2vec.distributed import Process
from data2vec.errors import UserError, get_logger
from data2vec.health.collapse import health_limits, stop_reason
from data2vec.health.verdict import Verdict, verdict
from data2vec.interop.load import load
from data2vec.local_path import local_path
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.objective import Objective
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.joint import JointRecipe, errors_of_part
from data2vec.recipe.loading import list_overrides, load_recipe, name_of, with_absolute_paths
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.training_history import TrainingStage, make_scores, origin_of, read_origin, training_stage
from data2vec.run_dir import Run, default_run_dir
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.probing.online import OnlineProbe
from data2vec.train.adaptation.drift import Drift
from data2vec.train.held_out_loss import HeldOutLoss
from data2vec.train.init_from import init_pretraining, load_encoder_weights, tokenizer_of
from data2vec.train.parallel import full_state_dict
from data2vec.train.planning.auto import NOTHING_AUTO, find_auto
from data2vec.train.resumed_recipe import named_recipe, recipe_to_resume, resumes
from data2vec.train.trainer import SingleTask, run_training

log = get_logger(__name__)
LAST_METRICS = ("samples", "loss", "target_std", "prediction_std", "student_rank", "seconds")
"""The metrics of the last step that the model card shows."""


def pretrain(
    recipe: str | Path | Recipe,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    resume: bool = False,
    modality: CustomClass | None = None,
) -> Run:
    """Pre-train a model, and write it, its metrics and its checkpoints to a run folder.

    `recipe`: a shipped name such as "vision/v2-base", a YAML file, or a Recipe. `data`: the training data, as a path, or as a
    `datasets.Dataset` or `DatasetDict`, instead of the recipe's `data.train`. `overrides`: {"train.lr": 1e-3} or
    ["train.lr=1e-3"]. `out`: the run folder, by default runs/NAME-OF-THE-RECIPE. `resume`: resume the run in `out` from its
    latest complete checkpoint, bit-exactly, by the recipe that it has recorded, with `overrides` on top; `recipe` must be the
    one that it was started with (`data2vec.resume` needs none). `modality`: the class of a custom modality, or its name
    "package.module:Class".

    Under torchrun every process calls this; restarted processes resume automatically. Raises UserError for wrong arguments,
    and RunStopped when the run ends before its last step. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint first; the last two
    raise Interrupted."""
    folder = local_path(out) if out is not None else default_run_dir(recipe)
    overrides, auto = list_overrides(overrides), NOTHING_AUTO
    if resume := resumes(folder, resume):
        resolved = recipe_to_resume(folder, overrides, modality, recipe, "pretrain", {"data.train": data})
    else:
        keys: set[str] = set()
        resolved = resolve_recipe(recipe, data, overrides, modality, keys)
        if isinstance(resolved.objective, SupervisedSettings):
            raise UserError(f"{name_of(recipe)}: is a recipe for fine-tuning; use 'data2vec finetune' with --model")
        auto = find_auto(recipe, overrides, keys, modality)
    return run_training(folder, resolved, resume, pretraining_task(resolved), named_recipe(recipe), auto)


def pretraining_task(recipe: Recipe) -> Any:
    """The class of the task of a recipe of pre-training."""
    from data2vec.train.joint.task import JointTask

    return JointTask if isinstance(recipe, JointRecipe) else PretrainTask


class PretrainTask(SingleTask):
    """Self-supervised pre-training, with a probe of the student and the loss on held-out data, if the recipe has these data."""

    def __init__(self, recipe: Recipe, process: Process, resume: bool = False):
        self.recipe, self.process, self.state = recipe, process, JsonDict()
        method, seed = recipe.objective, recipe.train.seed
        self.modality = modality = recipe.build_modality()
        rows = modality.selected_rows(str(recipe.data.train), recipe.data.train_rows, "data.train_rows")
        pin = process.device.type == "cuda"
        self.loader = Loader(modality, method.mask, rows, seed, process.rank, process.world_size, pin, method.masks_per_sample)
        torch.manual_seed(seed)
        self.objective = recipe.build_objective()
        self.init_message = None
        if not resume:
            self.init_message, origin = prepare_objective(recipe, self.objective, self._sample_batches(rows), process)
            self.state |= {} if origin is None else {"origin": origin}
        self.probe = OnlineProbe(recipe, self.loader.examples, process) if recipe.probe.data is not None else None
        self.held_out_loss = HeldOutLoss(recipe, self.loader.examples, process) if recipe.data.valid is not None else None
        self.drift = self._start_drift(resume) if recipe.init is not None and self.held_out_loss is not None else None
        self.evaluate_every = recipe.probe.every if self.probe or self.held_out_loss else None
        self.evaluate_also = (getattr(method, "freeze_steps", 0),)
        self.called: AnyTrainingObjective = self.objective
        """What computes the loss: the objective, or in a joint run that of all parts, of which this one is active."""
        self.shared_with: Sequence[str] = ()
        """The other parts of a joint run, for the model card."""

    def _start_drift(self, resume: bool) -> Drift | None:
        """What measures the drift from the model that the run starts from; None, with a warning, if the run is resumed and the
        model cannot be opened any more."""
        assert self.recipe.init is not None and self.held_out_loss is not None
        if resume:  # the checkpoint's weights are loaded later
            try:
                load_encoder_weights(self.recipe.init, load(self.recipe.init), self.objective.student, self.recipe)
            except UserError as error:
                log.warning("drift from the start is not measured any more: %s", error)
                return None
        drift = Drift(self.objective.student, self.held_out_loss, self.process)
        if not resume:
            self.state["start_crc32"] = drift.fingerprint
        return drift

    def _measure_drift(self) -> JsonDict:
        """The drift of the student from the start; nothing if it cannot be measured. Every process calls it."""
        if self.drift is not None and self.drift.fingerprint != self.state.get("start_crc32"):
            log.warning("drift from the start is not measured any more: %s is another model than before", self.recipe.init)
            self.drift = None
        if self.process.max(int(self.drift is None)) or self.drift is None:  # the start may be lost on one node only
            self.drift = None
            return {}
        return self.drift(full_state_dict(self.objective.student))

    def _sample_batches(self, rows: Rows) -> Iterator[Any]:
        """The batches of a run by one process, from the start."""
        recipe = self.recipe
        masks = recipe.objective.masks_per_sample
        loader = Loader(self.modality, recipe.objective.mask, rows, recipe.train.seed, masks=masks)
        for step in loader.steps():
            yield from step

    def evaluate(self, step: int, run: Run) -> JsonDict:
        """The accuracies of the probe on the student, the loss on held-out data, and the drift from the start."""
        probed = self.probe(full_state_dict(self.objective.student)) if self.probe else {}
        return probed | (self.held_out_loss(self.called) if self.held_out_loss else {}) | self._measure_drift()

    @property
    def early_stop(self) -> None:
        """Pre-training makes all steps: neither its loss nor a probe says when it has learned enough."""
        return None

    def has_collapsed(self, metrics: JsonDict) -> bool:
        """Whether the loss is NaN or inf, or targets or predictions have collapsed."""
        return stop_reason(metrics, metrics["step"], health_limits(self.recipe.flat())) is not None

    def verdict(self, metrics: Sequence[JsonMapping]) -> Verdict:
        """The health of the run so far."""
        return verdict(metrics, self.recipe.flat())

    def save_model(self, run: Run) -> None:
        """Write the student as the model, with teacher and prediction head for continued pre-training."""
        recipe, modality = self.recipe, self.modality
        weights = full_state_dict(self.objective)
        student = build_encoder(modality, recipe.encoder)
        student.load_state_dict(
            {name.removeprefix("student."): value for name, value in weights.items() if name.startswith("student.")}
        )
        rest = {name: value for name, value in weights.items() if not name.startswith("student.")}
        origin = read_origin(self.state.get("origin", {}), "the state of the task")
        training = (*origin.pop("training"), self._stage(run.metrics))
        model = Model(student, modality, recipe, pretraining=rest, training=training, **origin)
        self.process.on_main_process(lambda: save_model_folder(model, run.model, self.loader.examples))

    def _stage(self, metrics: Sequence[JsonMapping]) -> TrainingStage:
        """This run, for the model card."""
        recipe, probe = self.recipe, self.recipe.probe
        last = metrics[-1] if metrics else {"step": recipe.train.steps}
        parts = [
            (LAST_METRICS, None, ""),
            (("valid_loss",), recipe.data.valid, ""),
            (("probe_linear", "probe_knn"), probe.valid or probe.data, "" if probe.valid else "a held-out fifth"),
        ]
        scores = [
            score
            for names, data, note in parts
            for score in make_scores({name: last[name] for name in names if last.get(name) is not None}, data, note)
        ]
        stage = training_stage(recipe, last["step"], scores)
        return stage.model_copy(update={"shared_with": tuple(self.shared_with)})


def prepare_objective(
    recipe: Recipe, objective: Objective, batches: Iterable[Any], process: Process
) -> tuple[str | None, JsonDict | None]:
    """Load what a new run starts from, and fit targets that are made of the training data, of which `batches` are.

    Returns lines for the log, and where the weights of `init` come from. Raises UserError."""
    messages, origin = list[str | None](), None
    if recipe.init is not None:
        source = load(recipe.init)
        messages.append(init_pretraining(recipe.init, source, objective, recipe))
        origin = origin_of(source)
    for where, encoder in objective.trained_encoders().items():
        load_encoder_weights(where, load(where), encoder, recipe)
    messages.append(objective.fit_targets(batches, process))
    return "\n".join(filter(None, messages)) or None, origin


def resolve_recipe(
    recipe: str | Path | Recipe,
    data: Any,
    overrides: Iterable[str] | JsonMapping,
    modality: CustomClass | None,
    auto: set[str] | None = None,
) -> Recipe:
    """The recipe of this run, with absolute data paths, so that it can be run again from any folder. `auto`: see
    `load_recipe`."""
    resolved = load_recipe(recipe, overrides, modality=modality, auto=auto)
    if isinstance(resolved, JointRecipe):
        return _resolve_joint(resolved, data, auto)
    resolved = with_absolute_paths(load_recipe(resolved, {} if data is None else {"data.train": data_path(data)}))
    if resolved.data.train is None:
        raise UserError("data.train: no training data; give a folder, a file or the name of a data set: data.train=photos/")
    resolved = load_recipe(resolved, resolved.build_modality().measure(str(resolved.data.train)))
    if resolved.init is not None and getattr(resolved.data, "tokenizer", "none") is None:
        if (tokenizer := tokenizer_of(resolved.init)) is None:
            raise UserError(
                f"data.tokenizer: {resolved.init} has no tokenizer, and one made from other text would number the tokens "
                "differently; put its vocab.json and merges.txt, or tokenizer.json, beside the weights, or set data.tokenizer"
            )
        resolved = load_recipe(resolved, {"data.tokenizer": tokenizer})
    return resolved


def _resolve_joint(recipe: JointRecipe, data: Any, auto: set[str] | None) -> Recipe:
    """The recipe of a joint run, with absolute data paths and with what is read off the data of each part."""
    if data is not None:
        raise UserError("data: each part of a joint run has its own; set modality.parts.NAME.data.train")
    if auto:
        raise UserError(f"{min(auto)}: auto is not a choice of joint runs, whose parts have data of their own; set a number")
    resolved = with_absolute_paths(recipe)
    assert isinstance(resolved, JointRecipe)
    measured: JsonDict = {}
    for name, part in resolved.parts.items():
        prefix = f"modality.parts.{name}"
        if part.data.train is None:
            raise UserError(f"{prefix}.data.train: no training data; give a folder, a file or the name of a data set")
        with errors_of_part(name):
            found = part.build_modality().measure(str(part.data.train))
        measured |= {f"{prefix}.{key}": value for key, value in found.items()}
    return load_recipe(resolved, measured)
