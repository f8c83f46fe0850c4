"""`data2vec adapt`: continued pre-training of a trained model on other data, with what it has changed."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data2vec.atomic_io import write_json
from data2vec.console.progress import say
from data2vec.data.sources.library import data_path
from data2vec.distributed import Process, process_group
from data2vec.errors import UserError
from data2vec.health.verdict import verdict
from data2vec.interop.load import load
from data2vec.local_path import absolute_path, local_path, split_weights
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.model import Model
from data2vec.recipe.loading import list_overrides, load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.run_dir import Run, check_run_dir, load_run_recipe
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.probing.dataset import load_probe_sets
from data2vec.tasks.probing.online import OnlineProbe
from data2vec.train.adaptation.recipe import AdaptationPlan, adaptation_recipe, own_recipe, scratch_recipe
from data2vec.train.adaptation.result import Adaptation, AdaptationRow, result_path
from data2vec.train.held_out_loss import HeldOutLoss
from data2vec.train.init_from import init_pretraining, missing_parts
from data2vec.train.planning.plan import plan_resolved
from data2vec.train.planning.run_plan import RunPlan
from data2vec.train.planning.step_cost import step_cost
from data2vec.train.pretrain import PretrainTask
from data2vec.train.resume import resume as resume_run
from data2vec.train.trainer import run_training

BEFORE, AFTER, SCRATCH = "as released", "adapted", "from scratch"


def adapt(
    model: str | Path | None = None,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    steps: int | None = None,
    labels: str | None = None,
    keep: str | Path | None = None,
    keep_labels: str | None = None,
    scratch: bool = False,
    resume: bool = False,
    modality: CustomClass | None = None,
    objective: CustomClass | None = None,
) -> Adaptation:
    """Continue the pre-training of a trained model on other data, and measure what that has changed.

    `model`: whatever `data2vec.load` opens; its recipe is the base, with settings made for this (docs/adapt.md) and
    `overrides` on top. `data`: unlabelled data, as `data2vec.pretrain` takes it; a tenth of it is held out, unless
    `data.valid` is set. `out`: the run folder, by default runs/NAME-adapted. `steps`: the length of the run, by default chosen
    for the data. `labels`: a column of labels in `data`, or in `probe.data`, for a probe before and after. `keep`: labelled
    data of what the model was good at, probed before and after, for what is forgotten; `keep_labels` names its column of
    labels. `scratch`: also train new weights as long, in the folder scratch of the run. `resume`: finish the run in `out`, and
    what is to be measured of it. `modality` and `objective`: see `data2vec.load`.

    The result is also written to adapt.json in the run folder. Raises UserError for wrong arguments, and RunStopped as
    `data2vec.pretrain` does; such a run is resumed by `resume`, or by `data2vec.resume`."""
    if resume:
        if out is None:
            raise UserError("resume: names no run; give its folder as out")
        folder, planned = local_path(out), None
        check_run_dir(folder, resume=True)
        settings = load_run_recipe(folder).train
        device = list_overrides(overrides).get("train.device", settings.device)
    else:
        folder, planned = run_folder(model, out), _plan(model, data, overrides, steps, labels, modality, objective)
        _keep_recipe(planned.recipe, keep, keep_labels)
        settings = planned.recipe.train
        device = settings.device
    # One group of processes for all that follows: it cannot be joined twice.
    with process_group(device, 60 * settings.timeout_minutes) as process:
        if planned is None:
            run = resume_run(folder, overrides, modality, objective, verb="pretrain")
        else:
            process.on_main_process(lambda: _say(planned))
            run = run_training(folder, planned.recipe, False, PretrainTask, None, planned.auto)
        recipe = load_run_recipe(run.folder)
        if recipe.init is None or recipe.data.valid is None:
            raise UserError(f"{run.folder}: is not the run of an adaptation; it starts from no model, or has no data.valid")
        keep_recipe = _keep_recipe(recipe, keep, keep_labels)
        scratch_run = _train_scratch(run, recipe) if scratch else None
        return _measure(run, recipe, keep_recipe, scratch_run, process)


def plan_adaptation(
    model: str | Path | None,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    steps: int | None = None,
    labels: str | None = None,
    modality: CustomClass | None = None,
    objective: CustomClass | None = None,
) -> RunPlan:
    """What a run of `adapt` with these arguments will be; see `data2vec.plan`."""
    planned = _plan(model, data, overrides, steps, labels, modality, objective)
    with process_group(planned.recipe.train.device) as process:
        process.on_main_process(lambda: _say(planned))
        return plan_resolved(planned.recipe, planned.auto, PretrainTask, run_folder(model, out))


def _say(planned: AdaptationPlan) -> None:
    for note in planned.notes:
        say(note)


def run_folder(model: str | Path | None, out: str | Path | None) -> Path:
    """The run folder: `out`, or by default runs/ and the name of the model."""
    name = Path(split_weights(str(model).rstrip("/"))[0])
    return local_path(out) if out is not None else Path("runs") / f"{name.stem}-adapted"


def _plan(
    model: str | Path | None,
    data: Any,
    overrides: Iterable[str] | JsonMapping,
    steps: int | None,
    labels: str | None,
    modality: CustomClass | None,
    objective: CustomClass | None,
) -> AdaptationPlan:
    if model is None:
        raise UserError("MODEL is missing; name a model, or a run by --resume RUN")
    for custom, setting in ((modality, "modality"), (objective, "objective")):
        if custom is not None:
            trust_class(custom, setting)
    where = absolute_path(str(model))
    given = None if data is None else data_path(data)
    return adaptation_recipe(where, load(where), given, list_overrides(overrides), steps, labels)


def _keep_recipe(recipe: Recipe, keep: str | Path | None, column: str | None) -> Recipe | None:
    """The recipe with a probe on the data of --keep, of which a fifth is held out; None without it.

    Raises UserError, before anything is trained, where it cannot be probed."""
    if keep is None:
        if column is not None:
            raise UserError(f"--keep-labels {column} has no effect without --keep DATA")
        return None
    settings: JsonDict = {"probe.data": data_path(keep), "probe.valid": None, "probe.data_rows": {}, "probe.valid_rows": {}}
    settings["probe.label"] = column or recipe.probe.label
    try:
        found = load_recipe(recipe, settings | {"data.streaming": False, "data.column": None, "data.split": "train"})
        load_probe_sets(found.build_modality(), found.probe, found.train.seed)
    except UserError as error:
        raise UserError(f"--keep: {error}") from None
    return found


def _train_scratch(run: Run, recipe: Recipe) -> Run:
    """The run from new weights, which may have begun already."""
    folder = run.folder / "scratch"
    if Run(folder).recipe.is_file():
        return resume_run(folder)
    assert recipe.init is not None
    own, _ = own_recipe(recipe.init, load(recipe.init))
    return run_training(folder, scratch_recipe(recipe, own), False, PretrainTask)


def _measure(run: Run, recipe: Recipe, keep: Recipe | None, scratch: Run | None, process: Process) -> Adaptation:
    """Measure the model as released, adapted and from scratch, and write the result. Every process calls it."""
    assert recipe.init is not None
    last = run.metrics[-1]
    if "drift_weights" not in last:
        raise UserError(f"{recipe.init}: is not the model any more that {run.folder} started from; there is nothing to compare")
    trained = [(AFTER, run, recipe)]
    if scratch is not None:
        trained.append((SCRATCH, scratch, load_run_recipe(scratch.folder)))
    measure = _Measurement(recipe, keep, process)
    rows = [measure(BEFORE, load(recipe.init), recipe)]
    frozen = [line["valid_loss"] for line in run.metrics if line["step"] == getattr(recipe.objective, "freeze_steps", 0)]
    if rows[0].valid_loss is None and frozen:
        rows[0] = replace(rows[0], valid_loss=frozen[0])
    for name, each, settings in trained:
        row, cost = measure(name, load(each.model), settings), {"seconds": each.metrics[-1]["seconds"]}
        cost |= {"steps": settings.train.steps, "flops": step_cost(settings).flops * process.world_size * settings.train.steps}
        rows.append(replace(row, **cost))
    drift = {key: last[key] for key in ("drift_weights", "drift_features")}
    rows[1] = replace(rows[1], **drift)
    notes = ["losses are against each model's own teacher: compare as released and adapted only"]
    notes += ["the new head was trained alone before the loss as released was measured"] if frozen else []
    if measure.probe is not None:
        notes.append("accuracies are of the best layer on the held-out labels; " + measure.describe_untrained())
    result = Adaptation(run, recipe.init, rows, notes, verdict(run.metrics, recipe.flat()))
    if process.is_main_process:
        write_json(result_path(run.folder), result.to_json())
    return result


class _Measurement:
    """Measures models on the same held-out data and labels."""

    def __init__(self, recipe: Recipe, keep: Recipe | None, process: Process):
        self.process = process
        self.held_out_loss = HeldOutLoss(recipe, None, process)
        self.probe = OnlineProbe(recipe, None, process) if recipe.probe.data is not None else None
        self.keep_probe = OnlineProbe(keep, None, process) if keep is not None else None

    def __call__(self, name: str, model: Model, recipe: Recipe) -> AdaptationRow:
        """The row of a model; its loss is None if it has no prediction head."""
        objective = recipe.build_objective()
        init_pretraining(name, model, objective, recipe)
        values: JsonDict = {}
        if not any(part != "teacher" for part in missing_parts(model, objective)):
            values |= self.held_out_loss(objective.to(self.process.device))
        for part, probe in (("probe", self.probe), ("keep", self.keep_probe)):
            if probe is not None:
                scores = probe(objective.student.cpu().state_dict())
                values |= {f"{part}_linear": scores["probe_linear"], f"{part}_knn": scores["probe_knn"]}
        return AdaptationRow(name, 0, **values)

    def describe_untrained(self) -> str:
        """The accuracies of untrained weights, in words."""
        assert self.probe is not None
        scores = self.probe.untrained_scores
        return f"untrained weights: linear {scores['probe_linear_untrained']:.1%}, kNN {scores['probe_knn_untrained']:.1%}"
