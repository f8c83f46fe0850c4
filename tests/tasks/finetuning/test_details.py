import json

import numpy as np
import pytest

from data2vec.tasks.finetuning.details import MAX_CHARACTERS, classification_details, recognition_details

NAMES = ("cat", "dog", "eel")


def sure(*predicted: int, scale: float = 3.0) -> np.ndarray:
    return scale * np.eye(3)[list(predicted)]


def test_confusion_counts_each_pair_of_class_and_prediction_most_frequent_first() -> None:
    found = classification_details(sure(0, 0, 1, 1, 1), [0, 0, 1, 1, 0], range(5), NAMES, "single_label_classification")
    assert found.classes == list(NAMES)
    assert found.confusion == [(0, 0, 2), (1, 1, 2), (0, 1, 1)]


def test_worst_examples_have_the_largest_loss_and_typical_ones_the_median() -> None:
    logits = np.zeros((20, 3))
    logits[:, 0] = np.linspace(-5, 5, 20)  # of class 0: the loss falls with the row
    found = classification_details(logits, [0] * 20, range(100, 120), NAMES, "single_label_classification")
    assert [each.index for each in found.examples if each.kind == "worst"] == [100, 101, 102, 103, 104, 105]
    assert {each.index for each in found.examples if each.kind == "typical"} <= {108, 109, 110, 111}
    worst = found.examples[0]
    assert (worst.label, worst.prediction, worst.correct) == ("cat", "dog (50%)", False) and worst.loss == pytest.approx(
        5.7, abs=0.01
    )


def test_predictions_that_are_not_finite_are_not_shown() -> None:
    logits = sure(0, 1, 2)
    logits[1] = np.nan
    found = classification_details(logits, [0, 1, 2], range(3), NAMES, "single_label_classification")
    assert [each.index for each in found.examples] == [0, 2]


def test_details_of_several_labels_and_of_numbers() -> None:
    found = classification_details(
        np.array([[2.0, -2, 2], [-2, -2, -2]]), [[0], []], (4, 5), NAMES, "multi_label_classification"
    )
    shown = [(each.label, each.prediction, each.correct) for each in found.examples]
    assert shown == [("cat", "cat, eel", False), ("none", "none", True)]
    assert found.confusion == () and found.loss == "cross-entropy"
    found = classification_details(np.array([[2.0], [5.0]]), [2.5, 1.0], (0, 1), ("score",), "regression")
    assert [(each.label, each.prediction, each.loss) for each in found.examples] == [("1", "5", 16.0), ("2.5", "2", 0.25)]
    assert [each.correct for each in found.examples] == [None, None]  # numbers are only near


def test_transcript_that_only_begins_with_its_reference_is_not_correct() -> None:
    found = recognition_details(["yes", "yes (no)"], ["yes", "yes"], (0, 1))
    assert [(each.prediction, each.correct) for each in found.examples] == [("yes (no)", False), ("yes", True)]


def test_details_of_transcripts_are_by_character_error_rate_and_bounded() -> None:
    found = recognition_details(["abc", "x" * 999, "\x1b[2J"], ["abc", "abc", "abc"], (7, 8, 9))
    assert [each.index for each in found.examples] == [8, 9, 7]
    assert len(found.examples[0].prediction) == MAX_CHARACTERS + 1 and "\x1b" not in found.examples[1].prediction
    assert found.examples[2].loss == 0
    assert json.loads(json.dumps(found.to_json(30)))["step"] == 30
