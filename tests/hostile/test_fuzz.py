"""Damaged text of recipes, configs and metadata: valid, or a user error in a line; nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data2vec
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import UserError, printable
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe, validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.yaml_format import parse_yaml
from helpers.fuzzing import examples

RECIPE = load_recipe("vision/v2-tiny", {"encoder.width": 16, "encoder.layers": 3, "encoder.heads": 2, "encoder.ffn_width": 32})
PIECES = (
    *("", " ", "\n", "\t", ": ", "- ", "? ", "&a ", "*a", "<<: *a", "!!int x", "!!python/name:os.system", "!<x>"),
    *("%YAML 9.9", "---", "...", "{", "}", "[", "]", "|\n", ">-\n", "'", '"', "\\", "# ", "@", "`", "~", ".nan", "1e999"),
    *("0x", "1_0", "\x00", "\x85", "\ufeff", "\u2028", "é", "\U0001f600", "9" * 5000, "[" * 200, "null: null"),
    *("? [a]\n: b", "2026-99-99", "'\\ud800'"),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=5)
    | st.sampled_from([10**30, "x" * 5000, "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def ends_well(action: Callable[[], object]) -> None:
    """The action works, or raises a UserError of short lines that can be printed."""
    try:
        action()
    except UserError as error:
        lines = str(error).split("\n")
    else:
        return
    assert all(line == printable(line) and len(line) < 2100 for line in lines)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A text in which up to four parts are replaced."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(PIECES) | st.text(max_size=8)) + text[start + draw(st.integers(0, 20)) :]
    return text


@examples(60)
@given(damaged("a: {b: [1, 2.5, true]}\nc: &x text\nd: *x\n") | st.text(max_size=60))
def test_any_yaml_is_a_value_or_a_user_error(text: str) -> None:
    ends_well(lambda: parse_yaml(text, "x"))


@examples(25)
@given(damaged(RECIPE.to_yaml()))
def test_a_damaged_recipe_is_a_recipe_or_a_user_error(text: str) -> None:
    def load() -> None:
        raw = parse_yaml(text, "x")
        assert not isinstance(raw, dict) or isinstance(validate_recipe(raw, "x"), Recipe)

    ends_well(load)


@examples(40)
@given(key=st.sampled_from(sorted(RECIPE.flat())), depth=st.integers(1, 3), value=VALUES)
def test_a_recipe_with_any_value_is_a_recipe_or_a_user_error(key: str, depth: int, value: Any) -> None:
    raw = RECIPE.model_dump(mode="json")
    part, path = raw, key.split(".")[:depth]
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    ends_well(lambda: validate_recipe(raw, "x"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("model") / "model"
    modality = RECIPE.build_modality()
    save_model_folder(Model(build_encoder(modality, RECIPE.encoder), modality, RECIPE), folder)
    return folder


@examples(30)
@given(st.data())
def test_a_damaged_config_is_a_model_or_a_user_error(folder: Path, data: st.DataObject) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    key = data.draw(st.sampled_from(sorted(config)))
    text = json.dumps(config | {key: data.draw(VALUES)})
    (copy / "config.json").write_text(data.draw(st.just(text) | damaged(text)), encoding="utf-8", errors="surrogatepass")
    ends_well(lambda: data2vec.load(copy))


TABLE = 'text,label\n"one, two",a\nthree,b\n'
LINES = '{"text": "one", "label": "a"}\n{"text": "three", "label": 1, "x": [1, {"y": null}]}\n'


TABLES = {"t.csv": TABLE, "t.tsv": TABLE.replace(",", "\t"), "t.jsonl": LINES}


@pytest.mark.parametrize("name", TABLES)
@examples(25)
@given(data=st.data())
def test_a_damaged_table_is_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("table") / name
    path.write_text(data.draw(damaged(TABLES[name])), encoding="utf-8", errors="surrogatepass")
    ends_well(lambda: list(open_dataset(str(path), "text")))
