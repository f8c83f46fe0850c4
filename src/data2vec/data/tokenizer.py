"""Byte-level BPE tokenizers with RoBERTa's special ids: <s> 0, <pad> 1, </s> 2, <unk> 3, the vocabulary, and <mask> last."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from data2vec.console.progress import has_bars, is_shown, progress, say
from data2vec.data.cache import cached, fingerprint
from data2vec.data.dataset import Rows
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError
from data2vec.local_path import local_path
from data2vec.untrusted import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
else:
    Tokenizer = Any

MAX_GROWTH = 64
"""How much longer a text may become by the replacements of a tokenizer."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""The first entries of fairseq's vocabularies: byte pairs, and labels of speech recognition."""
START, PAD, END, UNKNOWN = range(4)
MASK = "<mask>"
LONG_TRAINING = 2**24
"""In characters: what a tokenizer learns from them takes long enough to be announced."""
LONG_RUN = re.compile(r"\S{256}(?=\S)|\s{256}(?=\s)")
"""Where text that a tokenizer is trained on is cut: in DNA, base64 or zero bytes; words are shorter."""
TRAINING_CHARACTERS = 256 * 2**20
"""At most this many characters are used to train a tokenizer."""
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("dict.txt", "encoder.json", "vocab.bpe"))
"""The files that a tokenizer folder can consist of; the last set is fairseq's."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids, trained on the texts.

    If the texts have too few distinct tokens, placeholders that never occur fill the ids up to <mask>, the last one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < len(SPECIAL) + 256 + 1:
        raise UserError(f"modality.vocab_size: {vocab_size} is too small: 256 bytes and 5 special tokens need at least 261")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    has_own_bars = has_bars() and is_shown()
    trained.train_from_iterator(
        _split_long_runs(_take_characters(texts, TRAINING_CHARACTERS, hidden=has_own_bars)),
        trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=has_own_bars,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    fillers = (name for i in count() if (name := f"madeupword{i:04d}") not in vocabulary)  # fairseq's name for placeholders
    while len(vocabulary) < vocab_size - 1:
        vocabulary[next(fillers)] = len(vocabulary)
    return _assemble(vocabulary | {MASK: vocab_size - 1}, model["merges"])


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has the files of a tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load tokenizer.json, or a folder that contains it, or vocab.json and merges.txt (GPT-2's and RoBERTa's files), or
    dict.txt, encoder.json and vocab.bpe (fairseq's).

    Raises UserError when there is none, or its special ids are not RoBERTa's."""
    from tokenizers import Tokenizer, models

    path = local_path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            _refuse_expansion(read_json(file))
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            tokenizer = _assemble(*models.BPE.read_file(str(path / "vocab.json"), str(path / "merges.txt")))
        elif path.is_dir() and has_tokenizer(path):
            tokenizer = _assemble(*_read_fairseq_files(path))
        else:
            searched = ", or ".join(" with ".join(names) for names in TOKENIZER_FILES)
            raise UserError(f"{path}: no tokenizer in this folder; looked for {searched}")
    except UserError:
        raise
    except Exception as error:  # the library raises no more specific error
        raise UserError(f"{path}: not a valid tokenizer: {error}") from None
    expected = {name: i for i, name in enumerate(SPECIAL)} | {MASK: tokenizer.get_vocab_size() - 1}
    ids = {name: tokenizer.token_to_id(name) for name in expected}
    if ids != expected:
        raise UserError(f"{path}: special tokens must have the ids {expected}, but have {ids}")
    return tokenizer


