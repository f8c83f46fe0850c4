"""Evaluation of a fine-tuned model on labelled data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.atomic_io import write_json
from data2vec.batch import Batch
from data2vec.data.dataset import ExampleDataset, Rows
from data2vec.data.sources.library import data_path
from data2vec.data.sources.splits import VALID
from data2vec.distributed import Process, current_process, local_rank, resolve_device
from data2vec.errors import UserError, get_logger
from data2vec.feature_extraction import autocast, check_computation, inference_encoder, logits_by_row
from data2vec.interop.load import load
from data2vec.local_path import output_file
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model, require_head
from data2vec.nn.encoder import Encoder
from data2vec.nn.heads import CTC, Classifier, ClassifierSettings, Head
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings, TaskSettings
from data2vec.run_dir import load_run_recipe, result_file, run_of_model
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.asr.decoding import Decoder, build_ctc_decoder
from data2vec.tasks.asr.greedy import GreedyDecoder
from data2vec.tasks.asr.tune import tune_weights
from data2vec.tasks.asr.vocabulary import BLANK, CTCVocabulary
from data2vec.tasks.digests import examples_digest, model_digest
from data2vec.tasks.eval_batches import Compute, EvalPass, Output, gather_outputs
from data2vec.tasks.finetuning.details import ValidationDetails, classification_details, recognition_details
from data2vec.tasks.finetuning.labels import Targets, Transcripts, encode_labels, read_labels, targets_from_head, warn_cut
from data2vec.tasks.finetuning.verdict import explain_scores
from data2vec.tasks.metrics import RECORDING, SCORES, Scores, chance_scores, error_rates, is_percentage
from data2vec.tasks.shared_outputs import shared_outputs
from data2vec.tasks.shares import share_of

log = get_logger(__name__)


@dataclass(frozen=True)
class EvalSet:
    """Labelled examples to evaluate on."""

    examples: ExampleDataset
    indices: np.ndarray
    """(n,) indices of the examples with a usable label."""
    labels: Sequence[Any]
    """(n,) encoded by `Targets.encode`; for recognition, the transcripts as the vocabulary writes them."""
    left_out: int
    """Number of examples without a usable label."""
    rows: Rows = None
    """What `examples` are made from."""


def load_eval_set(modality: Modality, where: str, targets: Targets, label: str, name: str = "data.valid") -> EvalSet:
    """The labelled data at `where`; `name` is the setting that errors mention.

    Raises UserError if there is none, or no usable label in it."""
    reader = modality.validation()
    try:
        rows = reader.selected_rows(where, modality.data.valid_rows, "data.valid_rows")
        examples = modality.labelled(rows)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("data.") else f"{name}: {error}") from None
    values = read_labels(examples, label, where)
    if isinstance(targets, Transcripts):  # characters outside the vocabulary count as errors; the clips are not left out
        indices = [index for index, value in enumerate(values) if value is not None]
        texts = [targets.vocabulary.normalize(str(values[index])) for index in indices]
        if unspelled := targets.describe_invalid(texts):
            log.warning("%s: %s; they count as errors", where, unspelled)
        return EvalSet(examples, np.array(indices), texts, len(values) - len(indices), rows)
    encoded_indices, labels = encode_labels(values, targets, where)
    warn_cut(examples, encoded_indices, where)
    return EvalSet(examples, encoded_indices, labels, len(values) - len(labels), rows)


Describe = Callable[[Tensor], Any]
"""From the logits of an example, (V,) or (T, V) float32 on the CPU, to what its scores are computed from."""


def describe_logits(head: Head, task: TaskSettings) -> Describe:
    """What the scores of the head's task need of an example's logits: for classification the logits, an array; for recognition
    the transcripts by greedy decoding and, with a language model or lexicon, by beam search, and the fraction of blanks."""
    if not isinstance(head, CTC):
        return Tensor.numpy
    assert isinstance(task, RecognitionSettings)
    vocabulary = CTCVocabulary(head.settings.labels)
    greedy, decoder = GreedyDecoder(vocabulary), build_ctc_decoder(vocabulary, task.decode)
    decoders: list[Decoder] = [greedy, decoder] if isinstance(decoder, BeamSearch) else [greedy]

    def describe(logits: Tensor) -> JsonDict:
        texts = [vocabulary.normalize(each(logits[None], [len(logits)])[0].text) for each in decoders]
        return {"texts": texts, "blank": (logits.argmax(-1) == BLANK).float().mean().item()}

    return describe


def compute_logits(
    encoder: Encoder, head: Head, modality: Modality, describe: Describe, precision: str = "fp32", compile: bool = False
) -> Compute:
    """What computes, for each row of a batch, what `describe` says of its logits. Padding does not change them. Matrix products
    are in this precision."""
    encoder = inference_encoder(encoder, compile)

    @torch.inference_mode()
    def compute(batch: Batch) -> list[Any]:
        with autocast(batch.input.device, precision):
            found = logits_by_row(encoder, head, batch, modality.chunks(batch))
        return [describe(logits.float().cpu()) for logits in found]

    return compute


def validate(
    encoder: Encoder, head: Head, modality: Modality, eval_set: EvalSet, process: Process, task: TaskSettings
) -> "Scored":
    """The scores of the head's task; processes share the examples."""
    compute = compute_logits(encoder, head, modality, describe_logits(head, task))
    reading = EvalPass(modality, eval_set.examples, eval_set.indices, process.device)
    return compute_scores(gather_outputs(reading, compute, process, "validation"), head, eval_set)


