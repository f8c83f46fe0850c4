"""Prediction: what a fine-tuned model says of new inputs, in batches, in input order."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data2vec.console.progress import progress
from data2vec.data.dataset import Rows
from data2vec.distributed import local_rank, resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import (
    autocast,
    check_computation,
    count_full,
    extract_logits,
    inference_encoder,
    max_positions,
    warn_full,
)
from data2vec.interop.load import load
from data2vec.local_path import local_path, output_file
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model, require_head
from data2vec.nn.heads import ClassifierSettings, CTCSettings, Head
from data2vec.recipe.loading import list_overrides
from data2vec.recipe.task_settings import CTCDecodingSettings
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.asr.decoding import build_ctc_decoder
from data2vec.tasks.asr.vocabulary import CTCVocabulary
from data2vec.tasks.digests import content_digest, model_digest
from data2vec.tasks.extraction.columns import metadata_columns
from data2vec.tasks.extraction.decode import WINDOW, decode_in_order, list_unreadable, open_inputs, reasons
from data2vec.tasks.prediction.table import TABLE_WRITERS, PredictionColumns, PredictionShards, write_table
from data2vec.tasks.shares import share_of

THRESHOLD = 0.5
"""Labels of at least this probability are predicted, where an input may have several."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one input."""

    name: str
    """The file, the key in its archive, or "input 3"."""
    value: str | float | tuple[str, ...] | None
    """The most probable class; of multi-label classification all labels of at least the threshold, most probable first; of a
    regression the number; of CTC the transcript, by greedy decoding. None if the input cannot be decoded."""
    probability: float | tuple[float, ...] | None = None
    """The probability of the class, or of each of the labels; None for numbers and transcripts."""
    top: tuple[tuple[str, float], ...] = ()
    """The `top_k` most probable labels with their probabilities, most probable first; empty for numbers and transcripts."""
    error: str | None = None
    """Why the input cannot be decoded; None if it was."""

    def __str__(self) -> str:
        """In one line."""
        if self.error is not None or not self.top:
            return self.error or (f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value))
        shown = self.top
        if isinstance(self.value, tuple) and isinstance(self.probability, tuple) and len(self.top) == 1:
            shown = tuple(zip(self.value, self.probability, strict=True))
        return "\t".join(f"{label} {probability:.3f}" for label, probability in shown) or "no label"


@dataclass(frozen=True)
class PredictionFile:
    """A written table of predictions; `str()` of it is a summary."""

    path: Path
    inputs: int
    """Number of inputs, including unreadable ones."""
    unreadable: list[str]
    """ "name: reason" of the first thousand inputs without a prediction; the file has all."""
    num_unreadable: int
    """The number of all of them."""
    status: str | None = None
    """Of a share whose process is not the one to write the file: what is missing, or that another one writes it."""

    def __str__(self) -> str:
        if self.status is not None:
            return f"{self.path}: {self.status}"
        lines = [f"{self.path}: {self.inputs - self.num_unreadable} predictions"]
        return "\n".join([*lines, *list_unreadable(self.unreadable, self.num_unreadable, "have an error instead")])


