"""What a fine-tuned model is worth on labelled data."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.distributed import Process, resolve_device
from data2vec.errors import UserError
from data2vec.interop.load import load
from data2vec.modalities.base import Examples, Modality
from data2vec.model import Model
from data2vec.nn import heads
from data2vec.nn.encoder import Encoder, undisturbed
from data2vec.nn.heads import CTC, ClassifierSettings, Head
from data2vec.recipe import recipe as recipes
from data2vec.recipe.beam_settings import BeamSettings
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import ClassificationSettings, DecodeSettings, RecognitionSettings, SupervisedSettings
from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.asr.decoding import greedy
from data2vec.tasks.asr.tune import RANGES
from data2vec.tasks.asr.tune import tune as search_weights
from data2vec.tasks.asr.vocabulary import Alphabet
from data2vec.tasks.extraction.batched_reading import read
from data2vec.tasks.finetuning.labels import Targets, encode_labels, read_labels, targets_of_head
from data2vec.tasks.metrics import OF_PROBLEM, Scores, error_rates


@dataclass(frozen=True)
class Held:
    """Labelled examples to measure on."""

    examples: Examples
    indices: np.ndarray
    """(n,) which of them have a label that can be used."""
    labels: Sequence[Any]
    """(n,) as `Targets.encode` gives them; for recognition, the transcripts themselves."""
    left_out: int
    """How many have none."""


def open_held(modality: Modality, where: str, targets: Targets, label: str, name: str = "data.valid") -> Held:
    """Labelled data to measure on. Raises UserError when there is none, or none that can be used."""
    try:
        examples = modality.labelled(modality.rows(where))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    values = read_labels(examples, label, where)
    if targets.head.name == "ctc":  # characters that the model cannot write are errors, and no reason to leave a clip out
        kept = [index for index, value in enumerate(values) if value is not None]
        return Held(examples, np.array(kept), [str(values[index]) for index in kept], len(values) - len(kept))
    indices, labels = encode_labels(values, targets, where)
    return Held(examples, indices, labels, len(values) - len(indices))


@torch.inference_mode()
def outputs(encoder: Encoder, head: Head, modality: Modality, held: Held, process: Process) -> Iterator[tuple[int, Tensor]]:
    """(place among the held examples, logits (V,) or (T, V)) of each that can be read, this process's share of them.

    Examples of like length share a batch; padding reaches nothing."""
    plain = undisturbed(encoder)
    for places, batch in read(modality, held.examples, held.indices, process, "validation"):
        found, padding = heads.logits(plain, head, batch)
        lengths = [None] * len(places) if padding is None else (~padding).sum(1).tolist()
        for place, each, length in zip(places, found.float().cpu(), lengths, strict=True):
            yield int(place), each if each.ndim == 1 else each[:length]


def measure(told: Iterable[tuple[int, Tensor]], head: Head, held: Held, process: Process, task: Any) -> tuple[Scores, int]:
    """The measures of the head's task over all processes, and on how many examples: those that could be read.

    `told`: this process's `outputs`. Of recognition `wer` and `cer` are by the language model where the task's settings name
    one, and `wer_greedy` is without."""
    if isinstance(head, CTC):
        return _recognition(told, head, held, process, task.decode)
    found = process.all_gather([(place, logits.numpy()) for place, logits in told])
    labels, logits = _in_order(found, held)
    settings: ClassifierSettings = head.settings
    if settings.problem == "multi_label_classification":
        hot = np.zeros((len(logits), len(settings.labels)), np.int64)
        for row, numbers in zip(hot, labels, strict=True):
            row[numbers] = 1
        return OF_PROBLEM[settings.problem](np.stack(logits), hot), len(found)
    divide = getattr(task, "divide", 1.0) if settings.problem == "regression" else 1.0
    return OF_PROBLEM[settings.problem](np.stack(logits) * divide, np.array(labels)), len(found)


def _recognition(
    told: Iterable[tuple[int, Tensor]], head: CTC, held: Held, process: Process, decode: DecodeSettings
) -> tuple[Scores, int]:
    alphabet = Alphabet(head.settings.labels)
    search = searching(alphabet, decode)
    said = []
    for place, logits in told:
        given = logits[None], [len(logits)]
        plain = greedy(*given, alphabet)[0].text
        said.append((place, (plain, plain if search is None else search(*given)[0].text)))
    references, texts = _in_order(process.all_gather(said), held)
    rates = error_rates([text for _, text in texts], references)
    found = {"wer": rates.wer, "cer": rates.cer}
    if search is not None:
        found["wer_greedy"] = error_rates([text for text, _ in texts], references).wer
    return found, len(texts)


def searching(alphabet: Alphabet, decode: DecodeSettings) -> BeamSearch | None:
    """The beam search that the settings ask for, if they do."""
    if decode.lm is None and decode.lexicon is None:
        return None
    weights = {key: value for key, value in decode if key in BeamSettings.model_fields}
    return BeamSearch(alphabet, decode.lm, decode.lexicon, **weights)


def _in_order(found: list[tuple[int, Any]], held: Held) -> tuple[list[Any], list[Any]]:
    """Labels and outputs, whatever process had them. Raises UserError when there is nothing."""
    if not found:
        raise UserError("none of the examples to validate on can be read")
    found = sorted(found, key=lambda item: item[0])
    return [held.labels[place] for place, _ in found], [each for _, each in found]


PLAIN = ("matthews", "pearson", "spearman", "pearson_spearman", "mean_squared_error")
"""Scores that are no shares of anything."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    scores: dict[str, float]
    """By name: error rates, accuracies and correlations as shares of 1."""
    examples: int
    """On how many examples."""
    left_out: int
    """How many more had no label that could be used, or could not be read."""
    weights: dict[str, float] = field(default_factory=dict)
    """Those of the beam search that were found best on this data, where they were searched."""

    def __str__(self) -> str:
        rows = [
            f"{name:<18}{value:8.4g}" if name in PLAIN else f"{name:<18}{value:8.2%}" for name, value in self.scores.items()
        ]
        left = f"; {self.left_out} more are left out" if self.left_out else ""
        tuned = [f"found: objective.decode.{name}={value:.3g}" for name, value in self.weights.items()]
        return "\n".join([*rows, f"on {self.examples} examples{left}", *tuned])


