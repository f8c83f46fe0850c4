"""The few-shot protocol of MTEB: what is drawn, what is fitted, and what is reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.classifiers import probability_scores
from data2vec.tasks.probing.few_shot import draw_shots, few_shot_probe, fit_few_shot

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2, "data.workers": 0}


@pytest.fixture
def vision() -> Model:
    recipe = load_recipe("vision/v1-tiny", {**SMALL, "train.device": "cpu"})
    modality = recipe.build_modality()
    return Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe)


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for number, name in enumerate(("red", "green", "blue")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(60, 40, (32, 32, 3)) + 140 * (np.arange(3) == number), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{i}.png")
    return tmp_path / "train", tmp_path / "test"


def test_a_draw_has_the_shots_of_each_class_and_depends_on_seed_and_number() -> None:
    classes = np.array(list("aaaaaaabbbbbbbbbcccccc"))
    rows = draw_shots(classes, 5, 1, 0)
    assert [*classes[rows]] == list("aaaaabbbbbccccc") and len(set(rows.tolist())) == 15
    assert draw_shots(classes, 5, 1, 0).tolist() == rows.tolist()
    assert draw_shots(classes, 5, 1, 1).tolist() != rows.tolist() != draw_shots(classes, 5, 2, 0).tolist()
    with pytest.raises(UserError, match=r"shots: 7 are more than the training examples of c \(6\)"):
        draw_shots(classes, 7, 1, 0)


def test_fits_are_those_of_mteb_and_those_that_did_not_converge_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that are not standardised, C = 1, at most 100 iterations."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, size=(40, 5)), np.array(["a", "b"] * 20)
    drawn = [draw_shots(y, 8, 0, number) for number in range(3)]
    scores, stopped = fit_few_shot(x, y, x, y, drawn, 0)
    expected = [LogisticRegression(max_iter=100).fit(x[rows], y[rows]).score(x, y) for rows in drawn]
    assert [each["accuracy"] for each in scores] == expected and stopped == 0
    monkeypatch.setattr("data2vec.tasks.probing.few_shot.MAX_ITERATIONS", 1)
    assert fit_few_shot(x, y, x, y, drawn, 0)[1] == 3


def test_few_shot_probe_reports_every_draw_of_every_layer(vision: Model, data: tuple[Path, Path], tmp_path: Path) -> None:
    found = few_shot_probe(vision, *data, shots=3, draws=4, out=tmp_path / "few.json")
    assert [row.layer for row in found.rows] == [1, 2]
    assert all(len(row.accuracy) == len(row.untrained_accuracy) == 4 for row in found.rows)
    assert found.scores["accuracy"] == pytest.approx(np.mean(found.rows[-1].accuracy))
    assert found.scores["accuracy"] > 0.8 and found.scores["auroc"] > 0.9
    assert (found.train, found.valid) == (18, 12)
    assert json.loads((tmp_path / "few.json").read_text())["rows"][1]["accuracy"] == found.rows[1].accuracy
    assert "4 draws of 3 examples of each class, from 18" in str(found)
    assert few_shot_probe(vision, *data, shots=3, draws=4) == found
    with pytest.raises(UserError, match="shots: 7 are more than"):
        few_shot_probe(vision, *data, shots=7)
    with pytest.raises(UserError, match=r"probe\.folds: 3, but this probe has no cross-validation; set probe\.folds=null"):
        few_shot_probe(vision, *data, overrides={"probe.folds": 3})


def test_scores_are_those_of_scikit_learn_by_hand() -> None:
    from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    names, classes = np.array(list("abc")), np.array(list("aaaaaabbbc"))
    probabilities = rng.dirichlet(np.ones(3), 10)
    predicted = names[probabilities.argmax(1)]
    assert probability_scores(probabilities, names, classes) == {
        "accuracy": pytest.approx((predicted == classes).mean()),
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(classes, predicted)),
        "kappa": pytest.approx(cohen_kappa_score(classes, predicted)),
        "weighted_f1": pytest.approx(f1_score(classes, predicted, average="weighted")),
        "auroc": pytest.approx(roc_auc_score(classes, probabilities, multi_class="ovr", average="macro")),
    }


def test_scores_of_a_single_class_have_no_auroc_and_a_kappa_of_zero() -> None:
    scores = probability_scores(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array(["a", "b"]), np.array(["a", "a"]))
    assert scores == {"accuracy": 1.0, "balanced_accuracy": 1.0, "kappa": 0.0, "weighted_f1": 1.0}
