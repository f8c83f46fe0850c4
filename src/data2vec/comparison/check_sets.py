"""Opening the data of all evaluations before anything is trained: a mistake there would be found when training is paid for."""

from collections.abc import Sequence

from data2vec.comparison.evaluations import (
    Evaluation,
    FinetuneEvaluation,
    ProbeEvaluation,
    finetune_overrides,
    has_classes,
    labelled_sets,
    naming,
    open_sets,
)
from data2vec.comparison.settings import ComparisonSettings
from data2vec.comparison.trivial import PlainText, evaluated_modality
from data2vec.errors import only_errors
from data2vec.modalities.base import Modality
from data2vec.modalities.text import Text
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.finetuning.labels import Targets, encode_labels, read_labels, targets_from_labels
from data2vec.tasks.probing.token_readout import require_text


def check_sets(settings: ComparisonSettings, selected: Sequence[str]) -> None:
    """Open every set of the evaluations of `selected`, arms or trivial baselines, apply its selection, and look up its labels.

    Raises UserError that names evaluation and set."""
    arms = [name for name in selected if name in settings.arms]
    every = len(arms) < len(selected)  # trivial baselines stand in all tables
    for name, evaluation in settings.evaluations.items():
        if every or any(settings.takes_part(arm, name) for arm in arms):
            with naming(f"evaluations.{name}"), only_errors("data2vec"):  # the job of an evaluation logs the warnings
                _check(evaluation, evaluated_modality(settings, evaluation, arms))


def _check(evaluation: Evaluation, modality: Modality) -> None:
    modality = modality.reading(modality.whole_split, streaming=False)
    reader = PlainText(modality.settings, modality.data) if isinstance(modality, Text) else modality
    if isinstance(evaluation, ProbeEvaluation):
        labelled_sets(evaluation, reader)
    elif isinstance(evaluation, FinetuneEvaluation):
        _check_finetuning(evaluation, reader)
    else:
        if not isinstance(modality, Text):
            require_text(modality)  # which raises
        open_sets(evaluation, reader)


def _check_finetuning(evaluation: FinetuneEvaluation, modality: Modality) -> None:
    task = load_recipe(evaluation.recipe, finetune_overrides(evaluation, 0)).task
    targets: Targets | None = None
    for name, rows in open_sets(evaluation, modality, task.label if has_classes(task) else None).items():
        where = evaluation.sets[name].data
        with naming(name):
            values = read_labels(modality.labelled(rows), task.label, where)
            targets = targets or targets_from_labels([value for value in values if value is not None], task)
            encode_labels(values, targets, where)
