"""A word n-gram model of transcripts: interpolated, modified Kneser-Ney (Chen and Goodman, 1999), as an ARPA file.

The same estimate as that of KenLM's lmplz without pruning (Heafield and others, 2013).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log10
from pathlib import Path

from data2vec.errors import UserError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]


@dataclass(frozen=True)
class NGram:
    """Probabilities as log10, as the file has them."""

    probabilities: dict[Gram, float]
    """Of the last word of every n-gram after those before it."""
    backoffs: dict[Gram, float]
    """Added where an n-gram is not there and its last words are asked instead."""

    @cached_property
    def order(self) -> int:
        """Words of the longest n-grams."""
        return max(map(len, self.probabilities))

    def word(self, word: str, before: Sequence[str]) -> float:
        """log10-probability of a word after others; these begin with "<s>" where they begin the sentence."""
        known = word if (word,) in self.probabilities else UNKNOWN
        context = tuple(w if (w,) in self.probabilities else UNKNOWN for w in before)[-(self.order - 1) or len(before) :]
        backoff = 0.0
        while (*context, known) not in self.probabilities:
            backoff += self.backoffs.get(context, 0.0)
            context = context[1:]
        return backoff + self.probabilities[*context, known]

    def sentence(self, text: str) -> float:
        """log10-probability of a sentence and its end."""
        words = [BEGIN, *text.split(), END]
        return sum(self.word(words[i], words[:i]) for i in range(1, len(words)))

    def write(self, path: str | Path) -> None:
        """The model as an ARPA file, which KenLM and flashlight-text read."""
        orders = [sorted(gram for gram in self.probabilities if len(gram) == n + 1) for n in range(self.order)]
        with Path(path).open("w", encoding="utf-8") as file:
            file.write("\\data\\\n" + "".join(f"ngram {n}={len(grams)}\n" for n, grams in enumerate(orders, 1)))
            for n, grams in enumerate(orders, 1):
                file.write(f"\n\\{n}-grams:\n")
                for gram in grams:
                    backoff = f"\t{self.backoffs.get(gram, 0.0):.7g}" if n < self.order else ""
                    file.write(f"{self.probabilities[gram]:.7g}\t{' '.join(gram)}{backoff}\n")
            file.write("\n\\end\\\n")


def estimate(texts: Iterable[str], order: int = 4) -> NGram:
    """A model of the words of sentences, one a text; empty ones are passed over.

    Raises UserError where there is no word, or a word is one that the form keeps for itself."""
    if order < 1:
        raise UserError(f"order: {order}; at least 1")
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
    """Of every order: how often an n-gram is there; but if a longer one ends with it, after how many words it is there."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = (BEGIN, *text.split(), END)
        if kept := {BEGIN, END, UNKNOWN} & set(words[1:-1]):
            raise UserError(f"{text!r}: {kept.pop()} is no word in a language model; take it out")
        if len(words) > 2:
            for n, grams in enumerate(counts, 1):
                grams.update(words[i : i + n] for i in range(len(words) - n + 1))
    del counts[0][BEGIN,]
    if not counts[0]:
        raise UserError("a language model needs sentences; there is no word in these")
    for shorter, longer in pairwise(counts):  # from short to long: `longer` still has plain counts
        after = Counter(gram[1:] for gram in longer)
        shorter.update({gram: after[gram] - shorter[gram] for gram in shorter if gram[0] != BEGIN})
    return counts


def _discounts(grams: Counter[Gram]) -> tuple[float, ...]:
    """What is taken off counts of 0, 1, 2, and 3 or more; constants where there are too few n-grams to tell (as lmplz)."""
    n = [sum(count == c for count in grams.values()) for c in range(5)]
    if all(n[1:]):
        y = n[1] / (n[1] + 2 * n[2])
        found = (0.0, *(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)))
        if all(0 < d < c for c, d in enumerate(found) if c):
            return found
    return (0.0, 0.5, 1.0, 1.5)
