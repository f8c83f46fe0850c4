"""What is said in recordings of any length, with the time of every word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data2vec.batch import Batch
from data2vec.distributed import resolve_device
from data2vec.errors import BadExample, UserError
from data2vec.feature_extraction import read_input
from data2vec.interop.load import load
from data2vec.model import Model
from data2vec.nn import heads
from data2vec.nn.encoder import undisturbed
from data2vec.nn.heads import CTC
from data2vec.recipe.task_settings import DecodeSettings
from data2vec.tasks.asr.decoding import Word, greedy
from data2vec.tasks.asr.long_audio import chunks, join
from data2vec.tasks.asr.vocabulary import Alphabet
from data2vec.tasks.finetuning.evaluate import searching


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    name: str
    """The file."""
    text: str
    words: tuple[Word, ...]
    """Each with the seconds at which it begins and ends."""
    seconds: float
    """How long the recording is."""
    bad: str | None = None
    """Why it could not be read, if it could not."""


@torch.inference_mode()
def transcribe(
    model: str | Path | Model,
    audio: Sequence[str | Path],
    decode: DecodeSettings | None = None,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 2.0,
    device: str = "auto",
) -> Iterator[Transcript]:
    """The transcript of each recording, one after the other.

    `model`: a model fine-tuned by CTC, anything that `data2vec.load` opens. `audio`: files. `decode`: greedy by default. Longer
    recordings are taken in pieces of `chunk_seconds` that overlap by `overlap_seconds`, and joined frame by frame, so
    only samples and logits grow with their length. Raises UserError when the model has no such head."""
    given = load(model)
    if not isinstance(given.head, CTC):
        raise UserError(f"{model}: is not a model that recognises speech; fine-tune it by CTC first (data2vec finetune)")
    alphabet, decode = Alphabet(given.head.settings.labels), decode or DecodeSettings()
    search = searching(alphabet, decode)
    on = resolve_device(device)
    encoder, head = undisturbed(given.encoder.to(on)), given.head.to(on)
    settings: Any = given.modality.settings
    step = given.modality.seconds_per_position or 1.0
    for file in audio:
        try:
            wave = read_input(given.modality, Path(file), str(file))
        except BadExample as error:
            yield Transcript(str(file), "", (), 0.0, str(error))
            continue
        pieces = chunks(len(wave), chunk_seconds, overlap_seconds, settings.conv_layers)
        parts = [heads.logits(encoder, head, Batch(wave[None, piece.samples].to(on)))[0][0].float().cpu() for piece in pieces]
        logits = join(parts, pieces)
        given_logits = logits[None], [len(logits)]
        best = (greedy(*given_logits, alphabet, step) if search is None else search(*given_logits, step))[0]
        yield Transcript(str(file), best.text, best.words, len(wave) / 16000)
