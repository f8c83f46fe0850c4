import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data2vec.demo import demo
from data2vec.demo.datasets import write_images, write_speech, write_text, write_watch
from data2vec.errors import UserError


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the demo with two steps and little data."""
    steps = {"train.steps": 2, "data.workers": 0}
    tiny = {"images": {"data.batch_size": 8}, "text": {"data.batch_size": 8}, "speech": {"data.batch_seconds": 4}}
    data = {
        "images": write_images,
        "text": partial(write_text, labelled=4, heldout=2),
        "speech": partial(write_speech, clips=20, labelled=20, heldout=10),
    }
    micro = {"images": {"data.micro_batch_size": 8}, "text": {"data.micro_batch_size": 8}}
    tiny["signals"], micro["signals"], data["signals"] = {"data.batch_size": 8}, {"data.micro_batch_size": 8}, write_watch
    micro["speech"] = {"data.micro_batch_seconds": 4}
    shortened = {
        name: replace(
            part, data=data[name], overrides=part.overrides | steps | tiny[name] | micro[name] | {"probe.max_examples": 60}
        )
        for name, part in demo.demo_runs().items()
    }
    monkeypatch.setattr(demo, "demo_runs", lambda: shortened)


@pytest.mark.usefixtures("short")
def test_run_demo_of_images_alone_trains_and_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"images": demo.demo_runs()["images"]}
    monkeypatch.setattr(demo, "demo_runs", lambda: images)
    (row,) = demo.run_demo(tmp_path / "out")
    assert row.modality == "images"
    assert (tmp_path / "out" / "images" / "run" / "probe.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_run_demo_trains_probes_and_plots_every_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the same folder may be used again
        rows = demo.run_demo(tmp_path / "out")
    assert [row.modality for row in rows] == ["images", "text", "speech", "signals"]
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
