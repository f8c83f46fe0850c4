"""The comparison file: arms, what they share, their budget, and how they are evaluated."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from data2vec.comparison.evaluations import Evaluation, FinetuneEvaluation, Grid, ProbeEvaluation
from data2vec.comparison.shipped import comparison_names, comparison_text
from data2vec.errors import UserError, did_you_mean, quoted
from data2vec.local_path import local_path
from data2vec.recipe.loading import load_recipe, parse_override
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.validation_errors import explain_error
from data2vec.recipe.yaml_format import parse_yaml
from data2vec.settings import JsonDict, JsonMapping, Settings, settings_classes

ONLINE_EXAMPLES = 2000
"""Examples of each set that probes along a run use at most: they draw the curves, and are several times cheaper so."""
PATHS = ("data.train", "data.tokenizer", "init")
"""Settings of a recipe that are paths relative to the folder of the data."""
FIXED = ("train.steps", "train.seed", "train.checkpoint_every", "train.keep_checkpoints", "log.every", "log.report")
"""Settings of pre-training that the comparison itself sets."""
FIXED_OF_FINETUNING = ("train.seed", "data.train", "data.train_rows", "data.valid", "data.valid_rows", "objective.label")
"""The same of fine-tuning."""
Combination = dict[str, Any]


class Budget(Settings):
    """What each pre-training run may cost: exactly one of these."""

    flops: Annotated[float, Field(gt=0)] | None = None
    """Floating-point operations, counted; steps follow for each arm."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training on this machine, from timed steps; steps follow for each arm."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps, the same for all arms."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of flops, seconds and steps, not {' and '.join(given) or 'none'}")
        return self


class Tune(Settings):
    """How the grids are searched: in runs of their own, by a score on dev data."""

    seed: Annotated[int, Field(ge=0)] = 101
    """Seed of these runs; it must not be one of `seeds`."""
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Their share of the budget."""
    by: str | None = None
    """The evaluation whose dev score selects among pre-training settings; none: the first one."""


class Arm(Settings):
    """One of the things that are compared."""

    recipe: str | None = None
    """Pre-training recipe; none: that of the comparison. Without training, it gives the shape of the encoder."""
    settings: dict[str, Any] = Field(default={})
    """Overrides of the recipe, by dotted key. Step counts among them are taken literally, but `train.steps` is that of
    the budget. Without pre-training, only those of the encoder and its input."""
    grid: Grid = Field(default={})
    """Values to try, by dotted key; every combination of them. Of `scratch`, settings of fine-tuning, instead of the
    evaluation's grid."""
    untrained: bool = False
    """No training: the encoder with its initial weights, in probes."""
    scratch: bool = False
    """No pre-training: takes part in fine-tuning, from initial weights."""
    equal_flops: bool = False
    """With `scratch`: fine-tuning is prolonged by the operations that pre-training the reference costs."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.untrained and self.scratch:
            raise ValueError("set untrained (for probes) or scratch (for fine-tuning), not both")
        if self.equal_flops and not self.scratch:
            raise ValueError("equal_flops needs scratch: true")
        if self.grid and self.untrained:
            raise ValueError("an untrained arm has nothing to tune: remove grid")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether it is pre-trained."""
        return not (self.untrained or self.scratch)


