"""How far what was recognised is from what was said."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorRates:
    """Edits and lengths, summed over a corpus."""

    word_edits: int
    words: int
    """Of the references."""
    character_edits: int
    characters: int
    """Of the references, spaces among them."""

    @property
    def wer(self) -> float:
        """Edits a word of the references, 0 to 1 and above; where these have no word, the number of edits."""
        return self.word_edits / max(self.words, 1)

    @property
    def cer(self) -> float:
        """The same of characters."""
        return self.character_edits / max(self.characters, 1)


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> ErrorRates:
    """Word and character errors of texts, each against its reference, as they are: case and punctuation count.

    A reference may be empty: every word of its hypothesis is an edit. Raises ValueError where there are not as many."""
    import jiwer

    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references")
    if not references:
        return ErrorRates(0, 0, 0, 0)
    pair = [" ".join(text.split()) for text in references], [" ".join(text.split()) for text in hypotheses]
    words, characters = jiwer.process_words(*pair), jiwer.process_characters(*pair)
    found = [
        (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions) for o in (words, characters)
    ]
    return ErrorRates(*found[0], *found[1])
