import ast
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import data2vec
from data2vec import cli
from data2vec.errors import CorruptExample, Interrupted, UserError, did_you_mean, get_logger, printable, quoted
from data2vec.recipe.recipe import MODALITIES, recipe_class
from data2vec.settings import iter_settings

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


def messages() -> Iterator[tuple[str, str]]:
    """The texts of all errors and warnings, with "" for what is computed, each with its place."""
    shown = ("UserError", "RunStopped", "CorruptExample", "Unhealthy", "warning")
    for path in sorted(Path(data2vec.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", getattr(call.func, "attr", "")) not in shown:
                continue
            for text in (each for argument in call.args for each in ast.walk(argument)):
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                values = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
                if any(isinstance(value, str) for value in values):
                    yield f"{path.name}:{call.lineno}", "".join(map(str, values))


def test_errors_name_only_settings_and_options_that_exist() -> None:
    keys = {key for modality in MODALITIES for key, _ in iter_settings(recipe_class(modality))}
    sections = sorted({key.partition(".")[0] for key in keys})
    setting = re.compile(rf"(?<![\w/.\0-])(?:{'|'.join(sections)})(?:\.[a-z_0-9]+)+(?![\w\0])")
    verbs = next(action.choices for action in cli._build_parser()._actions if action.choices)
    options = {option for verb in verbs.values() for action in verb._actions for option in action.option_strings}
    # Of joint runs, of an evaluation of a comparison, and a file.
    known = keys | {"modality.parts", "modality.shares", "train.fraction", "encoder.json"}
    found = list(messages())
    unknown = {(place, key) for place, text in found for key in setting.findall(text) if key not in known}
    unknown |= {
        (place, option)
        for place, text in found
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
        if option not in options
    }
    assert len(found) > 500 and not unknown
