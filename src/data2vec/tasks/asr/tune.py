"""Search for the beam search weights with the lowest word error rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from data2vec.console.progress import progress
from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.metrics import error_rates

RANGES = {"lm_weight": (0.0, 5.0), "word_score": (-5.0, 5.0), "silence_score": (-8.0, 0.0)}
"""The ranges that fairseq's published results were searched in."""


@dataclass(frozen=True)
class Trial:
    """Weights, and the word error rate with them."""

    wer: float
    lm_weight: float
    word_score: float
    silence_score: float

    @property
    def weights(self) -> dict[str, float]:
        """The weights, by the names of the settings."""
        return {name: getattr(self, name) for name in RANGES}


@dataclass(frozen=True)
class TuningResult:
    """All trials, the best first."""

    search: BeamSearch
    """With the best weights."""
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        head = f"{'WER':>8}{'lm_weight':>11}{'word_score':>12}{'silence_score':>15}"
        rows = [f"{t.wer:8.2%}{t.lm_weight:11.2f}{t.word_score:12.2f}{t.silence_score:15.2f}" for t in self.trials]
        return "\n".join([head, *rows])


def tune_weights(
    search: BeamSearch,
    logits: Sequence[Tensor],
    references: Sequence[str],
    trials: int = 128,
    seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
) -> TuningResult:
    """Try the weights of `search` and `trials` more: a Latin hypercube sample of `ranges`, drawn with the seed.

    `logits`: (T, V) of each utterance of a validation set, with its text in `references`. The lowest word error rate wins; on
    a tie, the smallest sum of absolute weights. Raises ValueError if logits and references differ in number."""
    from scipy.stats import qmc

    if len(logits) != len(references):
        raise ValueError(f"{len(logits)} utterances, {len(references)} references")
    references = [search.vocabulary.normalize(text) for text in references]
    low, high = zip(*ranges.values(), strict=True)
    sample = qmc.scale(qmc.LatinHypercube(len(ranges), rng=seed).random(trials), low, high)
    start = {name: getattr(search.settings, name) for name in RANGES}
    candidates = [start, *(start | dict(zip(ranges, map(float, row), strict=True)) for row in sample)]
    results = []
    for weights in progress(candidates, "weights", unit="trial"):
        candidate = search.with_weights(**weights)
        texts = [search.vocabulary.normalize(candidate(each[None], [len(each)])[0].text) for each in logits]
        results.append(Trial(error_rates(texts, references).wer, **weights))
    results.sort(key=lambda t: (t.wer, t.lm_weight + abs(t.word_score) + abs(t.silence_score)))
    return TuningResult(search.with_weights(**results[0].weights), tuple(results))
