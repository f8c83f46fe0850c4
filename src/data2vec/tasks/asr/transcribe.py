"""Transcription of recordings of any length, with the times of every word."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE
from data2vec.distributed import resolve_device
from data2vec.errors import CorruptExample, UserError
from data2vec.feature_extraction import head_logits
from data2vec.inputs import list_inputs, read_input
from data2vec.interop.load import load
from data2vec.modalities.chunking import CHUNK_SECONDS, OVERLAP_SECONDS, split_into_chunks
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.nn.encoder import padding_invariant
from data2vec.nn.heads import CTC
from data2vec.recipe.task_settings import CTCDecodingSettings
from data2vec.tasks.asr.decoding import build_ctc_decoder
from data2vec.tasks.asr.greedy import Word
from data2vec.tasks.asr.vocabulary import CTCVocabulary


@dataclass(frozen=True)
class Transcript:
    """The transcript of a recording."""

    name: str
    """The file."""
    text: str
    words: tuple[Word, ...]
    """The words with their start and end times in seconds."""
    seconds: float
    """Duration of the recording."""
    error: str | None = None
    """Why the file cannot be decoded; None if it was."""


@torch.inference_mode()
def transcribe(
    model: str | Path | Model,
    audio: Any,
    decode: CTCDecodingSettings | None = None,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    device: str = "auto",
    modality: CustomClass | None = None,
) -> Iterator[Transcript]:
    """Transcribe recordings, one after the other.

    `model`: anything that `data2vec.load` opens and that was fine-tuned with CTC. `audio`: files, or other inputs as of
    `Model.features`. `decode`: greedy by default. Longer recordings are split into chunks of `chunk_seconds` that overlap by
    `overlap_seconds` and whose outputs are joined, so only samples and outputs grow with their length. `modality`: see
    `data2vec.load`. Raises UserError if the model has no CTC head."""
    loaded = load(model, modality)
    if not isinstance(loaded.head, CTC):
        raise UserError(f"{model}: has no speech recognition head; fine-tune it with CTC first (data2vec finetune)")
    decoder = build_ctc_decoder(CTCVocabulary(loaded.head.settings.labels), decode or CTCDecodingSettings())
    place = resolve_device(device)
    encoder, head = padding_invariant(loaded.encoder.to(place)), loaded.head.to(place)
    settings: Any = loaded.modality.settings
    step = loaded.modality.seconds_per_position or 1.0
    for number, value in enumerate(list_inputs(loaded.modality, audio), 1):
        name = str(value) if isinstance(value, str | PathLike) else f"input {number}"
        try:
            wave = read_input(loaded.modality, value, name)
        except CorruptExample as error:
            yield Transcript(name, "", (), 0.0, str(error))
            continue
        chunks = split_into_chunks(len(wave), chunk_seconds, overlap_seconds, settings.conv_layers)
        logits = head_logits(encoder, head, Batch(wave[None]), chunks)[0].float().cpu()
        (best,) = decoder(logits, [logits.shape[1]], step)
        yield Transcript(name, best.text, best.words, len(wave) / SAMPLE_RATE)