class ComparisonSettings(Settings):
    """A whole comparison."""

    recipe: str | None = None
    """The recipe of arms that name none."""
    data: dict[str, Any] = Field(default={})
    """Overrides of the recipes of all arms, by dotted key, such as data.train."""
    reference: str | None = None
    """The arm that differences are against; none: the first one."""
    budget: Budget
    """What each pre-training run may cost."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] = (1, 2, 3)
    """One run per arm and seed."""
    tune: Tune = Tune()
    """How the grids are searched."""
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    """What is compared, by name."""
    evaluations: Annotated[dict[str, Evaluation], Field(min_length=1)]
    """How it is compared, by name."""
    trivial: bool = True
    """Whether trivial baselines are in the tables too."""
    equal_grids: bool = True
    """Refuse grids with different numbers of combinations."""

    @property
    def reference_arm(self) -> str:
        """The arm that differences are against."""
        return self.reference or next(iter(self.arms))

    def takes_part(self, arm: str, evaluation: str) -> bool:
        """Whether an arm takes part in an evaluation: one without training in probes only, one from scratch in fine-tuning."""
        by_finetuning = isinstance(self.evaluations[evaluation], FinetuneEvaluation)
        return not (self.arms[arm].untrained if by_finetuning else self.arms[arm].scratch)

    def check(self) -> None:
        """Raises UserError for settings that contradict each other."""
        for name, arm in self.arms.items():
            if arm.recipe is None and self.recipe is None and not arm.scratch:
                raise UserError(f"arms.{name}: has no recipe; set arms.{name}.recipe, or recipe for all arms")
        if self.reference_arm not in self.arms:
            raise UserError(f"reference: there is no arm {self.reference!r}{did_you_mean(str(self.reference), self.arms)}")
        if self.tune.by is not None and self.tune.by not in self.evaluations:
            raise UserError(f"tune.by: there is no evaluation {self.tune.by!r}; one of {', '.join(self.evaluations)}")
        if len(set(self.seeds)) < len(self.seeds) or self.tune.seed in self.seeds:
            raise UserError(f"seeds: {list(self.seeds)} and tune.seed {self.tune.seed} must all differ")
        if any(arm.equal_flops for arm in self.arms.values()) and not self.arms[self.reference_arm].is_trained:
            raise UserError(f"reference: equal_flops needs a pre-trained reference, which {self.reference_arm!r} is not")
        finetunes = {name: each for name, each in self.evaluations.items() if isinstance(each, FinetuneEvaluation)}
        for name, arm in self.arms.items():
            if arm.untrained and len(finetunes) == len(self.evaluations):
                raise UserError(f"arms.{name}: untrained takes part in probes only, but there are none; use scratch: true")
            if arm.scratch and arm.settings and arm.recipe is None and self.recipe is None:
                raise UserError(f"arms.{name}.settings: there is no recipe that they change; set arms.{name}.recipe")
            unused = [key for key in arm.settings if key.partition(".")[0] not in ("modality", "encoder", "data")]
            if unused and not arm.is_trained:
                better = "; for fine-tuning, set it in grid, or in settings of the evaluation" if arm.scratch else ""
                raise UserError(f"arms.{name}: {unused[0]} changes nothing where nothing is pre-trained{better}")
            if arm.scratch and not finetunes:
                raise UserError(f"arms.{name}: scratch takes part in fine-tuning only, but no evaluation is of kind finetune")
        _refuse_fixed("data", self.data, FIXED)
        for name, arm in self.arms.items():
            _check_grid(f"arms.{name}", arm.grid, FIXED_OF_FINETUNING if arm.scratch else FIXED)
            _refuse_fixed(f"arms.{name}.settings", arm.settings, FIXED)
        for name, evaluation in finetunes.items():
            _check_grid(f"evaluations.{name}", evaluation.grid, FIXED_OF_FINETUNING)
            _refuse_fixed(f"evaluations.{name}.settings", evaluation.settings, FIXED_OF_FINETUNING)
        for name in self.evaluations:
            if not any(self.takes_part(arm, name) for arm in self.arms):
                need = "one that is pre-trained, or scratch" if name in finetunes else "one that is pre-trained, or untrained"
                raise UserError(f"evaluations.{name}: no arm takes part in it; add {need}, or remove the evaluation")
        if not self.equal_grids:
            return
        sizes = {name: count(arm.grid) for name, arm in self.arms.items() if arm.is_trained}
        _check_equal("arms", sizes)
        for name, evaluation in finetunes.items():
            own = {arm: count(each.grid) for arm, each in self.arms.items() if each.scratch and each.grid}
            _check_equal(f"evaluations.{name}", {name: count(evaluation.grid), **own})


def combinations(grid: Mapping[str, list[Any]]) -> list[Combination]:
    """Every combination of the values of a grid; one empty combination of an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def count(grid: Mapping[str, list[Any]]) -> int:
    """The number of combinations of a grid."""
    return prod(len(values) for values in grid.values())


def _refuse_fixed(where: str, keys: Iterable[str], fixed: Iterable[str]) -> None:
    for key in keys:
        if any(f"{key}.".startswith(f"{each}.") for each in fixed):
            raise UserError(
                f"{where}: {key} has no effect, as budget, seeds and evaluations of the comparison set it; remove it"
            )


def _check_grid(where: str, grid: Mapping[str, list[Any]], fixed: Iterable[str]) -> None:
    _refuse_fixed(f"{where}.grid", grid, fixed)
    for key, values in grid.items():
        for index, value in enumerate(values):
            if value in values[:index]:
                raise UserError(f"{where}.grid: {key} has the value {value!r} twice; give each value once")


def _check_equal(where: str, sizes: Mapping[str, int]) -> None:
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name!r} has {size}" for name, size in sizes.items())
        raise UserError(
            f"{where}: grids of different size are an unfair comparison ({shown} combinations); make them equal, or set "
            "equal_grids: false"
        )


