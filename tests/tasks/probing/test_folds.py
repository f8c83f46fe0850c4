"""Cross-validation of a probe, by groups such as subjects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data2vec
from data2vec.errors import UserError
from data2vec.nn.encoder import build_encoder
from data2vec.tasks.probing.dataset import ProbeSet, load_probe_sets
from data2vec.tasks.probing.folds import cross_validate, fold_mean, split_folds
from helpers.recordings import CHANNELS, waves, write_npz

SUBJECTS = np.repeat(["s1", "s2", "s10"], 8)
CLASSES = np.tile(["a", "b"], 12)


def probe_set(groups: np.ndarray | None = SUBJECTS) -> ProbeSet:
    return ProbeSet("probe.data", None, np.arange(24), CLASSES, groups, "subject")  # type: ignore[arg-type]


def test_leave_one_out_holds_out_each_group_once() -> None:
    parts = split_folds(probe_set(), "leave-one-out", 0)
    assert [name for name, _ in parts] == ["s1", "s2", "s10"]
    assert [SUBJECTS[rows].tolist() for _, rows in parts] == [["s1"] * 8, ["s2"] * 8, ["s10"] * 8]


def test_k_folds_keep_groups_together_and_classes_apart() -> None:
    for groups in (SUBJECTS, None):
        parts = split_folds(probe_set(groups), 3, 0)
        assert sorted(np.concatenate([rows for _, rows in parts]).tolist()) == list(range(24))
        for _, rows in parts:
            assert np.unique(CLASSES[rows], return_counts=True)[1].tolist() == [4, 4]
            assert groups is None or not {*groups[rows]} & {*np.delete(groups, rows)}


@pytest.mark.parametrize(
    ("groups", "folds", "message"),
    [
        (None, "leave-one-out", "needs probe.group, the column of what is left out"),
        (np.repeat("s1", 24), "leave-one-out", "subject has only 's1'"),
        (SUBJECTS, 4, "4 are more than the 3 groups of subject"),
        (None, 13, "13 are more than the 12 examples of the rarest class"),
    ],
)
def test_impossible_folds_are_refused(groups: np.ndarray | None, folds: int | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_folds(probe_set(groups), folds, 0)


def test_folds_without_two_classes_to_learn_are_refused_and_unseen_classes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    examples = probe_set(np.repeat(["s1", "s2"], 12))
    with pytest.raises(UserError, match=r"without s1 every example has the class 'b', so nothing can be learned"):
        split_folds(replace(examples, classes=np.repeat(["a", "b"], 12)), "leave-one-out", 0)
    split_folds(replace(examples, classes=np.array([*"abababababab", *"abababababac"])), "leave-one-out", 0)
    assert "all examples of c are in what one fold holds out, s2, and count as errors" in caplog.text


def test_classifiers_never_see_what_their_fold_holds_out() -> None:
    # Vectors that give the subject away, and a label that only the subject determines: nothing can be learned for a new one.
    x = np.eye(3)[np.repeat([0, 1, 2], 8)] + np.random.default_rng(0).normal(0, 0.01, (24, 3))
    classes = np.repeat(["a", "b", "c"], 8)
    linear, knn = cross_validate(x, classes, split_folds(probe_set(), "leave-one-out", 0), 3, 0)
    assert fold_mean(knn, "accuracy") == 0 and [fold.accuracy for fold in linear] == [0, 0, 0]
    easy = np.random.default_rng(0).normal(0, 0.1, (24, 2)) + (CLASSES == "b")[:, None]
    linear, _ = cross_validate(easy, CLASSES, split_folds(probe_set(), "leave-one-out", 0), 3, 0)
    assert fold_mean(linear, "kappa") == linear[0].balanced_accuracy == linear[1].kappa == linear[2].weighted_f1 == 1


def test_probe_leaves_one_subject_out_and_never_splits_a_recording(tmp_path: Path) -> None:
    rows = ["file_name,label,subject"]
    for index in range(12):
        write_npz(tmp_path / f"{index}.npz", waves(12, seed=index) * (1 + index % 2))
        rows.append(f"{index}.npz,{'ab'[index % 2]},{index // 4}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    known = {"modality.channels": list(CHANNELS), "modality.rate": 50.0, "modality.scale.by": "none", "data.workers": 0}
    recipe = data2vec.load_recipe("signal/v2-tiny", known | {"train.device": "cpu"})
    modality = recipe.build_modality()
    model = data2vec.Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe)
    found = data2vec.probe(model, str(tmp_path), overrides={"probe.group": "subject", "probe.folds": "leave-one-out"})
    assert [(fold.held_out, fold.examples) for fold in found.folds] == [("0", 12), ("1", 12), ("2", 12)]
    assert (
        "Mean accuracy over 3 folds of 36 examples" in str(found) and found.folds[0].accuracy == 1
    )  # they differ in amplitude
    assert data2vec.probe(model, str(tmp_path)).valid % 3 == 0  # complete recordings of three windows
    with pytest.raises(UserError, match=r"no column .patient."):
        data2vec.probe(model, str(tmp_path), overrides={"probe.group": "patient"})
    with pytest.raises(UserError, match=r"leave out probe.valid"):
        data2vec.probe(model, str(tmp_path), str(tmp_path), {"probe.folds": 2})


def test_groups_in_both_sets_of_a_split_by_the_user_are_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, subjects in (("train", "001122"), ("valid", "223344")):
        (tmp_path / name).mkdir()
        rows = ["file_name,label,subject"]
        for index, subject in enumerate(subjects):
            write_npz(tmp_path / name / f"{index}.npz", waves(12, seed=index))
            rows.append(f"{index}.npz,{'ab'[index % 2]},{subject}")
        (tmp_path / name / "metadata.csv").write_text("\n".join(rows))
    recipe = data2vec.load_recipe(
        "signal/v2-tiny", {"modality.channels": list(CHANNELS), "modality.rate": 50.0, "modality.scale.by": "none"}
    )
    settings = recipe.probe.model_copy(
        update={"group": "subject", "data": str(tmp_path / "train"), "valid": str(tmp_path / "valid")}
    )
    load_probe_sets(recipe.build_modality(), settings, 0)
    assert "probe.data and probe.valid have subject 2 in common; scores are not of new ones" in caplog.text
