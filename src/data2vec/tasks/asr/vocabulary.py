"""The vocabulary of a CTC head: text to label ids, and back."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from data2vec.errors import UserError

BLANK = 0
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""The first labels of a fairseq vocabulary; the blank is the very first."""
SEPARATOR = "|"
"""The label between words in fairseq's letter vocabularies."""
WORD_BOUNDARY = "▁"
"""The prefix of labels that start a word, as in SentencePiece."""


class CTCVocabulary:
    """The labels of a CTC head (`CTCSettings.labels`); the first is the blank.

    Words start at labels with the prefix "▁", if any label has it; otherwise they are separated by the label "|", or else by
    " ". The blank, and labels in <> or [] such as "<pad>", never become text.

    Raises UserError for a duplicate label."""

    def __init__(self, labels: Sequence[str]):
        self.labels = tuple(labels)
        if duplicates := [label for label, count in Counter(labels).items() if count > 1]:
            raise UserError(f"labels: {duplicates[0]!r} occurs more than once; every logit needs a label of its own")
        special = [i for i, label in enumerate(labels) if i == BLANK or re.fullmatch(r"<.+>|\[.+\]|", label)]
        self.special = tuple(special)
        self.word_boundary_prefix = any(label.startswith(WORD_BOUNDARY) for label in labels)
        separators = [label for label in (SEPARATOR, " ") if label in labels and not self.word_boundary_prefix]
        self.separator = self.labels.index(separators[0]) if separators else None
        """The id of the label between words; None if a prefix marks them, or nothing does."""
        self.ids = {label: i for i, label in enumerate(labels) if i not in special and i != self.separator}
        """The labels that spell text, and their ids."""

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CTCVocabulary":
        """The letters of these texts, most frequent first, after fairseq's special labels and "|".

        Raises UserError if a text contains "|"."""
        counts = Counter(letter for text in texts for word in text.split() for letter in word)
        if SEPARATOR in counts:
            raise UserError(
                f"the texts contain {SEPARATOR!r} {counts[SEPARATOR]} times, which separates words in the vocabulary; remove it"
            )
        return cls((*SPECIAL, SEPARATOR, *sorted(counts, key=lambda letter: (-counts[letter], letter))))

    def encode(self, text: str) -> list[int]:
        """The label ids of a text, longest match first; a separator also follows the last word, as in fairseq.

        The text is converted to upper or lower case if the vocabulary has only one case. Raises UserError naming characters
        that no label spells."""
        words = self._match_case(text).split()
        end = [] if self.separator is None else [self.separator]
        if end:
            parts = words
        else:
            parts = ["".join(WORD_BOUNDARY + word for word in words) if self.word_boundary_prefix else " ".join(words)]
        if unknown := sorted(set("".join(self._longest_match.sub("", part) for part in parts))):
            names = ", ".join(map(repr, unknown))
            raise UserError(f"no label spells {names} in {text!r}; remove the text, or spell it with {self.preview}")
        return [i for part in parts for i in (*(self.ids[label] for label in self._longest_match.findall(part)), *end)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of label ids whose repeats are already collapsed."""
        text = "".join(" " if i == self.separator else self.labels[i] for i in ids if i not in self.special)
        return " ".join((text.replace(WORD_BOUNDARY, " ") if self.word_boundary_prefix else text).split())

    @property
    def preview(self) -> str:
        """The first 40 labels, for error messages."""
        first = list(self.ids)[:40]
        return " ".join(first) + (" …" if len(self.ids) > len(first) else "")

    def starts_word(self, i: int) -> bool:
        """Whether label `i` starts a new word, whatever precedes it."""
        return self.word_boundary_prefix and self.labels[i].startswith(WORD_BOUNDARY)

    def _match_case(self, text: str) -> str:
        letters = "".join(self.ids)
        if letters.lower() == letters.upper() or letters not in (letters.lower(), letters.upper()):
            return text
        return text.upper() if letters == letters.upper() else text.lower()

    @cached_property
    def _longest_match(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)")