def load_comparison(
    source: str | Path | JsonMapping, overrides: Iterable[str] | JsonMapping = (), data: str | Path | None = None
) -> ComparisonSettings:
    """A comparison by file, shipped name or mapping.

    `overrides`: of its own keys ("budget.flops=1e12"), or of the recipes of all arms ("data.train=clips/"). `data`: the folder
    that paths are relative to; None: the working folder. Without evaluations, it gets a probe of the recipe's `probe.data` and
    `probe.valid`. Raises UserError."""
    if isinstance(source, Mapping):
        raw, where = dict(source), "comparison"
    else:
        text, where = comparison_text(str(source)), str(source)
        raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a comparison is a mapping with the keys {', '.join(ComparisonSettings.model_fields)}")
    items = overrides.items() if isinstance(overrides, Mapping) else (parse_override(e, "budget.flops=1e12") for e in overrides)
    for key, value in items:
        _set(raw, key, value)
    probes = [key for key in raw.get("data") or {} if str(key).startswith("probe.")]
    if probes and raw.get("evaluations") is not None:
        raise UserError(f"{probes[0]}: is used only without `evaluations`, but {where} has some; change them in the file")
    if raw.get("evaluations") is None and "arms" in raw:
        raw["evaluations"] = {"probe": probe_evaluation(raw.get("data") or {})}
    settings = _validated(raw, where)
    settings = _below(settings, local_path(data) if data is not None else Path())
    settings.check()
    return settings


def recipes_as_arms(names: Sequence[str]) -> JsonDict:
    """A raw comparison of recipes, and of the untrained encoder of the first one. Raises UserError for none or a wrong name."""
    if len(set(names)) < len(names):
        raise UserError(
            f"{', '.join(names)}: a recipe is given twice; to compare settings of one recipe, write a comparison file"
        )
    recipes, comparisons = recipe_names(), comparison_names()
    for name in names:
        if name in comparisons:
            raise UserError(f"{name}: is a comparison; name it alone, or recipes only")
        if name not in recipes and Path(name).suffix not in (".yaml", ".yml") and not local_path(name).is_file():
            hint = did_you_mean(name, [*recipes, *comparisons])
            lists = "'data2vec recipes' and 'data2vec compare --list' list them; the name of a file ends in .yaml"
            raise UserError(f"there is no recipe or comparison {quoted(name)}{hint} ({lists})")
    if not names:
        raise UserError("nothing to compare: give a comparison file, or recipes; 'data2vec compare --help' has examples")
    arms: JsonDict = {name: {"recipe": name} for name in names}
    return {"arms": arms | {"untrained": {"recipe": names[0], "untrained": True}}}


def probe_evaluation(data: JsonMapping) -> JsonDict:
    """A raw probe evaluation by the keys `probe.*`: the dev set is a half of `probe.valid`, and the test set the other; without
    `probe.valid`, `probe.data` is split 60:20:20."""
    train, valid = data.get("probe.data"), data.get("probe.valid")
    if train is None:
        raise UserError("evaluations: there are none; add some, or give labelled data: probe.data=DATA")
    extra = {key.removeprefix("probe."): value for key, value in data.items() if key in ("probe.label", "probe.knn_k")}
    known = {"probe.data", "probe.valid", "probe.label", "probe.knn_k"}
    if unknown := [key for key in data if key.startswith("probe.") and key not in known]:
        raise UserError(f"{unknown[0]}: has no effect in a comparison; allowed are {', '.join(sorted(known))}")
    if valid is None:
        parts = {"train": [0, 0.6], "dev": [0.6, 0.8], "test": [0.8, 1]}
        sets: JsonDict = {name: {"data": train, "part": part} for name, part in parts.items()}
    else:
        dev, test = ({"data": valid, "part": part} for part in ([0, 0.5], [0.5, 1]))
        sets = {"train": train, "dev": dev, "test": test}
    return {"kind": "probe", **sets, "test": {"test": sets["test"]}, **extra}


def _set(raw: JsonDict, key: str, value: Any) -> None:
    section, _, rest = key.partition(".")
    if section in Recipe.model_fields and rest:
        raw["data"] = {**(raw.get("data") or {}), key: value}
    elif section == "budget" and rest:  # which replaces another kind of budget
        raw["budget"] = {rest: value}
    elif section == "tune" and rest:
        raw["tune"] = {**(raw.get("tune") or {}), rest: value}
    elif key in ("recipe", "reference", "seeds", "trivial", "equal_grids"):
        raw[key] = value
    else:
        allowed = (
            "budget.*, tune.*, recipe, reference, seeds, trivial, equal_grids, or a setting of a recipe, such as data.train"
        )
        raise UserError(f"{key}: cannot be set here; allowed are {allowed}; change the rest in the file")