class Predictions:
    """The predictions for many inputs, computed while they are iterated over; `len()` is the number of inputs."""

    def __init__(
        self, model: Model, head: Head, modality: Modality, rows: Rows, batch_positions: int, settings: JsonDict, inputs: object
    ):
        self.model, self.head, self.modality, self.rows = model, head, modality, rows
        self.encoder = inference_encoder(model.encoder, settings["compile"])
        self.batch_positions, self.settings, self._inputs = batch_positions, settings, inputs
        self.columns = PredictionColumns(head.settings, settings["top_k"])
        self._interpret = _interpreter(head.settings, settings["top_k"], settings["threshold"])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prediction]:
        """In input order. Raises UserError if none of the inputs can be decoded, and if the model computes NaN or inf."""
        unreadable, readable = list[str](), 0
        with progress(desc="predict", total=len(self), unit="input") as bar:
            for _, window in self._windows([range(len(self))]):
                for prediction in window:
                    readable += prediction.error is None
                    if prediction.error is not None and not readable:
                        unreadable.append(f"{prediction.name}: {prediction.error}")
                    yield prediction
                bar.update(len(window))
        if not readable:
            raise self._none_decoded(unreadable)

    def _none_decoded(self, unreadable: list[str]) -> UserError:
        return UserError(f"none of the {len(self)} inputs can be decoded: {'; '.join(reasons(unreadable)[:3])}")

    def _windows(self, ranges: list[range]) -> Iterator[tuple[int, list[Prediction]]]:
        """The predictions of `ranges` in order, in lists, each with the index of its first input."""
        readable, full, most = 0, 0, 0
        for first, window in decode_in_order(self.modality, self.rows, ranges, WINDOW * self.batch_positions):
            items = [item for _, item in window if not isinstance(item, str)]
            cut, most = count_full(self.modality, items)
            readable, full = readable + len(items), full + cut
            with autocast(self.model.device, self.settings["precision"]):
                logits = iter(extract_logits(self.encoder, self.head, self.modality, items, self.batch_positions))
            yield first, [self._predict(name, item, logits) for name, item in window]
        warn_full("predict", full, readable, most)

    def _predict(self, name: str, item: object, logits: Iterator[Tensor]) -> Prediction:
        if isinstance(item, str):
            return Prediction(name, None, error=item.removeprefix(f"{name}: "))
        if not torch.isfinite(found := next(logits)).all():
            raise UserError(f"{name}: this model's logits are NaN or inf: its training diverged, see metrics.jsonl")
        return self._interpret(name, found.float().cpu())

    def save(self, out: str | Path, shard: str | None = None) -> PredictionFile:
        """Write the predictions as a table, a .csv, .jsonl or .parquet file (docs/predict.md), in bounded memory.

        `shard`: "i/n" computes share i of n only; the last one to finish writes the file. Processes of torchrun share the work
        by themselves. Finished shards are kept in the folder `out`.parts: the same call, with any number of shares, computes
        only what is missing. The file is written atomically: it is complete, or not there.

        Raises UserError for another ending, if the file is the input, if another process is writing it, if `out`.parts was
        started with other settings, and as iterating does."""
        path, share = local_path(out), share_of(shard)
        if path.suffix not in TABLE_WRITERS:
            raise UserError(f"{path}: unknown file extension; use {', '.join(TABLE_WRITERS)}")
        output_file(path, "--out", self._inputs)
        shards = PredictionShards(path.with_name(f"{path.name}.parts"), len(self), share, self.columns)
        if not shards.blocks:
            return PredictionFile(path, 0, [], 0, f"{share} of {len(self)} inputs is empty")
        digests = {"model": model_digest(self.model), "content": content_digest(self.modality, self.rows)}
        shards.refuse_complete(path)
        with shards.opened(self.settings | digests, "predicts"):
            shards.fill("predict", self._windows)
            if not shards.is_last():
                return PredictionFile(path, sum(map(len, shards.blocks)), [], 0, shards.status())
            unreadable, num_unreadable = shards.unreadable()
            if num_unreadable == len(self):
                shards.remove()
                raise self._none_decoded(unreadable)
            kind = getattr(self.modality, "kind", "")
            write_table(path, shards.tables(), metadata_columns(self.rows, "" if kind == "text" else kind))
            shards.remove()
            return PredictionFile(path, len(self), unreadable, num_unreadable)


