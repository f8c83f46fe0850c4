from typing import Any

import numpy as np
import pytest
import torch

from data2vec.errors import UserError
from data2vec.nn.heads import CTCSettings
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
from data2vec.tasks.finetuning.labels import (
    Transcripts,
    balancing_repeats,
    class_weights,
    encode_labels,
    split_labels,
    targets_from_head,
    targets_from_labels,
    warn_long_transcripts,
)


def test_vocabulary_comes_from_settings_head_or_transcripts() -> None:
    found = targets_from_labels(["AB B", "B"], RecognitionSettings())
    assert found.head == CTCSettings(labels=("<s>", "<pad>", "</s>", "<unk>", "|", "B", "A"))
    assert found.encode("AB B") == [6, 5, 4, 5, 4]
    assert found.collate([[1, 2], [3]]).tolist() == [[1, 2], [3, -1]]
    known = CTCSettings(labels=("-", "|", "A", "B", "C"))
    assert targets_from_labels(["AB"], RecognitionSettings(), known).head == known
    given = RecognitionSettings(vocabulary=("-", "|", "B", "A"))
    assert targets_from_labels(["AB"], given, known).head.labels == ("-", "|", "B", "A")


def test_numeric_classes_are_sorted_by_value() -> None:
    found = targets_from_labels([10, 9, 9], ClassificationSettings())
    assert found.head.labels == ("9", "10")
    assert found.collate([found.encode(10), found.encode(9)]).tolist() == [1, 0]
    assert found.class_probabilities(torch.tensor([1, 0])).tolist() == [[0, 1], [1, 0]]


def test_order_of_classes_does_not_depend_on_that_of_the_examples() -> None:
    names = ["10", "9", "01", "1", "1.0", "nan", "inf", "b", "a", "-2", "1_0"]
    expected = ("-2", "01", "1", "1.0", "9", "10", "1_0", "a", "b", "inf", "nan")
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(names))
        assert targets_from_labels([names[i] for i in order], ClassificationSettings()).head.labels == expected


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_missing_label_is_no_class_and_is_left_out(missing: object, caplog: pytest.LogCaptureFixture) -> None:
    found = targets_from_labels(["cat", missing, "dog"], ClassificationSettings())
    assert found.head.labels == ("cat", "dog")
    kept, labels = encode_labels(["cat", missing, "dog"], found, "here")
    assert kept.tolist() == [0, 2] and labels == [0, 1]
    assert "here: 1 of 3 examples are left out: invalid label (example 1: no label)" in caplog.text


def test_lists_are_no_classes_of_single_label_classification() -> None:
    with pytest.raises(UserError, match=r"label holds lists, such as \['a', 'b'\]; set objective.problem_type=multi_label"):
        targets_from_labels(["a", ["a", "b"]], ClassificationSettings())
    with pytest.raises(ValueError, match="is a list, not a class"):
        targets_from_labels(["a", "b"], ClassificationSettings()).encode(["a"])


def test_labels_are_encoded_by_the_names_in_the_head() -> None:
    head = targets_from_labels(["b", "a"], ClassificationSettings()).head
    found = targets_from_head(head, ClassificationSettings())
    assert [found.encode(name) for name in ("a", "b")] == [0, 1]
    for other in (0, "c", "A"):
        with pytest.raises(ValueError, match=f"{str(other)!r} is none of the 2 classes of the training data, a, b"):
            found.encode(other)


def test_multi_label_targets_are_multi_hot() -> None:
    found = targets_from_labels(["dog|rain", "rain"], ClassificationSettings(problem_type="multi_label_classification"))
    assert found.head.labels == ("dog", "rain")
    assert found.collate([found.encode("rain, dog"), found.encode("rain")]).tolist() == [[1, 1], [0, 1]]
    assert found.collate([found.encode([])]).tolist() == [[0, 0]], "an empty list is a label"
    assert split_labels(["a", "b"]) == split_labels("a;b") == split_labels(" a | b ") == ["a", "b"]