def _validated(raw: JsonDict, where: str) -> ComparisonSettings:
    parts = dict(raw)
    if isinstance(raw.get("arms"), dict):
        arms = {name: {} if arm is None else arm for name, arm in raw["arms"].items()}
        parts["arms"] = {str(name): _validate(Arm, arm, f"{where}: arms.{name}.") for name, arm in arms.items()}
    if isinstance(raw.get("evaluations"), dict):
        parts["evaluations"] = {str(k): _evaluation(v, f"{where}: evaluations.{k}.") for k, v in raw["evaluations"].items()}
    return _validate(ComparisonSettings, parts, f"{where}: ")


def _evaluation(raw: Any, where: str) -> Any:
    kinds = {str(kind.model_fields["kind"].default): kind for kind in evaluation_classes()}
    kind = raw.get("kind") if isinstance(raw, Mapping) else None
    if kind not in kinds:
        raise UserError(f"{where}kind: {kind!r} is not one of {', '.join(kinds)}")
    return _validate(kinds[kind], raw, where)


def evaluation_classes() -> list[Any]:
    """The kinds of evaluations."""
    return settings_classes(ComparisonSettings.model_fields["evaluations"].annotation.__args__[1])  # type: ignore[union-attr]


def _validate(kind: Any, raw: Any, where: str) -> Any:
    try:
        return kind.model_validate(raw)
    except ValidationError as errors:
        problems = (explain_error(error, kind) for error in errors.errors())
        raise UserError(*(f"{where}{key}: {problem}{hint}" for key, problem, hint in problems)) from None


def _below(settings: ComparisonSettings, root: Path) -> ComparisonSettings:
    def absolute(overrides: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: root / local_path(value) for key, value in overrides.items() if key in PATHS and isinstance(value, str)}
        return dict(overrides) | {key: str(path.resolve()) for key, path in found.items() if path.exists()}

    def with_file(name: str | None) -> str | None:
        return str(Path(name).resolve()) if name is not None and name not in recipe_names() and Path(name).exists() else name

    arms = {
        name: arm.model_copy(update={"settings": absolute(arm.settings), "recipe": with_file(arm.recipe)})
        for name, arm in settings.arms.items()
    }
    evaluations: dict[str, Any] = {name: evaluation.below(root) for name, evaluation in settings.evaluations.items()}
    for name, evaluation in evaluations.items():
        if isinstance(evaluation, FinetuneEvaluation):
            evaluations[name] = evaluation.model_copy(update={"recipe": with_file(evaluation.recipe)})
    changes = {"arms": arms, "evaluations": evaluations, "data": absolute(settings.data), "recipe": with_file(settings.recipe)}
    return settings.model_copy(update=changes)


def arm_recipe(settings: ComparisonSettings, name: str, combination: JsonMapping) -> Recipe:
    """The pre-training recipe of an arm with a combination of its grid, with the steps of the recipe.

    Raises UserError that names the arm."""
    arm = settings.arms[name]
    recipe = arm.recipe or settings.recipe
    data = {key: value for key, value in settings.data.items() if not key.startswith("probe.")}
    try:
        found = load_recipe(str(recipe), {**data, **arm.settings, **combination})
    except UserError as error:
        raise UserError(*(f"arms.{name}: {line}" for line in error.args)) from None
    if isinstance(found.objective, SupervisedSettings):
        raise UserError(
            f"arms.{name}: {recipe} is a recipe for fine-tuning; name one for pre-training, or use it in evaluations"
        )
    return found


def online_probe(settings: ComparisonSettings) -> JsonDict:
    """The settings `probe.*` for probing along a run: those of the first probe of classes of single inputs, or none."""
    for evaluation in settings.evaluations.values():
        if isinstance(evaluation, ProbeEvaluation) and evaluation.metric != "spearman" and evaluation.second is None:
            train, dev = (each.stratified(evaluation.label) for each in (evaluation.train, evaluation.dev))
            rows = {"probe.data_rows": train.rows, "probe.valid_rows": dev.rows}
            paths: JsonDict = {"probe.data": train.data, "probe.valid": dev.data, "probe.label": evaluation.label}
            paths |= {"probe.knn_k": evaluation.knn_k, "probe.max_examples": ONLINE_EXAMPLES}
            return paths | {key: value.model_dump(mode="json") for key, value in rows.items()}
    return {}