@dataclass(frozen=True)
class Scored:
    """The scores of predictions, and what they are to be judged by."""

    scores: Scores
    examples: int
    """Number of examples they are of."""
    evidence: Scores
    """Of classes: `chance_` and a score, what guessing would reach. Of recognition: `wer_uncased`, the word error rate without
    regard to case; `empty`, the share of empty hypotheses; `blank`, the share of frames whose most likely label is the blank;
    and `wer_shuffled`, the word error rate of hypotheses against the references of other utterances, unless all are equal."""
    details: ValidationDetails | None = None
    """The confusion matrix, and the worst and typical examples."""


def compute_scores(outputs: Sequence[Output], head: Head, eval_set: EvalSet) -> Scored:
    """The scores of the head's task, from what `describe_logits` gives for each example, in the order of the evaluation set.

    For recognition with a language model or lexicon, `wer` and `cer` are of the beam search, and `wer_greedy` of greedy
    decoding. Raises UserError if there are no outputs."""
    if not outputs:
        raise UserError("none of the evaluation examples can be decoded; see the warnings above")
    rows = [row for row, _ in outputs]
    indices, labels = eval_set.indices[rows], [eval_set.labels[row] for row in rows]
    found = [output for _, output in outputs]
    if isinstance(head, CTC):
        return _recognition_scores(found, labels, indices.tolist())
    assert isinstance(head, Classifier)
    settings: ClassifierSettings = head.settings
    logits = np.stack(found)
    encoded = np.array(labels) if settings.problem_type != "multi_label_classification" else np.zeros_like(logits, np.int64)
    if settings.problem_type == "multi_label_classification":
        for row, numbers in zip(encoded, labels, strict=True):
            row[numbers] = 1
    scores = SCORES[settings.problem_type](logits, encoded)
    if (recordings := getattr(eval_set.examples, "recordings", None)) is not None:
        scores |= _recording_scores(settings.problem_type, logits, encoded, recordings[indices])
    chance = {f"chance_{name}": value for name, value in chance_scores(settings.problem_type, encoded).items()}
    details = classification_details(logits, labels, indices.tolist(), settings.labels, settings.problem_type)
    return Scored(scores, len(outputs), chance, details)


def _recording_scores(problem_type: str, logits: np.ndarray, labels: np.ndarray, recordings: np.ndarray) -> Scores:
    """The scores of recordings whose windows have `logits` (n, V) and `labels` (n, …), by the mean of their logits, with the
    prefix recording_. None if each recording has one window, or windows of one have different labels."""
    names, first, numbers, counts = np.unique(recordings, return_index=True, return_inverse=True, return_counts=True)
    if len(names) == len(recordings) or (labels != labels[first][numbers]).any():
        return {}
    sums = np.zeros((len(names), logits.shape[1]))
    np.add.at(sums, numbers, logits)
    scores = SCORES[problem_type](sums / counts[:, None], labels[first])
    return {RECORDING + name: value for name, value in scores.items()}


