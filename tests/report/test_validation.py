import base64
import io
import json
import re
import shutil
import wave
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import data2vec
from data2vec.recipe.loading import load_recipe
from data2vec.report.page import build_report
from data2vec.report.validation import MAX_CLASSES, validation_sections
from data2vec.run_dir import Run
from helpers import browser
from helpers.fine_tuned import SMALL, SPEECH, make_data

TINY: dict[str, Any] = {
    "train.steps": 2,
    "train.device": "cpu",
    "log.every": 1,
    "data.workers": 0,
    "objective.validate_every": 1,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classes of images": ("vision/classify-tiny", {"data.batch_size": 4, "data.micro_batch_size": 4}),
    "transcripts": (
        "speech/ctc-tiny",
        SPEECH | {f"data.{key}_seconds": 4 for key in ("batch", "micro_batch", "max")},
    ),
    "classes of pairs": ("text/classify-tiny", {"data.batch_size": 4, "data.micro_batch_size": 4, "modality.vocab_size": 300}),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of two steps of each kind, with its page."""
    root = tmp_path_factory.mktemp("runs")
    data, made = make_data(root / "data"), {}
    for kind, (recipe, settings) in KINDS.items():
        settings = TINY | SMALL | settings
        if recipe.startswith("text"):
            settings |= {"data.tokenizer": str(data["tokenizer"]), "data.second": "sentence2"}
        place = root / recipe.replace("/", "-")
        made[kind] = data2vec.finetune(recipe, None, str(data[kind]), str(data[kind]), settings, place)
    return made


@pytest.fixture
def copied(runs: dict[str, Run], tmp_path: Path) -> Run:
    """A copy of the run on images, to modify."""
    shutil.copytree(runs["classes of images"].folder, tmp_path / "run")
    return Run(tmp_path / "run")


def media(run: Run, kind: str) -> list[bytes]:
    text = run.report.read_text(encoding="utf-8")
    return [base64.b64decode(found) for found in re.findall(f'src="data:{kind};base64,([^"]*)"', text)]


def test_page_of_images_has_a_confusion_matrix_and_pictures(runs: dict[str, Run]) -> None:
    text = runs["classes of images"].report.read_text(encoding="utf-8")
    pictures = [Image.open(io.BytesIO(data)) for data in media(runs["classes of images"], "image/png")]
    assert [picture.size for picture in pictures] == [(32, 32)] * 8
    assert "Confusion of classes, by the best model" in text
    cells = re.findall("<td[^>]*>([0-9]+)</td>", text)
    assert sum(map(int, cells)) == 8
    assert text.count('<th scope="row">') == 2
    assert "best validation: accuracy" in text


def test_page_of_recognition_has_players_of_valid_wav_files_and_transcripts(runs: dict[str, Run]) -> None:
    text = runs["transcripts"].report.read_text(encoding="utf-8")
    players = media(runs["transcripts"], "audio/wav")
    assert len(players) == 9 == text.count("<audio controls")
    for player in players:
        with wave.open(io.BytesIO(player)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
            assert 1400 <= file.getnframes() <= 48000
    assert "media-src data:" in text and "Confusion" not in text and "<dd>HIGH LOW</dd>" in text


def test_page_of_texts_shows_both_texts_of_a_pair(runs: dict[str, Run]) -> None:
    text = runs["classes of pairs"].report.read_text(encoding="utf-8")
    shown = re.findall('<p class="text">(.*?)</p>', text)
    assert len(shown) == 9 and all("the film is" in each and "it is" in each for each in shown)


def test_page_escapes_classes_and_predictions_and_is_self_contained(copied: Run) -> None:
    path = copied.folder / "validation.json"
    found = json.loads(path.read_text())
    evil = "<script>alert(1)</script>"
    found["classes"][0] = evil
    for example in found["examples"]:
        example |= {"label": evil, "prediction": evil, "kind": evil}
    path.write_text(json.dumps(found | {"loss": evil}))
    text = build_report(copied.folder).read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\((?!["']?#)""", text)


@pytest.mark.parametrize(
    "content",
    [
        *("no json", "[]", "{}", "[" * 99999),
        '{"classes": ["a"], "confusion": [[0, 3, 1]], "examples": [], "step": 1, "loss": ""}',
        f'{{"classes": ["a"], "confusion": [[0, 0, {10**30}]], "examples": [], "step": 1, "loss": ""}}',
        '{"classes": [], "confusion": [], "examples": [], "step": Infinity, "loss": ""}',
    ],
)
def test_damaged_validation_file_is_named(content: str, copied: Run) -> None:
    (copied.folder / "validation.json").write_text(content)
    assert "validation.json is damaged" in build_report(copied.folder).read_text(encoding="utf-8")


def test_examples_that_are_gone_are_named_and_the_rest_is_shown(copied: Run, tmp_path: Path) -> None:
    path = copied.folder / "validation.json"
    found = json.loads(path.read_text())
    found["examples"][0]["index"] = 99
    path.write_text(json.dumps(found))
    assert "example 99 is not in the validation data any more" in build_report(copied.folder).read_text(encoding="utf-8")
    assert len(media(copied, "image/png")) == 7
    recipe = load_recipe(copied.recipe, {"data.valid": str(tmp_path / "gone")})
    sections, missing = validation_sections(copied.folder, recipe)
    assert "the validation data cannot be loaded" in missing and "Confusion" in sections[0] and "<img" not in sections[1]


def test_confusions_of_many_classes_are_a_list_of_the_most_frequent(copied: Run) -> None:
    path = copied.folder / "validation.json"
    found = json.loads(path.read_text())
    found["classes"] = [f"c{i}" for i in range(MAX_CLASSES + 1)]
    found["confusion"] = [[0, 0, 50], [1, 2, 9], [3, 4, 5]]
    path.write_text(json.dumps(found))
    sections, _ = validation_sections(copied.folder, load_recipe(copied.recipe))
    assert re.findall("<td>(.*?)</td>", sections[0]) == ["c1", "c2", "9", "c3", "c4", "5"]


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here to open the page with")
def test_pages_with_examples_fit_wide_and_narrow_windows(runs: dict[str, Run], tmp_path: Path) -> None:
    for number, run in enumerate(runs.values()):
        (tmp_path / str(number)).mkdir()
        seen, console = browser.look(run.report, (1280, 400), tmp_path / str(number))
        assert console == []
        assert all(at["overflow"] <= 0 for at in seen)
