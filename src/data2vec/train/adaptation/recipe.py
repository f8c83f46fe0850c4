"""The recipe of an adaptation: that of the model, with what continued pre-training needs instead."""

import math
from dataclasses import dataclass

from data2vec.data.sources.formats import SignalKind
from data2vec.data.sources.open_dataset import list_splits
from data2vec.data.sources.shards import Request
from data2vec.data.sources.splits import VALID, split_of_value
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.training_history import PRETRAINING, pretraining_settings
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train.init_from import missing_parts
from data2vec.train.planning.advice import PUBLISHED_EPOCHS
from data2vec.train.planning.auto import NOTHING_AUTO, Auto
from data2vec.train.pretrain import resolve_recipe

LR_SHARE = 0.3
"""Of the learning rate of the model's own pre-training."""
STEPS_SHARE = 0.1
"""Of the steps of the model's own pre-training, where no epochs are published to choose the steps by."""
WARMUP_SHARE = 0.1
"""Of all steps."""
HALF_LIFE = 0.1
"""Of the teacher, as a share of all steps: slow from the start, since it starts as a good one."""
SHORTEST_HALF_LIFE = 20
"""In steps: a faster teacher is hardly an average."""
FREEZE_SHARE = 0.1
"""Of all steps, in which a new head is trained alone."""
EVALUATIONS = 5
HELD_OUT = 0.1
"""The share of the data that is held out for the loss, if `data.valid` is not set."""
PRELIMINARY_STEPS = 1000
"""What counts of steps are shares of, until `train.steps=auto` is chosen."""
OF_OLD_DATA: JsonDict = {
    **{
        "data.train": None,
        "data.train_rows": {},
        "data.split": "train",
        "data.valid_split": "valid",
        "data.column": None,
        "data.label": None,
    },
    **{"data.streaming": False, "data.allow_changes": False},
    **dict.fromkeys(("data.rate", "data.time_axis", "data.channels", "data.time_column", "data.time_unit", "data.array")),
}
"""Settings of a model's recipe that belong to the data it was trained on."""


@dataclass(frozen=True)
class AdaptationPlan:
    """What an adaptation will be."""

    recipe: Recipe
    """Resolved, but for what is auto."""
    auto: Auto
    notes: tuple[str, ...]
    """A line for each choice that the user may want to make otherwise."""


def adaptation_recipe(
    where: str, model: Model, data: str | None, overrides: JsonMapping, steps: int | None, labels: str | None
) -> AdaptationPlan:
    """The recipe of an adaptation of `model`, which is at `where`, to `data`; `overrides` on top.

    Raises UserError for a model that has no objective of pre-training, and as `data2vec.pretrain` does."""
    base, origin = own_recipe(where, model)
    if steps is not None and overrides.get("train.steps", steps) != steps:
        raise UserError(f"--steps {steps} and train.steps={overrides['train.steps']} name two lengths; omit one of them")
    chosen = overrides.get("train.steps", steps)
    if chosen is None:
        known = (base.modality.name, base.objective.name) in PUBLISHED_EPOCHS
        chosen = "auto" if known else max(1, round(STEPS_SHARE * base.train.steps))
    length = chosen if isinstance(chosen, int) else PRELIMINARY_STEPS
    defaults = OF_OLD_DATA | _defaults(base, length) | {"train.steps": length, "init": where}
    recipe = load_recipe(base, {key: value for key, value in defaults.items() if _has(base, key)})
    auto_keys: set[str] = set()
    recipe = resolve_recipe(recipe, data, dict(overrides) | {"train.steps": chosen}, None, auto_keys)
    missing = [part for part in missing_parts(model, recipe.build_objective()) if part != "teacher"]
    if missing and _has(recipe, "objective.freeze_steps") and "objective.freeze_steps" not in overrides:
        changes = {"objective.freeze_steps": math.ceil(FREEZE_SHARE * length)}
        if not any(key.startswith("train.schedule") for key in overrides):
            changes["train.schedule.warmup_steps"] = round((FREEZE_SHARE + WARMUP_SHARE) * length)
        recipe = load_recipe(recipe, changes)
    notes = [f"adapt: {origin}; {_describe(base, recipe, auto_keys)}"]
    held_out, note = _held_out(recipe)
    recipe = load_recipe(recipe, held_out)
    notes += [note] if note else []
    if labels is not None:
        recipe = load_recipe(recipe, _labelled(recipe, labels))
    if not auto_keys:
        return AdaptationPlan(recipe, NOTHING_AUTO, tuple(notes))
    scaled = frozenset({"probe.every", "train.checkpoint_every"}) if "train.steps" in auto_keys else frozenset[str]()
    auto = Auto(frozenset(auto_keys), frozenset(overrides), PRELIMINARY_STEPS if scaled else None, scaled)
    return AdaptationPlan(recipe, auto, tuple(notes))


