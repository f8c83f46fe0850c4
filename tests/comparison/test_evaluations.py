import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from data2vec.comparison.evaluations import (
    Evaluation,
    FinetuneEvaluation,
    ProbeEvaluation,
    Scores,
    evaluate,
    finetune_overrides,
    labelled_sets,
)
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.finetune import resolve_recipe
from data2vec.train.planning.step_cost import step_cost

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "data.workers": 0, "train.device": "cpu"}
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02d}.png")
    return tmp_path / "data"


def sets(data: Path) -> dict[str, Any]:
    def part(*limits: float) -> dict[str, Any]:
        return {"data": str(data), "part": list(limits)}

    return {"train": part(0, 0.5), "dev": part(0.5, 0.75), "test": {"test": part(0.75, 1)}}


def build(**settings: Any) -> Any:
    return TypeAdapter(Evaluation).validate_python(settings)


def small_recipe() -> Recipe:
    return load_recipe("vision/v2-tiny", {**SMALL, "objective.target.top_k": 2})


def test_probe_of_an_untrained_encoder_separates_colours_on_every_set(data: Path, tmp_path: Path) -> None:
    evaluation = build(kind="probe", **sets(data))
    scores = evaluate(evaluation, None, small_recipe(), 1, tmp_path / "out")
    assert scores.dev == {"linear accuracy": 1.0, "kNN accuracy": 1.0}
    assert scores.test == {"test": {"linear accuracy": 1.0, "kNN accuracy": 1.0}}
    assert scores.details["examples"] == {"train": 12, "dev": 6, "test test": 6}
    assert scores.details["linear"] == {"layer": 1, "regularisation": 0.01}


def test_evaluate_again_returns_the_stored_scores(data: Path, tmp_path: Path) -> None:
    stored = Scores({"accuracy": 0.5}, {"test": {"accuracy": 0.25}}, {"layer": 3})
    stored.write(tmp_path / "out" / "scores.json")
    assert evaluate(build(kind="probe", **sets(data)), None, small_recipe(), 1, tmp_path / "out") == stored


def test_higher_is_better_is_false_for_errors_of_any_classifier() -> None:
    scores = Scores({"wer": 0.5, "linear accuracy": 0.2, "ridge mean_squared_error": 1.0}, {})
    assert scores.higher_is_better == {"wer": False, "linear accuracy": True, "ridge mean_squared_error": False}


QUICK: dict[str, Any] = {
    **{"train.steps": 3, "train.schedule": {"name": "cosine", "warmup_steps": 1}, "train.device": "cpu"},
    **{"data.batch_size": 8, "data.micro_batch_size": 8, "data.workers": 0},
    **{"log.report": False, "objective.mixing": None},
}


def test_finetune_from_scratch_scores_dev_and_test_and_resumes(data: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "encoder.layers": 1}
    evaluation = build(kind="finetune", recipe="vision/classify-tiny", settings=settings, fraction=0.5, **sets(data))
    scores = evaluate(evaluation, None, None, 1, tmp_path / "out", {"train.lr": 1e-4})
    assert next(iter(scores.dev)) == "accuracy"
    assert scores.test.keys() == {"test"}
    assert scores.details["examples"] == {"dev": 6, "test test": 6}
    recipe = load_recipe(tmp_path / "out" / "run" / "recipe.yaml")
    assert (recipe.train.lr, recipe.data.train_rows.fraction, recipe.data.train_rows.stratify) == (1e-4, 0.5, "label")
    (tmp_path / "out" / "scores.json").unlink()
    again = evaluate(evaluation, None, None, 1, tmp_path / "out", {"train.lr": 1e-4})
    assert (again.dev, again.test) == (scores.dev, scores.test)
    assert json.loads((tmp_path / "out" / "test test.json").read_text())["examples"] == 6


