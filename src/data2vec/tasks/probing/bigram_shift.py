"""Bigram shift: does a sentence have two of its adjacent words swapped? (Conneau et al., 2018, "What you can cram into a single
vector".) A probe of word order that needs nothing but text."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data2vec.atomic_io import write_text
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.errors import UserError

MIN_WORDS, MAX_WORDS = 5, 30
"""Words of a sentence that is used."""
SPLITS = {"train": 0.8, "dev": 0.1, "test": 0.1}
"""The tables and their shares of the sentences."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def make_bigram_shift(data: str | Path, out: str | Path, sentences: int = 10_000, seed: int = 0, split: str = "train") -> None:
    """Write `out`/train.tsv, dev.tsv and test.tsv, with columns text and label: "shifted", where two different adjacent words
    were swapped at random, or "original"; about half each. No sentence is in two tables.

    `data`: a folder or another dataset of texts, of which `split` is read. `sentences`: their number, at most as many as there
    are. The same `seed` gives the same tables. Raises UserError for fewer than 100 sentences."""
    rng = np.random.default_rng(seed)
    known = sorted(dict.fromkeys(_read_sentences(str(data), split)))
    if len(known) < 100:
        raise UserError(
            f"{data}: {len(known)} different sentences of {MIN_WORDS} to {MAX_WORDS} words; at least 100 are needed"
        )
    chosen = [known[index] for index in rng.permutation(len(known))[:sentences]]
    rows = [(_swap(sentence, rng), "shifted") if rng.random() < 0.5 else (sentence, "original") for sentence in chosen]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    ends = np.round(np.cumsum([0.0, *SPLITS.values()]) * len(rows)).astype(int)
    for name, first, last in zip(SPLITS, ends[:-1], ends[1:], strict=True):
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows[first:last])]
        write_text(out / f"{name}.tsv", "\n".join(lines) + "\n")


def _read_sentences(data: str, split: str) -> Iterator[str]:
    """Sentences of a usable length that have two different adjacent words, with single spaces between words."""
    for row in open_dataset(data, "text", split):
        for paragraph in re.split(r"\n\s*\n", "".join(read_text(row))):
            for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                words = sentence.split()
                if MIN_WORDS <= len(words) <= MAX_WORDS and len(set(words)) > 1:
                    yield sentence


def _swap(sentence: str, rng: np.random.Generator) -> str:
    """With two different adjacent words swapped."""
    words = sentence.split()
    places = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
    i = int(rng.choice(places))
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)
