import math

import numpy as np
import pytest

from data2vec.errors import UserError
from data2vec.tasks import metrics
from data2vec.tasks.metrics import ErrorRates, error_rates


def test_error_rates_sum_edits_over_the_corpus() -> None:
    found = error_rates(["the cat sat", "no"], ["the cat sat on", "on a mat"])
    # "on" is missing; then "on" became "no", "a" and "mat" are missing.
    assert (found.word_edits, found.words) == (4, 7)
    # " on" is missing; "on a mat" (8) to "no": "o" is missing, "n" stays, "o" for " ", five are missing.
    assert (found.character_edits, found.characters) == (3 + 7, 14 + 8)
    assert found.wer == pytest.approx(4 / 7) and found.cer == pytest.approx(10 / 22)


def test_error_rates_ignore_white_space() -> None:
    assert error_rates([" a  b\n"], ["a b"]) == ErrorRates(0, 2, 0, 3)


def test_error_rates_count_insertions_into_empty_references() -> None:
    found = error_rates(["a b", "c"], ["", "c"])
    assert (found.word_edits, found.words) == (2, 1) and found.wer == 2
    assert error_rates(["a b"], [""]).wer == 2
    assert error_rates([""], ["a b"]).wer == 1


def test_error_rates_of_empty_texts_are_zero() -> None:
    assert error_rates(["", ""], ["", ""]) == error_rates([], []) == ErrorRates(0, 0, 0, 0)
    assert error_rates([], []).wer == error_rates([""], [""]).cer == 0


def test_error_rates_of_unequal_numbers_of_texts_raise() -> None:
    with pytest.raises(ValueError, match="1 hypotheses, 2 references"):
        error_rates(["a"], ["a", "b"])


def one_hot(classes: list[int], of: int) -> np.ndarray:
    return np.eye(of)[classes]


def test_binary_scores_match_a_manual_computation() -> None:
    said, right = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 true, 1 false positive, 1 missed, 1 true negative
    scores = metrics.single_label_scores(one_hot(said, 2), np.array(right))
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["accuracy_f1"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_top5_counts_the_five_largest_logits() -> None:
    logits = np.tile(np.arange(8.0), (2, 1))
    scores = metrics.single_label_scores(logits, np.array([3, 2]))
    assert scores["top5"] == 0.5 and scores["accuracy"] == 0


def test_map_matches_a_manual_computation_and_skips_absent_classes() -> None:
    logits = np.array([[3.0, 1, 0], [2, 2, 0], [1, 3, 0]])
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    # class 0: ranked 1st and 3rd are right: (1/1 + 2/3) / 2; class 1: the first is right: 1; class 2 does not occur
    assert metrics.multi_label_scores(logits, labels)["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_regression_scores_match_a_manual_computation() -> None:
    scores = metrics.regression_scores(np.array([1.0, 2, 3]), np.array([1.0, 4, 9]))
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(8 / math.sqrt(2 * 98 / 3))  # Σxy = 8, Σx² = 2, Σy² = 98 / 3, centred
    assert scores["mean_squared_error"] == pytest.approx((0 + 4 + 36) / 3)
    assert metrics.regression_scores(np.ones(3), np.array([1.0, 4, 9]))["pearson"] == 0


def test_lower_error_rates_are_better() -> None:
    assert metrics.is_better("wer", 0.1, 0.2) and not metrics.is_better("accuracy", 0.1, 0.2)


def test_class_scores_match_a_manual_computation() -> None:
    # a: 3 of 4 right, b: 1 of 2, c never predicted and never there
    found = metrics.class_scores(np.array(list("aaabba")), np.array(list("aaaabb")))
    assert found["accuracy"] == pytest.approx(4 / 6) and found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    by_chance = (4 * 4 + 2 * 2) / 36
    assert found["kappa"] == pytest.approx((4 / 6 - by_chance) / (1 - by_chance))
    assert found["weighted_f1"] == pytest.approx((4 * 3 / 4 + 2 * 1 / 2) / 6)


def test_class_scores_of_a_single_class_are_defined() -> None:
    found = metrics.class_scores(np.array(["a", "b"]), np.array(["a", "a"]))
    assert (found["accuracy"], found["balanced_accuracy"], found["kappa"]) == (0.5, 0.5, 0.0)
    assert metrics.class_scores(np.array(["a"]), np.array(["a"]))["kappa"] == 0


def test_auroc_is_the_share_of_pairs_in_order_and_skips_classes_that_all_or_none_have() -> None:
    logits = np.array([[3.0, 1, 0], [2, 2, 0], [1, 3, 0]])
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    assert metrics.multi_label_scores(logits, labels)["auroc"] == pytest.approx(1 / 2)
    assert "auroc" not in metrics.multi_label_scores(logits, np.array([[0, 1, 0]] * 3))


def test_d_prime_is_the_distance_of_two_normal_distributions_with_this_area() -> None:
    rng, distance = np.random.default_rng(0), 1.5
    labels = (np.arange(20000) % 2)[:, None]
    scores = metrics.multi_label_scores(rng.standard_normal((20000, 1)) + distance * labels, labels)
    assert scores["dprime"] == pytest.approx(distance, abs=0.05)
    perfect = metrics.multi_label_scores(np.array([[0.0], [1.0]]), np.array([[0], [1]]))
    assert perfect["auroc"] == 1 and 8 < perfect["dprime"] < 9  # finite


def test_several_labels_that_no_example_has_are_a_user_error() -> None:
    with pytest.raises(UserError, match="none of the 3 examples has any of the classes"):
        metrics.multi_label_scores(np.zeros((3, 2)), np.zeros((3, 2), np.int64))


@pytest.mark.parametrize("problem_type", metrics.SCORES)
def test_scores_of_logits_that_are_not_finite_are_nan(problem_type: str) -> None:
    labels = np.array([[0, 1], [1, 0], [1, 1]]) if problem_type == "multi_label_classification" else np.array([0, 1, 0])
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [np.nan, np.nan]])
    found = metrics.SCORES[problem_type](logits, labels)
    assert found.keys() == metrics.SCORES[problem_type](np.nan_to_num(logits), labels).keys()
    assert all(map(math.isnan, found.values())), "the largest of NaN is the first class, which would be right here"
