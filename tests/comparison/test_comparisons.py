"""The shipped comparison files: their evaluations are valid and their splits share nothing."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from data2vec.comparison.evaluations import EvalData, Evaluation, FinetuneEvaluation, finetune_overrides
from data2vec.recipe.yaml_format import parse_yaml

FILES = sorted(Path(str(resources.files("data2vec") / "comparisons")).glob("*.yaml"))


def overlap(one: EvalData, other: EvalData) -> bool:
    """Whether two sets of rows of the same data may share a row."""
    if one.data != other.data or one.part[1] <= other.part[0] or other.part[1] <= one.part[0]:
        return False

    def excludes(a: EvalData, b: EvalData) -> bool:
        return any(set(b.where.get(column, ("",))) <= set(values) for column, values in a.exclude.items())

    def differ(column: str) -> bool:
        return not set(one.where[column]) & set(other.where[column])

    distinct = any(differ(column) for column in one.where if column in other.where)
    return not (distinct or excludes(one, other) or excludes(other, one))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_evaluations_are_valid_and_their_splits_do_not_overlap(path: Path) -> None:
    raw: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    pretraining = EvalData.model_validate({"data": raw["data"]["data.train"], **raw["data"].get("data.train_rows", {})})
    for settings in raw["evaluations"].values():
        evaluation: Any = TypeAdapter(Evaluation).validate_python(settings)
        held_out = [evaluation.dev, *evaluation.test.values()]
        for index, data in enumerate(held_out):
            assert not overlap(evaluation.train, data)
            assert not overlap(pretraining, data)
            assert not any(overlap(data, other) for other in held_out[index + 1 :])
        if isinstance(evaluation, FinetuneEvaluation):
            for values in zip(*evaluation.grid.values(), strict=True):
                assert finetune_overrides(evaluation, 1, dict(zip(evaluation.grid, values, strict=True)))["train.seed"] == 1