def predict(
    model: Model | str | Path,
    inputs: Any,
    top_k: int = 1,
    threshold: float | None = None,
    device: str = "auto",
    split: str = "train",
    batch: int | None = None,
    column: str | None = None,
    second: str | None = None,
    modality: CustomClass | None = None,
    follow_links: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    overrides: Iterable[str] | JsonMapping = (),
) -> Predictions:
    """What a fine-tuned model says of many inputs: iterate over the result, or write it by `.save("predictions.csv")`.

    `model`: a Model, or anything that `data2vec.load` opens, with a head. `inputs`: a dataset in any form that `data.train`
    accepts, or a `datasets.Dataset` or `DatasetDict`, of which `split` is used; or a list of inputs as for `Model.features`.
    `top_k`: how many of the most probable labels to list (`Prediction.top`). `threshold`: of multi-label classification, the
    smallest probability of a predicted label, 0.5 by default. `device`: auto, cpu, cuda or cuda:N. `batch`: the maximum number
    of positions per batch; results do not depend on it. `column`, `second`: the columns of a dataset's signal, and of the
    second text of pairs, as `data.column` and `data.second`. `modality`: see `data2vec.load`. `follow_links`: as
    `data.follow_links`. `precision`: bf16 computes matrix products in bfloat16. `compile`: compile the
    Transformer blocks (torch.compile). `overrides`: settings by which the inputs are read, such as {"data.rate": 50}.

    Recordings of more than 40 seconds are encoded in overlapping chunks, and classified by all of their positions together, as
    in evaluation. Inputs that cannot be decoded have a prediction with an `error`.

    Raises UserError for a model without a head, if there are no inputs, and for options that the head does not have."""
    loaded, place = load(model, modality), resolve_device(device, local_rank())
    head = require_head(loaded, "this model" if isinstance(model, Model) else model)
    _check_options(head.settings, top_k, threshold)
    if second is not None and getattr(loaded.modality, "kind", None) != "text":
        raise UserError(f"second: {second!r}, but this is no model of texts; only these come in pairs")
    reading = list_overrides(overrides)
    reader, rows = open_inputs(loaded.recipe, inputs, split, column, follow_links, second, reading)
    if loaded.device != place:
        loaded = copy.deepcopy(loaded).to(place)
        head = require_head(loaded, "this model")
    positions = max_positions(place, batch)
    threshold = THRESHOLD if threshold is None else threshold
    check_computation(place, precision, compile)
    settings = {"top_k": top_k, "threshold": threshold, "split": split, "device": place.type, "batch": positions}
    settings |= {"precision": precision, "compile": compile, "second": getattr(reader.data, "second", None)}
    settings |= {"reading": reading}
    return Predictions(loaded, head, reader, rows, positions, settings, inputs)


def _check_options(head: CTCSettings | ClassifierSettings, top_k: int, threshold: float | None) -> None:
    if not isinstance(top_k, int):
        raise UserError(f"top_k: {top_k!r} is not an integer")
    if not isinstance(threshold, int | float | None):
        raise UserError(f"threshold: {threshold!r} is not a number")
    problem = head.problem_type if isinstance(head, ClassifierSettings) else "transcription"
    if problem in ("transcription", "regression"):
        if top_k != 1:
            what = "transcripts" if problem == "transcription" else "a number"
            raise UserError(
                f"top_k: {top_k}, but this model predicts {what}, which has no probabilities of labels; leave it out"
            )
    elif not 1 <= top_k <= len(head.labels):
        raise UserError(f"top_k: {top_k}; this model has {len(head.labels)} labels: give a number from 1 to {len(head.labels)}")
    if threshold is None:
        return
    if problem != "multi_label_classification":
        raise UserError(
            f"threshold: {threshold:g}, but only multi-label classification has one, and this is {problem}; leave it out"
        )
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold: {threshold:g} is not a probability; give a number from 0 to 1")


Interpreter = Callable[[str, Tensor], Prediction]
"""The prediction of an input by its name and logits, (V,) or (T, V), float32 on the CPU."""


def _interpreter(head: CTCSettings | ClassifierSettings, top_k: int, threshold: float) -> Interpreter:
    if isinstance(head, CTCSettings):
        decoder = build_ctc_decoder(CTCVocabulary(head.labels), CTCDecodingSettings())
        return lambda name, logits: Prediction(name, decoder(logits[None], [len(logits)])[0].text)
    if head.problem_type == "regression":
        return lambda name, logits: Prediction(name, float(logits[0]))
    multi_label = head.problem_type == "multi_label_classification"

    def classify(name: str, logits: Tensor) -> Prediction:
        probabilities = (logits.double().sigmoid() if multi_label else logits.double().softmax(-1)).tolist()
        order = logits.argsort(descending=True, stable=True).tolist()  # of equal logits the first, as argmax
        ranked = [(head.labels[index], probabilities[index]) for index in order]
        top = tuple(ranked[:top_k])
        if not multi_label:
            return Prediction(name, *ranked[0], top)
        chosen = [(label, probability) for label, probability in ranked if probability >= threshold]
        return Prediction(name, tuple(label for label, _ in chosen), tuple(probability for _, probability in chosen), top)

    return classify
