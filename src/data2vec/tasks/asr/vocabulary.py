"""The vocabulary of a CTC head: text to label ids, and back."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from data2vec.data.tokenizer import SPECIAL
from data2vec.errors import UserError

BLANK = 0
"""The index of the blank: fairseq's vocabularies begin with the special tokens of its tokenizers, and <s> is the blank."""
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
        counts = Counter(letter for text in texts for letter in "".join(unicodedata.normalize("NFC", text).split()))
        if SEPARATOR in counts:
            raise UserError(
                f"the texts contain {SEPARATOR!r} {counts[SEPARATOR]} times, which separates words in the vocabulary; remove it"
            )
        return cls((*SPECIAL, SEPARATOR, *sorted(counts, key=lambda letter: (-counts[letter], letter))))

    def normalize(self, text: str) -> str:
        """The text as this vocabulary writes it: composed characters (Unicode NFC), single spaces, and the case of the labels
        if they have only one. Transcripts are encoded, and references and hypotheses compared, in this form."""
        return " ".join(self._match_case(unicodedata.normalize("NFC", text)).split())

    def encode(self, text: str) -> list[int]:
        """The label ids of a text, longest match first; a separator also follows the last word, as in fairseq.

        The text is normalized first. Raises UserError naming characters that no label spells."""
        parts, end = self._parts(text), [] if self.separator is None else [self.separator]
        if unknown := sorted(set(self._unspelled(parts))):
            names = ", ".join(map(repr, unknown))
            raise UserError(f"no label spells {names} in {text!r}; remove the text, or spell it with {self.preview}")
        return [i for part in parts for i in (*(self.ids[label] for label in self._longest_match.findall(part)), *end)]

    def unspelled(self, text: str) -> Counter[str]:
        """How often the text has each character that no label spells."""
        return Counter(self._unspelled(self._parts(text)))

    def _parts(self, text: str) -> list[str]:
        """What is spelled by labels: the words, or all of the text where no label separates words."""
        parts = self._split(self.normalize(text))
        if self._unspelled(parts):  # unless accents are labels of their own
            decomposed = self._split(unicodedata.normalize("NFD", self.normalize(text)))
            return parts if self._unspelled(decomposed) else decomposed
        return parts

    def _split(self, text: str) -> list[str]:
        if self.separator is not None:
            return text.split()
        return ["".join(WORD_BOUNDARY + word for word in text.split()) if self.word_boundary_prefix else text]

    def _unspelled(self, parts: list[str]) -> str:
        return "".join(self._longest_match.sub("", part) for part in parts)

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

    @cached_property
    def _match_case(self) -> Callable[[str], str]:
        """Converts a text to the case of the labels, if they have only one."""
        letters = "".join(self.ids)
        if letters.lower() == letters.upper() or letters not in (letters.lower(), letters.upper()):
            return str
        return str.upper if letters == letters.upper() else str.lower

    @cached_property
    def _longest_match(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)")
