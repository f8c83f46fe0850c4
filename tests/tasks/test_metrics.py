import pytest

from data2vec.tasks.metrics import ErrorRates, error_rates


def test_edits_are_summed_over_the_corpus() -> None:
    found = error_rates(["the cat sat", "no"], ["the cat sat on", "on a mat"])
    # "on" is missing; then "on" became "no", "a" and "mat" are missing.
    assert (found.word_edits, found.words) == (4, 7)
    # " on" is missing; "on a mat" (8) to "no": "o" is missing, "n" stays, "o" for " ", five are missing.
    assert (found.character_edits, found.characters) == (3 + 7, 14 + 8)
    assert found.wer == pytest.approx(4 / 7) and found.cer == pytest.approx(10 / 22)


def test_white_space_does_not_count() -> None:
    assert error_rates([" a  b\n"], ["a b"]) == ErrorRates(0, 2, 0, 3)


def test_words_for_nothing_are_edits() -> None:
    found = error_rates(["a b", "c"], ["", "c"])
    assert (found.word_edits, found.words) == (2, 1) and found.wer == 2
    assert error_rates(["a b"], [""]).wer == 2
    assert error_rates([""], ["a b"]).wer == 1


def test_nothing_for_nothing_is_right() -> None:
    assert error_rates(["", ""], ["", ""]) == error_rates([], []) == ErrorRates(0, 0, 0, 0)
    assert error_rates([], []).wer == error_rates([""], [""]).cer == 0


def test_every_text_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="1 hypotheses, 2 references"):
        error_rates(["a"], ["a", "b"])
