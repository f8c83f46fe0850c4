"""Greedy CTC decoding: the most likely label of every frame, without repeats and blanks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from data2vec.tasks.asr.vocabulary import BLANK, CTCVocabulary

IMPOSSIBLE = -1e9
"""The log-probability of labels that must not be decoded; finite, so that sums and differences are never NaN."""


@dataclass(frozen=True)
class Word:
    """A word and its times: from the first frame of its first label to the end of the last frame of its last label.

    CTC labels are peaks: words look shorter than they were spoken, and up to a few frames late."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Hypothesis:
    """The recognised text of one utterance."""

    text: str
    score: float
    """Its log-probability; from a beam search, including language model and word scores."""
    words: tuple[Word, ...]


class GreedyDecoder:
    """Takes the most likely label of every frame, collapses repeats and drops blanks."""

    def __init__(self, vocabulary: CTCVocabulary):
        self.vocabulary = vocabulary

    def __call__(self, logits: Tensor, lengths: Sequence[int] | Tensor, seconds_per_position: float = 1) -> list[Hypothesis]:
        """The hypothesis of each row of `logits` (B, T, V), of which the first `lengths` (B) frames are valid.

        Times are in frames, or in seconds if `seconds_per_position` is the length of a frame."""
        scores, paths = log_probabilities(logits, self.vocabulary).max(-1)
        hypotheses = []
        for row, path, length in zip(scores, paths.tolist(), map(int, lengths), strict=True):
            words = words_with_times(path[:length], self.vocabulary, seconds_per_position)
            hypotheses.append(Hypothesis(" ".join(word.text for word in words), row[:length].sum().item(), words))
        return hypotheses


def log_probabilities(logits: Tensor, vocabulary: CTCVocabulary) -> Tensor:
    """float32 log-probabilities on the CPU; special labels other than the blank get IMPOSSIBLE."""
    scores = logits.detach().float().cpu().log_softmax(-1)
    scores[..., [i for i in vocabulary.special if i != BLANK]] = IMPOSSIBLE
    return scores


def words_with_times(path: Sequence[int], vocabulary: CTCVocabulary, scale: float = 1) -> tuple[Word, ...]:
    """The words of a path (one label id per frame), with their times in frames times `scale`."""
    words: list[list[int]] = [[]]
    """The frames of each word's labels."""
    before = BLANK
    for frame, label in enumerate(path):
        if label == vocabulary.separator or (label != before and vocabulary.starts_word(label)):
            words.append([])
        if label not in (BLANK, vocabulary.separator):
            words[-1].append(frame)
        before = label
    texts = ((vocabulary.decode(collapse_repeats(path[frames[0] : frames[-1] + 1])), frames) for frames in words if frames)
    return tuple(Word(text, frames[0] * scale, (frames[-1] + 1) * scale) for text, frames in texts if text)


def collapse_repeats(path: Iterable[int]) -> list[int]:
    """The labels of a path, with repeats merged and blanks removed."""
    return [label for label, _ in groupby(path) if label != BLANK]
