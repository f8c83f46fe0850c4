"""The words that a beam search may find, and how labels spell them."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from data2vec.errors import UserError
from data2vec.tasks.asr.vocabulary import Alphabet

log = logging.getLogger(__name__)

Lexicon = list[tuple[str, list[int]]]
"""Words and their labels; a word stands there once for each of its spellings."""


def read(source: str | Path | Iterable[str], alphabet: Alphabet) -> Lexicon:
    """A lexicon from a file, or of words.

    A line is a word, a tab or space, and its labels with spaces between (fairseq, flashlight); or a word alone, which is
    spelled as the alphabet would. Where there is a separator, it ends every word. Raises UserError naming the word that cannot
    be spelled."""
    if isinstance(source, str | Path):
        try:
            source = Path(source).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"lexicon: {source}: {error}; give a text file of words") from None
    end = [] if alphabet.separator is None else [alphabet.separator]
    ids = alphabet.ids | {alphabet.labels[i]: i for i in end}
    lexicon = []
    for line in source:
        if line.strip():
            word, *spelling = line.split()
            if unknown := [label for label in spelling if label not in ids]:
                raise UserError(f"lexicon: {word} is spelled with {unknown[0]!r}, which is not among {alphabet.sample}")
            labels = [ids[label] for label in spelling] or alphabet.encode(word)
            lexicon.append((word, labels if labels[-1:] == end else labels + end))
    if not lexicon:
        raise UserError("lexicon: there is no word in it")
    return _distinct(lexicon)


def of_model(path: Path, alphabet: Alphabet) -> Lexicon:
    """The words of an ARPA file, but for those that no labels spell, which are told in the log."""
    lexicon, left_out = [], []
    for word in words(path):
        try:
            lexicon.append((word, alphabet.encode(word)))
        except UserError:
            left_out.append(word)
    if not lexicon:
        raise UserError(f"lm: no word of {path} can be spelled with {alphabet.sample}; is it a model of another language?")
    if left_out:
        names = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
        log.warning("%d of the %d words of %s cannot be spelled: %s", len(left_out), len(lexicon) + len(left_out), path, names)
    return _distinct(lexicon)


def _distinct(lexicon: Lexicon) -> Lexicon:
    """Without repetitions. Raises UserError where more words share a spelling than flashlight tells apart."""
    alike: dict[tuple[int, ...], dict[str, None]] = defaultdict(dict)
    for word, labels in lexicon:
        alike[tuple(labels)][word] = None
    if many := next((words for words in alike.values() if len(words) > 6), None):
        raise UserError(f"lexicon: {', '.join(many)} are spelled alike; a beam search can tell apart six such words, not more")
    return [(word, list(labels)) for labels, words in alike.items() for word in words]


def words(path: Path) -> Iterator[str]:
    """The words of an ARPA file. Raises UserError where it is none."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        if not any(line.strip() == "\\1-grams:" for line in islice(lines, 100)):
            raise UserError(f"lm: {path} is no ARPA file, so its words are not known; give a lexicon")
        for line in lines:
            if line.startswith("\\"):
                return
            if (fields := line.split()) and fields[1] not in ("<s>", "</s>", "<unk>", "<UNK>"):
                yield fields[1]