def evaluate(
    model: str | Path | Model,
    data: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    tune: int = 0,
) -> Evaluation:
    """Measure a fine-tuned model on labelled data.

    `model`: a run, or anything that `data2vec.load` opens and that has a head. `data`: labelled data, in place of the
    recipe's `data.valid`. `overrides`: of the recipe, such as {"objective.label": "text"}. `tune`: try so many weights of the
    beam search on this data, and take the best. The result is also written
    to `out`, by default evaluation.json in the model's folder, when that was given.

    Raises UserError when the model has no head, or there is no data, or none of it can be used."""
    given = load(model)
    if given.head is None:
        raise UserError(f"{model}: has no head; fine-tune it first (data2vec finetune), or probe its features (data2vec probe)")
    recipe = recipes.load(_recipe(model, given), overrides)
    recipe = recipes.load(recipe, {"data.streaming": False} | ({} if data is None else {"data.valid": data}))
    if recipe.data.valid is None:
        raise UserError("data.valid: where is the labelled data to measure on? data.valid=FOLDER")
    modality, process = recipe.build_modality(), Process(resolve_device(recipe.train.device))
    task: Any = recipe.objective
    held = open_held(modality, recipe.data.valid, targets_of_head(given.head.settings, task), task.label)
    encoder, head = given.encoder.to(process.device), given.head.to(process.device)
    told: Iterable[tuple[int, Tensor]] = outputs(encoder, head, modality, held, process)
    weights = {}
    if tune:
        told = list(told)
        weights = _tuned(told, head, held, task, tune)
        task = task.model_copy(update={"decode": task.decode.model_copy(update=weights)})
    measured, seen = measure(told, head, held, process, task)
    found = Evaluation(measured, seen, held.left_out + len(held.indices) - seen, weights)
    if out is None and not isinstance(model, Model) and Path(model).is_dir():
        out = Path(model) / "evaluation.json"
    if out is not None:
        Path(out).write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return found


def _tuned(told: Sequence[tuple[int, Tensor]], head: Head, held: Held, task: Any, trials: int) -> dict[str, float]:
    """The weights of a beam search with the least word error rate."""
    search = searching(Alphabet(head.settings.labels), task.decode) if isinstance(head, CTC) else None
    if search is None:
        raise UserError("--tune: is for recognition with a language model or a lexicon: objective.decode.lm=FILE")
    best = search_weights(search, [logits for _, logits in told], [held.labels[place] for place, _ in told], trials).trials[0]
    return {name: getattr(best, name) for name in RANGES}


def _recipe(where: Any, model: Model) -> Recipe:
    """The recipe of the run that fine-tuned the model; else the model's own, with the task of its head for an objective."""
    if not isinstance(where, Model) and (file := Path(where) / "recipe.yaml").is_file():
        return recipes.load(
            file, {f"data.{key}": str(value) for key, value in model.recipe.data if key == "tokenizer" and value}
        )
    assert model.head is not None
    settings = model.head.settings
    task: SupervisedSettings = RecognitionSettings()
    if isinstance(settings, ClassifierSettings):
        task = ClassificationSettings(problem=settings.problem)
    return model.recipe.model_copy(update={"objective": task})