@pytest.mark.parametrize("values", [["a", "a"], [3]])
def test_single_class_raises(values: list[Any]) -> None:
    with pytest.raises(UserError, match="needs at least two classes"):
        targets_from_labels(values, ClassificationSettings())


def test_forty_thousand_classes_are_encoded() -> None:
    names = [f"person {i}" for i in range(40000)]
    found = targets_from_labels(names, ClassificationSettings())
    kept, labels = encode_labels(names, found, "here")
    assert len(found.head.labels) == 40000 and len(kept) == len(set(labels)) == 40000


def test_invalid_labels_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = Transcripts(targets_from_labels(["AB"], RecognitionSettings()).vocabulary)  # type: ignore[attr-defined]
    kept, labels = encode_labels(["AB", None, "A~"], found, "here")
    assert kept.tolist() == [0] and len(labels) == 1
    assert "here: 2 of 3 examples are left out" in caplog.text and "no label" in caplog.text and "'~'" in caplog.text
    caplog.clear()
    encode_labels(["AB", "A~", "C~ é", "b"], found, "here")
    assert "here: 4 characters have no label: '~' (2), 'C' (1), 'É' (1); the labels are A B" in caplog.text
    with pytest.raises(UserError, match="no example has a usable label"):
        encode_labels([None], found, "here")


def test_regression_targets_are_finite_numbers() -> None:
    found = targets_from_labels([0.5, 5], ClassificationSettings(problem_type="regression", label="score"))
    assert found.head.labels == ("score",) and found.collate([found.encode("2.5")]).tolist() == [2.5]
    with pytest.raises(ValueError, match="nan"):
        found.encode("nan")
    with pytest.raises(UserError, match="only class labels can be mixed"):
        found.class_probabilities(torch.zeros(1))


def test_class_weights_are_inverse_frequencies_summed_over_the_classes_of_an_example() -> None:
    assert class_weights([0, 0, 0, 1]).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert class_weights([[0], [0, 1], []]).tolist() == pytest.approx([1 / 2, 3 / 2, 1 / 2])


def test_balancing_repeats_rare_classes() -> None:
    assert balancing_repeats([0, 0, 0, 0, 1, 1, 2]).tolist() == [1, 1, 1, 1, 2, 2, 4]
    assert balancing_repeats([[0], [0], [0, 1]]).tolist() == [1, 1, 3]
    assert balancing_repeats([0] * 500 + [1]).max() == 100
    assert isinstance(balancing_repeats([0, 1]), np.ndarray)


def test_too_long_transcripts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    encoded = [[1, 2, 3], [1, 1, 2], [1, 1, 1], []]  # these take 3, 4, 5 and 0 positions
    warn_long_transcripts(np.array([5, 6, 8, 9]), encoded, np.array([3, 4, 5, 0]), "train")
    assert not caplog.text
    warn_long_transcripts(np.array([5, 6, 8, 9]), encoded, np.array([3, 3, 4, 0]), "train")
    assert "train: 2 of 4 transcripts are too long for their audio" in caplog.text
    assert "example 6: 4 positions needed, 3 given; example 8: 5 positions needed, 4 given" in caplog.text


def test_list_that_is_written_as_text_is_a_list() -> None:
    assert split_labels("['x', 'y z']") == split_labels('["x", "y z"]') == ["x", "y z"]
    assert split_labels("[]") == [] and split_labels("[1, 2]") == ["1", "2"]
    for wrong in ("[x, y]", "[['x']]"):
        with pytest.raises(UserError, match=r"is no list of labels; write \['a', 'b'\] or a\|b"):
            split_labels(wrong)


def test_classes_that_are_probably_one_or_none_are_named(caplog: pytest.LogCaptureFixture) -> None:
    names = [" cat", "cat", "Dog", "dog", "NaN", "\u00e9", "e\u0301"]
    found = targets_from_labels(names, ClassificationSettings())
    assert len(found.head.labels) == 7
    assert "stay different: ' cat' and 'cat'; 'Dog' and 'dog'" in caplog.text and "'NaN' is a class; where" in caplog.text
    caplog.clear()
    targets_from_labels(["cat", "dog", "1", "01"], ClassificationSettings())
    assert not caplog.text