def own_recipe(where: str, model: Model) -> tuple[Recipe, str]:
    """The recipe of the model's own pre-training, and where its training settings come from, in words.

    A model that was adapted before keeps a record of the rate, steps and schedules of its first pre-training, which are used:
    else shares of them would multiply. A file that has none, such as an official one, and a fine-tuned model take batch and
    training settings of the shipped recipe that is closest in size. Raises UserError for a model that was trained on labels
    alone."""
    recipe = model.recipe
    if isinstance(recipe.objective, SupervisedSettings):
        raise UserError(
            f"{where}: was trained on labels alone, without an objective of pre-training that could be continued; name a model "
            "that was pre-trained"
        )
    stages = [stage for stage in model.training if stage.task == recipe.objective.name]
    is_own = bool(stages) and model.training[-1].task == recipe.objective.name
    if is_own and len(stages) == 1 and not stages[0].continued:
        return recipe, "the recipe is the model's own"
    if is_own and (first := stages[0].pretraining):
        recipe = load_recipe(recipe, {key: first[key] for key in PRETRAINING if key in first}, trusted=False)
        return recipe, "the recipe is the model's own, with rate, steps and schedules of its first pre-training"
    version = {"data2vec": "v1", "data2vec2": "v2"}.get(recipe.objective.name)
    names = [name for name in recipe_names() if version and name.startswith(f"{recipe.modality.name}/{version}-")]
    shipped = {name: load_recipe(name) for name in names}
    shipped = {name: each for name, each in shipped.items() if each.objective.name == recipe.objective.name}
    if not shipped:
        unknown = "; what its first pre-training used is not recorded, so shares are of its last one" if is_own else ""
        return recipe, f"the recipe is the model's own{unknown}"
    nearest = min(shipped, key=lambda name: (abs(math.log(shipped[name].encoder.width / recipe.encoder.width)), len(name)))
    if is_own:
        found = pretraining_settings(shipped[nearest])
        origin = "the model was adapted from one that records no settings of its training"
        return load_recipe(recipe, found), f"{origin}: rate, steps and schedules are of {nearest}"
    raw = recipe.model_dump(mode="json")
    own, data = raw["data"], shipped[nearest].model_dump(mode="json")["data"]
    data |= {key: own[key] for key in ("tokenizer",) if key in own}
    if "block_size" in data:
        data["block_size"] = min(data["block_size"], raw["modality"]["max_length"])
    raw |= {"data": data, "train": shipped[nearest].model_dump(mode="json")["train"]}
    kind = "is fine-tuned" if model.head is not None else "records no settings of its training"
    return load_recipe(recipe, _as_overrides(raw, ("data", "train"))), f"the model {kind}: batch and training are of {nearest}"


def _as_overrides(raw: JsonMapping, sections: tuple[str, ...]) -> JsonDict:
    return {f"{section}.{key}": value for section in sections for key, value in raw[section].items()}


def scratch_recipe(run: Recipe, own: Recipe) -> Recipe:
    """The same run from new weights: with the learning rate, the schedules and the warm start of the model's own pre-training,
    scaled to its steps. Decays of the teacher, which belong to long runs, become half-lives."""
    share = run.train.steps / own.train.steps
    schedule = own.train.schedule.model_dump(mode="json")
    if "warmup_steps" in schedule:
        schedule["warmup_steps"] = round(share * schedule["warmup_steps"])
    changes: JsonDict = {"init": None, "train.lr": own.train.lr, "train.schedule": schedule}
    if (teacher := getattr(own.objective, "teacher", None)) is not None:
        by_share = {"half_life": 0.05, "end_half_life": 0.3, "anneal": 1.0}
        has_shares = teacher.half_life is not None
        changes |= {f"objective.teacher.{key}": getattr(teacher, key) if has_shares else by_share[key] for key in by_share}
        changes["objective.freeze_steps"] = 0
        changes["objective.input_target"] = own.objective.model_dump(mode="json")["input_target"]
    return load_recipe(run, changes)