def test_extra_flops_prolong_finetuning_by_the_steps_that_cost_them(data: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "encoder.layers": 1}
    evaluation = build(kind="finetune", recipe="vision/classify-tiny", settings=settings, **sets(data))
    complete = resolve_recipe(evaluation.recipe, None, None, None, finetune_overrides(evaluation, 1), scratch=False)
    cost = step_cost(complete).flops
    scores = evaluate(evaluation, None, None, 1, tmp_path / "out", extra_flops=1.8 * cost)
    assert (scores.details["flops_per_step"], scores.details["extra_steps"], scores.details["steps"]) == (cost, 2, 5)
    assert load_recipe(tmp_path / "out" / "run" / "recipe.yaml").train.steps == 5


def test_finetune_overrides_refuse_a_recipe_for_pretraining(data: Path) -> None:
    evaluation = FinetuneEvaluation(recipe="vision/v2-tiny", **sets(data))
    with pytest.raises(UserError, match="is a recipe for pre-training"):
        finetune_overrides(evaluation, 1)


def test_labels_of_a_test_set_that_are_not_in_train_are_refused(data: Path) -> None:
    only_red = {"data": str(data), "where": {"label": "red"}}
    evaluation = ProbeEvaluation.model_validate({**sets(data), "train": only_red})
    with pytest.raises(UserError, match="every example has the label 'red'"):
        labelled_sets(evaluation, small_recipe().build_modality())


def test_pairs_of_texts_give_ridge_and_cosine_scores(tmp_path: Path) -> None:
    words = ("cat", "dog", "sun", "sea")
    lines = ["sentence1\tsentence2\tscore"]
    lines += [f"{a} {b}\t{c} {d}\t{(a == c) + (b == d)}.5" for a in words for b in words for c in words for d in words[:2]]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "corpus.txt").write_text(" ".join(words) * 200)
    table = str(tmp_path / "pairs.tsv")
    evaluation = ProbeEvaluation(
        train={"data": table, "part": [0, 0.5]},
        dev={"data": table, "part": [0.5, 0.75]},
        test={"test": {"data": table, "part": [0.75, 1]}},
        label="score",
        second="sentence2",
        metric="spearman",
    )
    text = {"modality.vocab_size": 300, "data.block_size": 16, "data.train": str(tmp_path / "corpus.txt")}
    recipe = load_recipe("text/v2-tiny", {**SMALL, **text, "objective.target.top_k": 2})
    scores = evaluate(evaluation, None, recipe, 1, tmp_path / "out")
    assert scores.dev.keys() == {"ridge spearman", "cosine spearman"}
    assert scores.test["test"]["cosine spearman"] > 0.3


def test_token_readout_of_a_regular_text_gains_nats_in_the_layer_chosen_on_dev(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    order = [bytes([97 + letter]).decode() for letter in rng.permutation(26)]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join("".join(order) * 4 for _ in range(40)))
    text = {"modality.vocab_size": 261, "data.block_size": 16, "data.train": str(tmp_path / "train.txt")}
    recipe = load_recipe("text/v2-tiny", {**SMALL, **text, "objective.target.top_k": 2})
    paths = {name: str(tmp_path / f"{name}.txt") for name in ("train", "dev", "test")}
    tokens = {"train": paths["train"], "dev": paths["dev"], "test": {"test": paths["test"]}}
    evaluation = build(kind="tokens", max_tokens=400, **tokens)
    scores = evaluate(evaluation, None, recipe, 1, tmp_path / "out")
    assert scores.dev.keys() == scores.test["test"].keys() == {"nats below unigrams"}
    assert scores.higher_is_better == {"nats below unigrams": True}
    assert scores.test["test"]["nats below unigrams"] > 0.9 * scores.details["unigrams"]["test test"]
    assert scores.details["tokens"] == {"train": 400, "dev": 100, "test test": 100}
    assert scores.details["layer"] in (1, 2)


def test_token_readout_of_a_vision_model_is_refused(data: Path, tmp_path: Path) -> None:
    evaluation = build(kind="tokens", train=str(data), dev=str(data), test={"test": str(data)})
    with pytest.raises(UserError, match="only text models have tokens to read out"):
        evaluate(evaluation, None, small_recipe(), 1, tmp_path / "out")
