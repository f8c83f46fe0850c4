"""The command `data2vec predict`."""

import csv
from pathlib import Path

import pytest

from data2vec import cli
from data2vec.model import blank_model
from data2vec.recipe.loading import load_recipe
from helpers.command import exit_status
from helpers.fine_tuned import KINDS, SMALL, fine_tuned, make_data


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of `make_data`, and a model of each kind in `models/`."""
    root = tmp_path_factory.mktemp("predict") / "data"
    make_data(root)
    for kind in KINDS:
        fine_tuned(kind, root).save_pretrained(root / "models" / kind)
    return root


def run(*words: object) -> int:
    return cli.main(["predict", *map(str, words)])


def test_predict_prints_a_line_for_each_input(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = sorted((models / "sounds").glob("*.wav"))
    assert run(models / "models/classes of sounds", *sounds, "--top-k", 2) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [line[0] for line in lines] == [str(sound) for sound in sounds]
    assert all({field.split()[0] for field in line[1:]} < {"low", "high", "none"} and len(line) == 3 for line in lines)
    assert run(models / "models/transcripts", sounds[0]) == 0
    assert capsys.readouterr().out.startswith(f"{sounds[0]}\t")
    assert run(models / "models/numbers", models / "texts.tsv") == 0
    numbers = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in numbers] == [f"input {i}" for i in range(1, 13)] and all(float(value) for _, value in numbers)
    assert run(models / "models/events", models / "sounds", "--threshold", 1) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()} == {"no label"}


def test_predict_writes_a_table_that_counts_and_names_unreadable_inputs(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad.png", tmp_path / "out.csv"
    bad.write_bytes(b"no image")
    good = models / "images/dark/0.png"
    assert run(models / "models/classes of images", good, bad, "--out", out) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{out}: 1 predictions"
    assert second == "1 more cannot be decoded, and have an error instead:" and third.startswith(f"  {bad}: ")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [str(good), str(bad)]
    assert rows[0]["prediction"] in ("dark", "bright") and float(rows[0]["probability"]) >= 0.5 and not rows[0]["error"]
    assert not rows[1]["prediction"] and not rows[1]["probability"] and rows[1]["error"]


def test_predict_on_the_screen_names_unreadable_inputs_and_fails_without_any_other(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, other = tmp_path / "bad.wav", tmp_path / "other.wav"
    for path in (bad, other):
        path.write_bytes(b"no sound")
    assert run(models / "models/events", models / "sounds/0.wav", bad, other) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 and printed.err.startswith(f"data2vec: skipped: {bad}: ")
    assert printed.err.endswith(f"data2vec: skipped as {bad} is, 1 more: {other}\n")  # for the same reason
    assert run(models / "models/events", bad) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("data2vec: error: none of the 1 inputs can be decoded: ") or "can be read" in last


def test_predict_with_wrong_arguments_exits_with_2_and_one_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headless = tmp_path / "headless"
    blank_model(load_recipe("speech/v1-tiny", SMALL)).save_pretrained(headless)
    sounds, of_sounds = models / "sounds", models / "models/classes of sounds"
    for words, printed in (
        ([headless, sounds], "has no head; fine-tune it first (data2vec finetune), or use its features"),
        ([of_sounds, sounds, "--out", "x.txt"], "x.txt: unknown file extension; use .csv, .jsonl, .parquet"),
        ([of_sounds, sounds, "--top-k", 4], "this model has 3 labels: give a number from 1 to 3"),
        ([of_sounds, sounds, "--top-k", 0], "argument --top-k: '0' is not an integer of at least 1"),
        ([of_sounds, sounds, "--threshold", 0.5], "only multi-label classification has one"),
        ([of_sounds, sounds, "--second", "x"], "this is no model of texts"),
        ([of_sounds, sounds, "--device", "gpu"], "'gpu' is not a device"),
        ([of_sounds, sounds, sounds / "0.wav"], "is a folder: give one dataset alone, or files"),
        ([of_sounds, models / "gone"], "there is no such folder or file"),
        ([models / "models/classes of pairs", models / "sounds/metadata.csv", "--column", "label"], "takes pairs of texts"),
    ):
        assert exit_status("predict", *map(str, words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(("data2vec: error: ", "data2vec predict: error: ")) and printed in line