def _defaults(base: Recipe, steps: int) -> JsonDict:
    every = max(1, round(steps / EVALUATIONS))
    input_target = getattr(base.objective, "input_target", None)
    return ({"objective.input_target": None} if input_target is not None and input_target.fades else {}) | {
        "train.lr": float(f"{LR_SHARE * base.train.lr:.2g}"),
        "train.schedule": {"name": "cosine", "warmup_steps": round(WARMUP_SHARE * steps)},
        "train.checkpoint_every": every,
        "probe.every": every,
        "log.every": max(1, min(base.log.every, steps // 10)),
        "objective.teacher.half_life": min(1.0, max(HALF_LIFE, SHORTEST_HALF_LIFE / steps)),
        "objective.teacher.end_half_life": None,
        "objective.teacher.anneal": None,
        "objective.freeze_steps": 0,
    }


def _has(recipe: Recipe, key: str) -> bool:
    """Whether the recipe has a setting, or the section that it is in."""
    section, _, name = key.rpartition(".")
    part: object = recipe
    for each in section.split(".") if section else []:
        part = getattr(part, each, None)
    return hasattr(part, name)


def _describe(base: Recipe, recipe: Recipe, auto: set[str]) -> str:
    """What differs from the model's own pre-training, for the log."""
    lr, own = recipe.train.lr, base.train.lr
    steps = "chosen for the data" if "train.steps" in auto else f"{recipe.train.steps:,}"
    return f"steps: {steps}, not {base.train.steps:,}; learning rate {lr:g}, not {own:g}"


def _held_out(recipe: Recipe) -> tuple[JsonDict, str | None]:
    """Settings that hold out data for the loss, if the recipe has none, and a line that says what is held out."""
    data = recipe.data
    if data.valid is not None:
        return {}, None
    assert data.train is not None
    if data.streaming:
        raise UserError("data.valid: a part of streamed data cannot be held out; set data.valid to other data")
    modality = recipe.build_modality()
    kind: SignalKind | None = getattr(modality, "kind", None)
    request = None if kind is None else Request(data.train, kind, data.column, follow_links=data.follow_links)
    splits = {} if request is None else list_splits(request)
    if any((found := split_of_value(name)) is not None and found.split == VALID for name in splits):
        return {"data.valid": data.train}, f"adapt: held out: the split for validation of {data.train}"
    if (number := len(modality.rows(data.train))) < 1 / HELD_OUT:
        rows_found = f"{number} {'file or row' if number == 1 else 'files or rows'}"
        raise UserError(
            f"data.valid: {data.train} has {rows_found}, of which no tenth can be held out; set data.valid to other data, or "
            "split the data into more files"
        )
    rows = data.train_rows.model_dump(mode="json")
    first, last = rows["part"]
    cut = last - HELD_OUT * (last - first)
    changes = {
        "data.valid": data.train,
        "data.train_rows": rows | {"part": [first, cut]},
        "data.valid_rows": rows | {"part": [cut, last]},
    }
    changes |= {"data.valid_split": data.split} if splits else {}
    return changes, f"adapt: held out for the loss: {HELD_OUT:.0%} of {data.train}; set data.valid to hold out other data"


def _labelled(recipe: Recipe, column: str) -> JsonDict:
    """Settings that probe on the labels in a column: of the data itself, unless the recipe has a probe."""
    if recipe.probe.data is not None:
        return {"probe.label": column}
    rows = {
        f"probe.{key}_rows": getattr(recipe.data, f"{of}_rows").model_dump()
        for key, of in (("data", "train"), ("valid", "valid"))
    }
    return {"probe.label": column, "probe.data": recipe.data.train, "probe.valid": recipe.data.valid} | rows
