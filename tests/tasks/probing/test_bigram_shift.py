from pathlib import Path

import numpy as np
import pytest

from data2vec.data.sources.tables import read_table
from data2vec.errors import UserError
from data2vec.tasks.probing.bigram_shift import make_bigram_shift


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    nouns = ("cat", "dog", "sun", "sea", "tree", "house", "road", "bird")
    lines = {" ".join(["The", *rng.choice(nouns, 6).tolist(), "sleeps."]) for _ in range(300)}
    (tmp_path / "corpus.txt").write_text("\n".join(sorted(lines)) + "\n\nToo short.\n")
    return tmp_path / "corpus.txt"


def read(folder: Path) -> dict[str, dict[str, list[str]]]:
    return {name: read_table(folder / f"{name}.tsv").columns.to_pydict() for name in ("train", "dev", "test")}


def test_shifted_sentences_differ_from_an_original_in_two_adjacent_words(corpus: Path, tmp_path: Path) -> None:
    make_bigram_shift(corpus, tmp_path / "out", sentences=200)
    originals = set(corpus.read_text().splitlines())
    tables = read(tmp_path / "out")
    assert [len(table["text"]) for table in tables.values()] == [160, 20, 20]
    texts = [text for table in tables.values() for text in table["text"]]
    labels = [label for table in tables.values() for label in table["label"]]
    assert 0.4 < labels.count("shifted") / len(labels) < 0.6
    for text, label in zip(texts, labels, strict=True):
        words = text.split()
        swaps = {" ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]) for i in range(len(words) - 1)}
        assert text in originals if label == "original" else swaps & originals


def test_same_seed_gives_the_same_tables(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_bigram_shift(corpus, tmp_path / name, seed=seed)
    a, b, c = (read(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_too_few_sentences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One two three four five six.")
    with pytest.raises(UserError, match="1 different sentences of 5 to 30 words; at least 100 are needed"):
        make_bigram_shift(tmp_path / "short.txt", tmp_path / "out")
