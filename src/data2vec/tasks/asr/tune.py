"""Which weights of a beam search recognise best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.metrics import error_rates

RANGES = {"lm_weight": (0.0, 5.0), "word_score": (-5.0, 5.0), "silence_score": (-8.0, 0.0)}
"""Those that fairseq's results were searched in."""


@dataclass(frozen=True)
class Trial:
    """Weights, and the word error rate with them."""

    wer: float
    lm_weight: float
    word_score: float
    silence_score: float


@dataclass(frozen=True)
class Found:
    """What a search has tried, the best first."""

    search: BeamSearch
    """With the best weights."""
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        head = f"{'WER':>8}{'lm_weight':>11}{'word_score':>12}{'silence_score':>15}"
        rows = [f"{t.wer:8.2%}{t.lm_weight:11.2f}{t.word_score:12.2f}{t.silence_score:15.2f}" for t in self.trials]
        return "\n".join([head, *rows])


def tune(
    search: BeamSearch,
    logits: Sequence[Tensor],
    references: Sequence[str],
    trials: int = 128,
    seed: int = 0,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
) -> Found:
    """Try the weights that `search` has, and `trials` others: a Latin hypercube of `ranges`, drawn with the seed.

    `logits`: (T, V) of every utterance of a validation set, with its text in `references`. The least word error rate wins; of
    equal ones, that with the least weights (their sum, without signs). Raises ValueError where there are not as many."""
    from tqdm import tqdm

    generator = np.random.default_rng(seed)
    places = [(generator.permutation(trials) + generator.random(trials)) / trials for _ in ranges]
    drawn = [
        {name: low + float(place) * (high - low) for (name, (low, high)), place in zip(ranges.items(), column, strict=True)}
        for column in zip(*places, strict=True)
    ]
    start = {name: getattr(search.settings, name) for name in RANGES}
    tried = []
    for weights in tqdm([start, *(start | each for each in drawn)], "weights", unit="trial", leave=False, disable=None):
        weighed = search.weighing(**weights)
        texts = [weighed(each[None], [len(each)])[0].text for each in logits]
        tried.append(Trial(error_rates(texts, references).wer, **weights))
    tried.sort(key=lambda t: (t.wer, t.lm_weight + abs(t.word_score) + abs(t.silence_score)))
    best = tried[0]
    return Found(search.weighing(**{name: getattr(best, name) for name in RANGES}), tuple(tried))