def _refuse_expansion(raw: Any) -> None:
    """Raises ValueError for a tokenizer.json that replaces text by a longer one, again and again or at once."""
    growth, left = 1.0, [raw.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor")]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            left += part.values()
            pattern = part.get("pattern")
            found = pattern.get("String") if isinstance(pattern, dict) else None
            growth *= max(1, len(str(part.get("content") or "")) / max(1, len(found) if isinstance(found, str) else 1))
    if growth > MAX_GROWTH:
        raise ValueError(f"it replaces text by one that is {growth:.3g} times as long")


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write tokenizer.json into the folder, for `load_tokenizer`."""
    path = Path(folder) / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def load_or_train_tokenizer(rows: Rows, folder: str | None, vocab_size: int) -> Tokenizer:
    """The tokenizer in `folder` (`data.tokenizer`); without a folder one that is trained on `rows` and cached.

    Raises UserError when the tokenizer in the folder does not have `vocab_size` ids."""
    # Otherwise the library warns about forking for every worker of the loader; the workers turn parallelism off themselves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if folder is not None:
        tokenizer = load_tokenizer(folder)
        if tokenizer.get_vocab_size() != vocab_size:
            raise UserError(
                f"modality.vocab_size: {vocab_size}, but the tokenizer {folder} has {tokenizer.get_vocab_size()} ids: "
                f"set modality.vocab_size={tokenizer.get_vocab_size()}"
            )
        return tokenizer

    def train(file: BinaryIO) -> None:
        file.write(train_tokenizer(_sample_texts(rows), vocab_size).to_str().encode())

    if not hasattr(rows, "__len__"):
        return train_tokenizer(_sample_texts(rows), vocab_size)
    return load_tokenizer(cached(f"tokenizer-{fingerprint(rows, 'text', str(vocab_size))}.json", train))


def _sample_texts(rows: Rows) -> Iterator[str]:
    """Texts to train a tokenizer on: rows in random order, until there are enough characters."""
    order = np.random.default_rng(0).permutation(len(rows)) if hasattr(rows, "__len__") else None
    size = 0
    for row in rows if order is None else (rows[int(i)] for i in order):
        try:
            for piece in read_text(row):
                yield piece
                size += len(piece)
        except CorruptExample:
            continue
        if size > TRAINING_CHARACTERS:
            return


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without special tokens. "</s>" in a text is encoded as ordinary characters."""
    tokenizer.encode_special_tokens = True
    if len(texts) == 1:
        return [tokenizer.encode(texts[0], add_special_tokens=False).ids]
    return [item.ids for item in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A hash of the tokenizer's content."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def _read_fairseq_files(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges: encoder.json and vocab.bpe are GPT-2's, and dict.txt reorders their ids, starting at 4, with
    placeholders that never occur."""
    tokens = {str(number): token for token, number in json.loads((folder / "encoder.json").read_text("utf-8")).items()}
    order = [line.rsplit(" ", 1)[0] for line in (folder / "dict.txt").read_text("utf-8").splitlines() if line]
    if missing := tokens.keys() - set(order):
        raise UserError(
            f"{folder / 'dict.txt'}: lacks {len(missing)} of the tokens of encoder.json; use files of the same tokenizer"
        )
    names = [*SPECIAL, *(tokens.get(name, name) for name in order), MASK]
    merges = (folder / "vocab.bpe").read_text("utf-8").splitlines()
    return {name: i for i, name in enumerate(names)}, [line.split(" ") for line in merges[1:] if line]


def _assemble(vocabulary: dict[str, int], merges: Sequence[Any]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, MASK)])
    return tokenizer


def _take_characters(texts: Iterable[str], characters: int, hidden: bool = False) -> Iterator[str]:
    """The texts up to so many characters, with progress unless it is `hidden`."""
    left = characters
    with progress(desc=f"tokenizer: reading at most {characters:,}", unit="character", delay=3, hidden=hidden) as bar:
        for text in texts:
            yield text
            left -= len(text)
            bar.update(len(text))
            if left <= 0:
                break
    if not hidden and characters - left >= LONG_TRAINING:
        say(f"tokenizer: learning pairs of bytes from {characters - left:,} characters")


def _split_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut where a run of characters has no space, or only spaces: training takes the square of its length."""
    for text in texts:
        cuts = [0, *(run.end() for run in LONG_RUN.finditer(text)), len(text)]
        yield from (text[start:end] for start, end in pairwise(cuts))


def random_ids(vocab_size: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) ids drawn uniformly from those that are not special."""
    return rng.integers(len(SPECIAL), vocab_size - 1, size)
