"""The tokenizer that is trained on texts, and what is said meanwhile."""

import pytest

from data2vec.console import progress as console
from data2vec.data import tokenizer


def test_training_says_how_much_is_read_and_when_it_learns_from_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(tokenizer, "LONG_TRAINING", 20)
    monkeypatch.setattr(tokenizer, "TRAINING_CHARACTERS", 25)
    trained = tokenizer.train_tokenizer(["ten letters"] * 100, 300)
    assert trained.get_vocab_size() == 300
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "tokenizer: reading at most 25: 11 characters, 00:00 elapsed"
    assert last == "tokenizer: learning pairs of bytes from 33 characters"
