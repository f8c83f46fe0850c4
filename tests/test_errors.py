import logging
import pickle

import pytest

from data2vec.errors import CorruptExample, Interrupted, UserError, did_you_mean, get_logger, printable, quoted

HOSTILE = "a\nb\r\x1b[31m\x00\x9b\u2028\u202e\udc80"


def test_printable_escapes_what_would_change_the_rest_of_a_line() -> None:
    assert printable(HOSTILE) == r"a\nb\r\x1b[31m\x00\x9b\u2028\u202e\udc80"
    assert printable(printable(HOSTILE)) == printable(HOSTILE)


def test_printable_keeps_text_of_all_languages() -> None:
    text = "Straße 東京 नमस्ते سلام\u200cها 👩\u200d🔬 a\u00a0b"
    assert printable(text) == text


def test_error_shows_its_lines_as_text_and_survives_pickling() -> None:
    for error in (UserError(f"x: {HOSTILE}", "y"), CorruptExample(f"{HOSTILE}: bad"), Interrupted(15, HOSTILE)):
        assert str(error).splitlines() == list(error.args)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(UserError("one", "two")) == "one\ntwo"
    assert pickle.loads(pickle.dumps(Interrupted(15, "x"))).signal == 15


def test_error_of_any_length_is_a_short_line() -> None:
    assert len(str(UserError("x" * 10**6))) < 2100


def test_quoted_value_of_any_size_is_short() -> None:
    huge = ["x" * 10**6, 10**400, 10**5000, [[1] * 10**5], {"a" * 10**5: 1}, None, float("nan"), b"\x00" * 999]
    assert all(len(quoted(value)) < 300 for value in huge)


def test_logger_shows_names_as_text(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("data2vec.test").warning("skipped: %s, %d", HOSTILE, 3)
    assert caplog.messages == [f"skipped: {printable(HOSTILE)}, 3"]
    assert logging.getLogger("data2vec.test") is get_logger("data2vec.test")


def test_did_you_mean_of_a_long_word_is_quick() -> None:
    assert did_you_mean("x" * 10**6, ["train"]) == ""
