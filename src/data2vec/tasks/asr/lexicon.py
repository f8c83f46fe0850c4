"""Lexicons: the words a beam search may output, and the labels that spell them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from data2vec.errors import UserError, get_logger
from data2vec.tasks.asr.vocabulary import CTCVocabulary

log = get_logger(__name__)

Lexicon = list[tuple[str, list[int]]]
"""Words and their label ids; a word occurs once for each of its spellings."""
MAX_HOMOPHONES = 6
"""flashlight keeps at most this many words per spelling."""


def load_lexicon(source: str | Path | Iterable[str], vocabulary: CTCVocabulary) -> Lexicon:
    """A lexicon from a file, or from a list of words.

    A line is a word, a tab or space, and its labels separated by spaces (fairseq, flashlight); or a word alone, spelled by
    the vocabulary. If there is a separator, every spelling ends with it. Raises UserError naming the word that cannot be
    spelled."""
    if isinstance(source, str | Path):
        try:
            source = Path(source).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"lexicon: {source}: {error}; give a text file with one word per line") from None
    end = [] if vocabulary.separator is None else [vocabulary.separator]
    ids = vocabulary.ids | {vocabulary.labels[i]: i for i in end}
    lexicon = []
    for line in source:
        if line.strip():
            word, *spelling = line.split()
            if unknown := [label for label in spelling if label not in ids]:
                raise UserError(f"lexicon: {word} is spelled with {unknown[0]!r}; the labels are {vocabulary.preview}")
            labels = [ids[label] for label in spelling] or vocabulary.encode(word)
            lexicon.append((word, labels if labels[-1:] == end else labels + end))
    if not lexicon:
        raise UserError("lexicon: it contains no word; give one word per line")
    return _unique_entries(lexicon)


def lexicon_from_arpa(path: Path, vocabulary: CTCVocabulary) -> Lexicon:
    """The words of an ARPA file; those that no labels spell are left out with a warning."""
    lexicon, left_out = [], []
    for word in arpa_words(path):
        try:
            lexicon.append((word, vocabulary.encode(word)))
        except UserError:
            left_out.append(word)
    if not lexicon:
        raise UserError(f"lm: no word of {path} can be spelled with {vocabulary.preview}; is it for another language?")
    if left_out:
        names = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
        log.warning("%d of the %d words of %s cannot be spelled: %s", len(left_out), len(lexicon) + len(left_out), path, names)
    return _unique_entries(lexicon)


def _unique_entries(lexicon: Lexicon) -> Lexicon:
    """Without duplicates. Raises UserError if more words share a spelling than flashlight can tell apart."""
    by_spelling: dict[tuple[int, ...], dict[str, None]] = defaultdict(dict)
    for word, labels in lexicon:
        by_spelling[tuple(labels)][word] = None
    if many := next((words for words in by_spelling.values() if len(words) > MAX_HOMOPHONES), None):
        raise UserError(
            f"lexicon: {', '.join(many)} have the same spelling; a beam search supports at most {MAX_HOMOPHONES} such words"
        )
    return [(word, list(labels)) for labels, words in by_spelling.items() for word in words]


def arpa_words(path: Path) -> Iterator[str]:
    """The words of an ARPA file. Raises UserError if it is not one."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        if not any(line.strip() == "\\1-grams:" for line in islice(lines, 100)):
            raise UserError(f"lm: {path} is not an ARPA file, so its words are unknown; give a lexicon")
        for line in lines:
            if line.startswith("\\"):
                return
            if (fields := line.split()) and fields[1] not in ("<s>", "</s>", "<unk>", "<UNK>"):
                yield fields[1]
