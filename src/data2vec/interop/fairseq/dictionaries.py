"""The files that official code reads beside a checkpoint: dictionaries of labels and tokens, in the folder that its tasks call
`data`.

A dictionary has a line "SYMBOL COUNT" per entry; the four special ones come first and are not listed.
"""

import re
from pathlib import Path

from data2vec.atomic_io import write_text
from data2vec.data.tokenizer import MASK, SPECIAL, Tokenizer
from data2vec.interop.fairseq.heads import DICTIONARY, LABEL_DICTIONARY
from data2vec.model import Model
from data2vec.nn.heads import ClassifierSettings, CTCSettings

TOKEN_DICTIONARY = "dict.txt"
SENTENCE_FOLDER = "input0"
"""Where the task of sentence classifiers looks for the dictionary of tokens."""


def write_dictionaries(model: Model, folder: Path) -> list[str]:
    """Write labels, tokens and tokenizer to `folder`; returns a description of what cannot be stored there.

    CTC labels are `dict.ltr.txt`; tokens `dict.txt`, for sentence classifiers also `input0/dict.txt`, with their labels in
    `label/dict.txt`; the tokenizer is `tokenizer.json`. A file that exists is kept."""
    head = None if model.head is None else model.head.settings
    lost = []
    if isinstance(head, CTCSettings):
        if head.labels[:4] != SPECIAL:
            lost.append(f"the labels of its head: the first four must be {', '.join(SPECIAL)}")
        else:
            lost += _write_labels(folder / DICTIONARY, head.labels[4:])
    elif head is not None:
        is_text = model.recipe.modality.name == "text"
        if is_text and head.problem_type != "regression":
            lost += _write_labels(folder / LABEL_DICTIONARY, head.labels)
        elif not is_text:
            lost.append("the labels of its head")
        lost += [f"head.problem_type: {head.problem_type}"] if head.problem_type == "multi_label_classification" else []
    if model.recipe.modality.name == "text":
        folders = [folder, folder / SENTENCE_FOLDER] if isinstance(head, ClassifierSettings) else [folder]
        lost += _write_tokens(getattr(model.modality, "tokenizer", None), folder, folders)
    return lost


def _write_labels(path: Path, labels: tuple[str, ...]) -> list[str]:
    wrong = next((label for label in labels if label in SPECIAL or len(label.splitlines()) != 1), None)
    if wrong is not None:
        return [f"the labels of its head: official dictionaries cannot have {wrong!r}"]
    return _write(path, _lines(labels), "the labels of its head")


def _write_tokens(tokenizer: Tokenizer | None, folder: Path, folders: list[Path]) -> list[str]:
    if tokenizer is None:
        return [f"its tokens: it has no tokenizer; official code needs the {TOKEN_DICTIONARY} that it was trained with"]
    lost = _write(folder / "tokenizer.json", tokenizer.to_str(pretty=True), "its tokenizer")
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[len(SPECIAL) :]
    tokens = tokens[:-1] if tokens[-1:] == [MASK] else tokens  # official tasks add it themselves
    if wrong := next((token for token in tokens if re.search(r"\s", token) or not token), None):
        return [*lost, f"its tokens: official dictionaries cannot have {wrong!r}, with white space"]
    for each in folders:
        lost += _write(each / TOKEN_DICTIONARY, _lines(tokens), "its tokens")
    return lost


def _lines(symbols: tuple[str, ...] | list[str]) -> str:
    return "".join(f"{symbol} 1\n" for symbol in symbols)


def _write(path: Path, text: str, what: str) -> list[str]:
    """Write a file unless it exists; a line that says so if it exists with another content."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    same = path.is_file() and path.read_bytes() == text.encode()
    return [] if same else [f"{what}: a different {path.name} exists in {path.parent}"]
