"""Hostile models and recipes are opened or refused in one line, and nothing in them is imported. Every input is tried at every
entry point, each in its own process, by `python -m hostile.run`, of which a part is run here."""

import contextlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data2vec
from data2vec.errors import UserError
from data2vec.model import load_model_folder
from data2vec.recipe.loading import load_recipe
from hostile import run
from hostile.corpus import IMPORTED, PRIVATE, Hostile, cases, model_folder


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Harmless models, whose copies are made hostile, and a private file."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "home").mkdir()
    (root / "home" / "private.txt").write_text("words of the user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PRIVATE, str(root / "home" / "private.txt"))
        patch.setenv(IMPORTED, str(root / "imported"))
        for kind in run.PRETRAIN:
            patch.setenv(f"HOSTILE_MODEL_{kind.upper()}", "")
        run.build_models(root)
        yield
    assert not (root / "imported").exists()


@pytest.mark.parametrize("case", cases("models"), ids=str)
@pytest.mark.parametrize("place", ["there", "elsewhere", "on the path"])
def test_a_hostile_model_is_opened_or_refused(
    case: Hostile, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place != "there" and "evil" not in case.name and "module" not in case.name and "code" not in case.name:
        pytest.skip("names no module")
    path = case.make(tmp_path)
    if place == "there":
        monkeypatch.chdir(path.parent)
        monkeypatch.syspath_prepend("")
    elif place == "on the path":
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.syspath_prepend(str(path))
    with contextlib.suppress(UserError):
        data2vec.load(path)
    assert "evil_modality" not in sys.modules


@pytest.mark.parametrize("case", cases("settings"), ids=str)
def test_a_hostile_recipe_is_read_or_refused(case: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case.make(tmp_path)
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend("")
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(UserError):
        load_recipe(path)
    assert "evil_modality" not in sys.modules


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_value_in_a_config_is_opened_or_refused(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(Path(folder))
        config = json.loads((path / "config.json").read_text())
        node = config
        for _ in range(data.draw(st.integers(0, 3))):
            keys = [key for key, value in node.items() if isinstance(value, dict) and value]
            if not keys:
                break
            node = node[data.draw(st.sampled_from(keys))]
        node[data.draw(st.sampled_from(sorted(node)) | st.text(max_size=5))] = data.draw(JSON)
        (path / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(UserError):
            load_model_folder(path)


@given(
    st.text(st.characters(codec="utf-8"), max_size=60)
    | st.from_regex(r"[a-z]+: [\[\]{}&*!|>,:a-z0-9\n -]{0,40}", fullmatch=True)
)
def test_any_text_as_a_recipe_is_read_or_refused(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evil.yaml"
        path.write_text(text, encoding="utf-8")
        with contextlib.suppress(UserError):
            load_recipe(path)


@pytest.mark.slow
def test_hostile_inputs_are_held_at_every_entry_point() -> None:
    """The complete table is in SECURITY.md."""
    command = [sys.executable, "-m", "hostile.run", "links", "tables"]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
