import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data2vec.demo import demo
from data2vec.demo.datasets import write_images, write_speech, write_text, write_videos, write_watch
from data2vec.errors import UserError

SPEECH = partial(write_speech, clips=20, labelled=20, heldout=10)
SHORT = {
    "images": (write_images, {"data.batch_size": 8, "data.micro_batch_size": 8}),
    "text": (partial(write_text, labelled=4, heldout=2), {"data.batch_size": 8, "data.micro_batch_size": 8}),
    "speech": (SPEECH, {"data.batch_seconds": 4, "data.micro_batch_seconds": 4}),
    "signals": (write_watch, {"data.batch_size": 8, "data.micro_batch_size": 8}),
    "sound": (SPEECH, {"data.batch_seconds": 4, "data.micro_batch_seconds": 4}),
    "videos": (partial(write_videos, clips=40, heldout=8), {"data.batch_size": 8, "data.micro_batch_size": 8}),
    "joint": ({"speech": SPEECH, "vision": write_images}, {}),
}
"""Little data, and overrides for small batches."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the demo with a few steps and little data."""
    runs = demo.demo_runs()
    parts = {"": runs.keys() - {"joint"}, "modality.parts.speech.": {"joint"}, "modality.parts.vision.": {"joint"}}
    small = {"data.workers": 0, "probe.max_examples": 60}
    shortened = {}
    for name, (data, batch) in SHORT.items():
        overrides = runs[name].overrides | {"train.steps": 4 if name == "joint" else 2} | batch
        for prefix, names in parts.items():
            overrides |= {f"{prefix}{key}": value for key, value in small.items()} if name in names else {}
        shortened[name] = replace(runs[name], data=data, overrides=overrides)
    monkeypatch.setattr(demo, "demo_runs", lambda: shortened)


@pytest.mark.usefixtures("short")
def test_run_demo_of_images_alone_trains_and_probes(tmp_path: Path) -> None:
    (row,) = demo.run_demo(tmp_path / "out", ["images", "images"])
    assert row.modality == "images"
    assert (tmp_path / "out" / "images" / "run" / "probe.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_run_demo_trains_probes_and_plots_every_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the same folder may be used again
        rows = demo.run_demo(tmp_path / "out")
    assert [row.modality for row in rows] == ["images", "text", "speech", "signals"], "what is run without names"
    assert json.loads((tmp_path / "out" / "demo.json").read_text())[0]["loss_first"] == rows[0].loss_first
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*.png")}
    every = {
        f"{name}/{picture}.png" for name in [row.modality for row in rows] for picture in ("curves", "masks", "components")
    }
    assert drawn == every
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row.untrained:.1%} → {row.trained:.1%}" in printed
        assert (tmp_path / "out" / row.modality / "run" / "probe.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_run_demo_of_several_modalities_has_a_row_for_each_part(tmp_path: Path) -> None:
    rows = demo.run_demo(tmp_path / "out", ["sound", "videos", "joint"])
    assert [row.modality for row in rows] == ["sound", "videos", "joint/speech", "joint/vision"]
    for row in rows:
        assert (tmp_path / "out" / row.modality / "components.png").is_file()


def test_run_demo_of_an_unknown_name_lists_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'video' is none of images, .*, joint; did you mean 'videos'\?"):
        demo.run_demo(tmp_path / "out", ["images", "video"])
    assert not (tmp_path / "out").exists()


def test_run_demo_into_a_folder_with_other_files_raises(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="choose another --out"):
        demo.run_demo(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another --out"):
        demo.run_demo(tmp_path / "file")


def test_format_table_names_what_did_not_improve() -> None:
    row = demo.DemoResult("text", 1.0, 0.5, 0.4, 0.6, 0.4, 0.3, 1.0, 10.0)
    assert "Not improved on text by this short training: kNN." in demo.format_table([row])
    assert "Not improved" not in demo.format_table([replace(row, trained_knn=0.5)])
