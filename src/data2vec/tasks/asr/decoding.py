"""Logits of a CTC head to text: the likeliest label of every frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from data2vec.tasks.asr.vocabulary import BLANK, Alphabet

IMPOSSIBLE = -1e9
"""Finite, so that sums and differences stay numbers."""


@dataclass(frozen=True)
class Word:
    """A word, and where it was heard: from the first frame of its first label to behind the last of its last one.

    Labels are peaks: a word is shown shorter than it was spoken, and up to some frames late."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised."""

    text: str
    score: float
    """Its log-probability; in a beam search, with all that was added."""
    words: tuple[Word, ...]


def greedy(
    logits: Tensor, lengths: Sequence[int] | Tensor, alphabet: Alphabet, seconds_per_position: float = 1
) -> list[Hypothesis]:
    """The likeliest label of every frame, repeats merged and blanks left out.

    `logits` (B, T, V), of which the first `lengths` (B) frames are there. Times are in frames, or in seconds where it is
    given how long one is."""
    scores, paths = log_probabilities(logits, alphabet).max(-1)
    found = []
    for row, path, length in zip(scores, paths.tolist(), map(int, lengths), strict=True):
        words = spoken(path[:length], alphabet, seconds_per_position)
        found.append(Hypothesis(" ".join(word.text for word in words), row[:length].sum().item(), words))
    return found


def log_probabilities(logits: Tensor, alphabet: Alphabet) -> Tensor:
    """float32 log-probabilities on the CPU; special labels other than the blank become impossible."""
    scores = logits.detach().float().cpu().log_softmax(-1)
    scores[..., [i for i in alphabet.special if i != BLANK]] = IMPOSSIBLE
    return scores


def spoken(path: Sequence[int], alphabet: Alphabet, scale: float = 1) -> tuple[Word, ...]:
    """The words of one label a frame, with their times."""
    words: list[list[int]] = [[]]
    """The frames of each word's labels."""
    before = BLANK
    for frame, label in enumerate(path):
        if label == alphabet.separator or (label != before and alphabet.begins(label)):
            words.append([])
        if label not in (BLANK, alphabet.separator):
            words[-1].append(frame)
        before = label
    found = ((alphabet.decode(merged(path[frames[0] : frames[-1] + 1])), frames) for frames in words if frames)
    return tuple(Word(text, frames[0] * scale, (frames[-1] + 1) * scale) for text, frames in found if text)


def merged(path: Iterable[int]) -> list[int]:
    """The labels of a path: repeats once, blanks not at all."""
    return [label for label, _ in groupby(path) if label != BLANK]
