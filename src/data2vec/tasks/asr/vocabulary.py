"""What the labels of a CTC head spell: text to label ids, and back."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from data2vec.errors import UserError

BLANK = 0
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""The first labels of an alphabet, as fairseq has them; the blank is the first of all."""
BAR = "|"
MARK = "▁"
"""Begins a word, in pieces of words."""


class Alphabet:
    """The labels of a head (`CTCSettings.labels`); the first is the blank.

    Words are parted by the mark "▁" at the beginning of labels, where any has it; else by the label "|", else by the label
    " ". The blank, and what stands in <> or [], such as "<pad>", is never part of a text.

    Raises UserError where a label is there twice."""

    def __init__(self, labels: Sequence[str]):
        self.labels = tuple(labels)
        if twice := [label for label, count in Counter(labels).items() if count > 1]:
            raise UserError(f"labels: {twice[0]!r} is there more than once; every logit needs a label of its own")
        special = [i for i, label in enumerate(labels) if i == BLANK or re.fullmatch(r"<.+>|\[.+\]|", label)]
        self.special = tuple(special)
        self.marked = any(label.startswith(MARK) for label in labels)
        parting = [label for label in (BAR, " ") if label in labels and not self.marked]
        self.separator = self.labels.index(parting[0]) if parting else None
        """The label between words; None where a mark parts them, or nothing does."""
        self.ids = {label: i for i, label in enumerate(labels) if i not in special and i != self.separator}
        """The labels that spell something."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Alphabet":
        """The letters of these texts, commonest first, after the special labels of fairseq and "|".

        Raises UserError where a text holds "|"."""
        counts = Counter(letter for text in texts for word in text.split() for letter in word)
        if BAR in counts:
            raise UserError(f"{counts[BAR]} times there is {BAR!r} in the texts, which parts words here; take it out of them")
        return cls((*SPECIAL, BAR, *sorted(counts, key=lambda letter: (-counts[letter], letter))))

    def encode(self, text: str) -> list[int]:
        """The labels of a text, always the longest that fits; a separator also ends it, as in fairseq.

        Letters are made capitals or small where the alphabet has only such. Raises UserError naming what no label spells."""
        words = self._cased(text).split()
        end = [] if self.separator is None else [self.separator]
        parts = words if end else ["".join(MARK + word for word in words) if self.marked else " ".join(words)]
        if unknown := sorted(set("".join(self._longest.sub("", part) for part in parts))):
            names = ", ".join(map(repr, unknown))
            raise UserError(f"no label spells {names}, which {text!r} has; leave the text out, or spell it with {self.sample}")
        return [label for part in parts for label in (*(self.ids[each] for each in self._longest.findall(part)), *end)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of labels whose repeats are merged."""
        text = "".join(" " if i == self.separator else self.labels[i] for i in ids if i not in self.special)
        return " ".join((text.replace(MARK, " ") if self.marked else text).split())

    @property
    def sample(self) -> str:
        """Some of the labels, for a message."""
        some = list(self.ids)[:40]
        return " ".join(some) + (" …" if len(self.ids) > len(some) else "")

    def begins(self, i: int) -> bool:
        """Whether the label begins a word wherever it stands."""
        return self.marked and self.labels[i].startswith(MARK)

    def _cased(self, text: str) -> str:
        letters = "".join(self.ids)
        if letters.lower() == letters.upper() or letters not in (letters.lower(), letters.upper()):
            return text
        return text.upper() if letters == letters.upper() else text.lower()

    @cached_property
    def _longest(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)")
