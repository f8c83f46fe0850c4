"""Byte-level BPE in RoBERTa's layout: <s> 0, <pad> 1, </s> 2, <unk> 3, then the vocabulary, and <mask> as the last id."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.errors import UserError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
START, PAD, END, UNKNOWN = range(4)
MASK = "<mask>"
TRAIN_ON = 256 * 2**20
"""Characters a tokenizer is trained on, at most."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` with exactly `vocab_size` ids, trained on the texts.

    Where the texts yield fewer types, names that never occur fill the ids up to <mask>, the last one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < len(SPECIAL) + 256 + 1:
        raise UserError(f"modality.vocab_size: {vocab_size} is too few; 256 bytes and 5 special ids need at least 261")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        _limited(texts, TRAIN_ON),
        trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    fillers = (name for i in count() if (name := f"madeupword{i:04d}") not in vocabulary)  # fairseq's name for them
    while len(vocabulary) < vocab_size - 1:
        vocabulary[next(fillers)] = len(vocabulary)
    return _assemble(vocabulary | {MASK: vocab_size - 1}, model["merges"])


FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("dict.txt", "encoder.json", "vocab.bpe"))
"""The files a folder may have a tokenizer in; the last ones are fairseq's."""


def has_tokenizer(folder: Path) -> bool:
    """Whether `load_tokenizer` finds one there."""
    return any(all((folder / name).is_file() for name in names) for names in FORMS)


def load_tokenizer(path: str | Path) -> Any:
    """From a tokenizer.json, or a folder with that, or with vocab.json and merges.txt (GPT-2's and RoBERTa's files), or with
    dict.txt, encoder.json and vocab.bpe (fairseq's).

    Raises UserError when there is none, or its special ids are not RoBERTa's."""
    from tokenizers import Tokenizer, models

    path = Path(path).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            tokenizer = _assemble(*models.BPE.read_file(str(path / "vocab.json"), str(path / "merges.txt")))
        elif path.is_dir() and has_tokenizer(path):
            tokenizer = _assemble(*_fairseq(path))
        else:
            looked = ", or ".join(" with ".join(names) for names in FORMS)
            raise UserError(f"{path}: no tokenizer here; looked for {looked}")
    except UserError:
        raise
    except Exception as error:  # the library raises nothing more particular
        raise UserError(f"{path}: not a tokenizer that can be read: {error}") from None
    expected = {name: i for i, name in enumerate(SPECIAL)} | {MASK: tokenizer.get_vocab_size() - 1}
    ids = {name: tokenizer.token_to_id(name) for name in expected}
    if ids != expected:
        raise UserError(f"{path}: special tokens must have the ids {expected}, but have {ids}")
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> Path:
    """Write tokenizer.json: all that is needed to use the tokenizer again."""
    path = Path(folder) / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, none added. "</s>" in a text is five letters, not the special token."""
    tokenizer.encode_special_tokens = True
    if len(texts) == 1:
        return [tokenizer.encode(texts[0], add_special_tokens=False).ids]
    return [item.ids for item in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def digest(tokenizer: Any) -> str:
    """Names a tokenizer by its content."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def _fairseq(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges: encoder.json and vocab.bpe are GPT-2's, and dict.txt gives their ids an order of its own, from 4
    on, with names in it that never occur."""
    tokens = {str(number): token for token, number in json.loads((folder / "encoder.json").read_text("utf-8")).items()}
    order = [line.rsplit(" ", 1)[0] for line in (folder / "dict.txt").read_text("utf-8").splitlines() if line]
    if missing := tokens.keys() - set(order):
        raise UserError(f"{folder / 'dict.txt'}: lacks {len(missing)} of the tokens of encoder.json; they do not fit")
    names = [*SPECIAL, *(tokens.get(name, name) for name in order), MASK]
    merges = (folder / "vocab.bpe").read_text("utf-8").splitlines()
    return {name: i for i, name in enumerate(names)}, [line.split(" ") for line in merges[1:] if line]


def _assemble(vocabulary: dict[str, int], merges: Sequence[Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, MASK)])
    return tokenizer


def _limited(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def random_ids(vocab_size: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) uniform over the ids that are not special."""
    return rng.integers(len(SPECIAL), vocab_size - 1, size)
