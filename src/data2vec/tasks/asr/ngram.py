"""Word n-gram language models: interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1999), saved as ARPA files.

The same estimate as KenLM's lmplz without pruning (Heafield et al., 2013).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log10
from pathlib import Path

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]


@dataclass(frozen=True)
class NGram:
    """An n-gram language model; probabilities are log10, as in an ARPA file."""

    probabilities: dict[Gram, float]
    """log10 p(last word | preceding words) of every n-gram."""
    backoffs: dict[Gram, float]
    """log10 weight of every context when an n-gram is missing and a shorter one is used."""

    @cached_property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return max(map(len, self.probabilities))

    def score_word(self, word: str, before: Sequence[str]) -> float:
        """log10-probability of a word after the words `before`, which start with "<s>" at the start of a sentence."""
        known = word if (word,) in self.probabilities else UNKNOWN
        context = tuple(w if (w,) in self.probabilities else UNKNOWN for w in before)[-(self.order - 1) or len(before) :]
        backoff = 0.0
        while (*context, known) not in self.probabilities:
            backoff += self.backoffs.get(context, 0.0)
            context = context[1:]
        return backoff + self.probabilities[*context, known]

    def score_sentence(self, text: str) -> float:
        """log10-probability of a sentence, including its end."""
        words = [BEGIN, *text.split(), END]
        return sum(self.score_word(words[i], words[:i]) for i in range(1, len(words)))

    def save_arpa(self, path: str | Path) -> None:
        """Write an ARPA file, which KenLM and flashlight-text read."""
        orders = [sorted(gram for gram in self.probabilities if len(gram) == n + 1) for n in range(self.order)]
        with atomic_write(Path(path)) as tmp, tmp.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n" + "".join(f"ngram {n}={len(grams)}\n" for n, grams in enumerate(orders, 1)))
            for n, grams in enumerate(orders, 1):
                file.write(f"\n\\{n}-grams:\n")
                for gram in grams:
                    backoff = f"\t{self.backoffs.get(gram, 0.0):.7g}" if n < self.order else ""
                    file.write(f"{self.probabilities[gram]:.7g}\t{' '.join(gram)}{backoff}\n")
            file.write("\n\\end\\\n")


def estimate_ngram(texts: Iterable[str], order: int = 4) -> NGram:
    """Estimate a model from sentences, one per text; empty ones are skipped.

    Raises UserError if there is no word at all, or one that ARPA files reserve."""
    if order < 1:
        raise UserError(f"order: {order}; must be at least 1")
    counts = _counts(texts, order)
    vocabulary = {gram[0] for gram in counts[0]} | {UNKNOWN}
    uniform = -log10(len(vocabulary))
    probabilities: dict[Gram, float] = {(BEGIN,): -99.0}
    backoffs: dict[Gram, float] = {}
    for n, grams in enumerate(counts, 1):
        discounts = _discounts(grams)
        totals: Counter[Gram] = Counter()
        freed: dict[Gram, float] = defaultdict(float)
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            freed[gram[:-1]] += discounts[min(count, 3)]
        for context, total in totals.items():
            backoffs[context] = log10(freed[context] / total)
        for gram, count in grams.items():
            context = gram[:-1]
            lower = probabilities[gram[1:]] if n > 1 else uniform
            share = (count - discounts[min(count, 3)]) / totals[context]
            probabilities[gram] = log10(share + 10 ** (backoffs[context] + lower))
        if n == 1:
            probabilities[(UNKNOWN,)] = backoffs[()] + uniform
    del backoffs[()]
    return NGram(probabilities, backoffs)


def _counts(texts: Iterable[str], order: int) -> list[Counter[Gram]]:
    """The counts of each order: occurrences for the highest, and for n-grams at the start of a sentence; otherwise the number
    of different words that precede the n-gram (continuation counts)."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = (BEGIN, *text.split(), END)
        if reserved := {BEGIN, END, UNKNOWN} & set(words[1:-1]):
            raise UserError(f"{text!r}: {reserved.pop()} is reserved in a language model; remove it")
        if len(words) > 2:
            for n, grams in enumerate(counts, 1):
                grams.update(words[i : i + n] for i in range(len(words) - n + 1))
    del counts[0][BEGIN,]
    if not counts[0]:
        raise UserError("the texts contain no word; a language model needs sentences")
    for shorter, longer in pairwise(counts):  # from short to long: `longer` still has occurrence counts
        after = Counter(gram[1:] for gram in longer)
        shorter.update({gram: after[gram] - shorter[gram] for gram in shorter if gram[0] != BEGIN})
    return counts


def _discounts(grams: Counter[Gram]) -> tuple[float, ...]:
    """The discounts of counts 0, 1, 2, and 3 or more; constants if there are too few n-grams to estimate them (as lmplz)."""
    n = [sum(count == c for count in grams.values()) for c in range(5)]
    if all(n[1:]):
        y = n[1] / (n[1] + 2 * n[2])
        discounts = (0.0, *(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)))
        if all(0 < d < c for c, d in enumerate(discounts) if c):
            return discounts
    return (0.0, 0.5, 1.0, 1.5)