def _recognition_scores(found: Sequence[JsonMapping], references: Sequence[str], indices: Sequence[int]) -> Scored:
    hypotheses = [each["texts"][-1] for each in found]
    rates = error_rates(hypotheses, references)
    scores = {"wer": rates.wer, "cer": rates.cer}
    if len(found[0]["texts"]) > 1:
        scores["wer_greedy"] = error_rates([each["texts"][0] for each in found], references).wer
    evidence = {
        "wer_uncased": error_rates([text.casefold() for text in hypotheses], [text.casefold() for text in references]).wer,
        "empty": float(np.mean([not text for text in hypotheses])),
        "blank": float(np.mean([each["blank"] for each in found])),
    }
    order = np.random.default_rng(0).permutation(len(found))
    others = [(hypotheses[i], references[j]) for i, j in pairwise([*order, order[0]]) if references[i] != references[j]]
    if others:
        evidence["wer_shuffled"] = error_rates(*zip(*others, strict=True)).wer
    return Scored(scores, len(found), evidence, recognition_details(hypotheses, references, indices))


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; `str()` of it is a table."""

    scores: dict[str, float]
    """By name: error rates, accuracies and correlations as fractions of 1."""
    examples: int
    """Number of examples evaluated."""
    left_out: int
    """Number of examples without a usable label, or that cannot be decoded."""
    weights: dict[str, float] = field(default_factory=dict)
    """The best beam search weights, if they were tuned on this data."""
    evidence: dict[str, float] = field(default_factory=dict)
    """What the scores are to be judged by (`Scored.evidence`)."""

    def __str__(self) -> str:
        rows = [
            f"{name:<29}{value:8.2%}" if is_percentage(name) else f"{name:<29}{value:8.4g}"
            for name, value in self.scores.items()
        ]
        left_out = f"; {self.left_out} left out" if self.left_out else ""
        tuned = [f"best: objective.decode.{name}={value:.3g}" for name, value in self.weights.items()]
        fault = explain_scores(self.scores | self.evidence, self.examples)
        judged = [f"{fault.symptom}. Likely cause: {fault.cause}"] if fault else []
        return "\n".join([*rows, f"on {self.examples} examples{left_out}", *judged, *tuned])


def evaluate(
    model: str | Path | Model,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    tune: int = 0,
    modality: CustomClass | None = None,
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Evaluation:
    """Evaluate a fine-tuned model on labelled data.

    `model`: a run, or anything that `data2vec.load` opens and that has a head. `data`: labelled data, as a path, or as a
    `datasets.Dataset` or `DatasetDict`, instead of the recipe's `data.valid`; of its split valid. `overrides`: of the recipe,
    such as {"objective.label": "text"}. `tune`: try this many beam search weights on this data, and use the best. The result is
    also written to `out`, by default evaluation.json in the model's folder, if the model was given as a folder. `modality`: see
    `data2vec.load`. `precision`: bf16 computes matrix products in bfloat16. `compile`: compile the Transformer blocks
    (torch.compile).

    `shard`: "i/n" computes share i of n only, and the last one to finish has the result. Processes of torchrun share the work
    by themselves. Finished shards are kept in a folder beside `out`: the same call, with any number of shares, computes only
    what is missing. Processes that have joined a group, and those without `out`, keep nothing; those of a group share the
    examples, and all return the result.

    Raises UserError if the model has no head, if there is no usable data, and for a wrong `shard`; Unfinished in a process that
    is not the last one."""
    loaded = load(model, modality)
    head = require_head(loaded, model)
    if out is None and not isinstance(model, Model):
        out = result_file(model, "evaluation")
    out = None if out is None else output_file(out, "--out")
    recipe = load_recipe(_task_recipe(model, loaded), {"train.device": "auto"})  # that of the training is of its machine
    if data is not None:  # the recipe's selection is of other data
        recipe = load_recipe(recipe, {"data.valid_rows": {}, "data.valid_split": VALID})
    split = recipe.data.split
    recipe = load_recipe(recipe, overrides)
    if recipe.data.split != split:
        raise UserError(f"data.split: {recipe.data.split!r} is of data.train; set data.valid_split={recipe.data.split}")
    recipe = load_recipe(recipe, {"data.streaming": False} | ({} if data is None else {"data.valid": data_path(data)}))
    if recipe.data.valid is None:
        raise UserError("data.valid: no labelled data to evaluate on; set data.valid=FOLDER")
    reader = recipe.build_modality()
    process = current_process(resolve_device(recipe.train.device, local_rank(), "train.device"))
    check_computation(process.device, precision, compile)
    if tune and share_of(shard).count > 1:
        raise UserError("--tune: runs in one process; start it without torchrun and --shard")
    task = recipe.task
    assert isinstance(task, TaskSettings)
    eval_set = load_eval_set(reader, recipe.data.valid, targets_from_head(head.settings, task), task.label)
    encoder, head = loaded.encoder.to(process.device), head.to(process.device)
    reading = EvalPass(reader, eval_set.examples, eval_set.indices, process.device)

    def settings() -> JsonDict:
        return {
            "model": model_digest(loaded),
            "data": examples_digest(reader, eval_set.rows, eval_set.indices),
            "device": process.device.type,
            "precision": precision,
            "compile": compile,
            "decode": task.decode.model_dump() if isinstance(task, RecognitionSettings) else None,
        }

    def score(outputs: Sequence[Output], weights: dict[str, float]) -> Evaluation:
        found = compute_scores(outputs, head, eval_set)
        left_out = eval_set.left_out + len(eval_set.indices) - found.examples
        evaluation = Evaluation(found.scores, found.examples, left_out, weights, found.evidence)
        if out is not None:
            process.on_main_process(lambda: write_json(Path(out), asdict(evaluation)))
        return evaluation

    if tune:
        compute = compute_logits(encoder, head, reader, lambda logits: logits, precision, compile)
        found = gather_outputs(reading, compute, process, "evaluate")
        weights = _tuned_weights(found, head, eval_set, task, tune)
        assert isinstance(task, RecognitionSettings)
        describe = describe_logits(head, task.model_copy(update={"decode": task.decode.model_copy(update=weights)}))
        return score([(row, describe(logits)) for row, logits in found], weights)
    compute = compute_logits(encoder, head, reader, describe_logits(head, task), precision, compile)
    with shared_outputs([reading], compute, process, out, shard, settings, "evaluate") as (outputs,):
        return score(outputs, {})


def _tuned_weights(
    outputs: Sequence[Output], head: Head, eval_set: EvalSet, task: TaskSettings, trials: int
) -> dict[str, float]:
    """The beam search weights with the lowest word error rate."""
    decoder = None
    if isinstance(head, CTC) and isinstance(task, RecognitionSettings):
        decoder = build_ctc_decoder(CTCVocabulary(head.settings.labels), task.decode)
    if not isinstance(decoder, BeamSearch):
        raise UserError("--tune: needs a beam search, for recognition only; set objective.decode.lm=FILE")
    logits, references = [logits for _, logits in outputs], [eval_set.labels[row] for row, _ in outputs]
    return tune_weights(decoder, logits, references, trials).trials[0].weights


def _task_recipe(where: str | Path | Model, model: Model) -> Recipe:
    """The recipe of the fine-tuning run; otherwise the model's own, with default settings for the task of its head."""
    if not isinstance(where, Model) and (run := run_of_model(where) / "recipe.yaml").is_file():
        tokenizer = {f"data.{key}": str(value) for key, value in model.recipe.data if key == "tokenizer" and value}
        return load_run_recipe(run.parent, tokenizer)
    assert model.head is not None
    settings = model.head.settings
    task: TaskSettings = RecognitionSettings()
    if isinstance(settings, ClassifierSettings):
        task = ClassificationSettings(problem_type=settings.problem_type)
    return model.recipe.model_copy(update={"objective": task})
