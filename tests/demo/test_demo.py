import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data2vec.demo import datasets as embedded
from data2vec.demo import demo
from data2vec.errors import UserError


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own runs, two steps long and on little data."""
    steps = {"train.steps": 2, "data.workers": 0}
    tiny = {"images": {"data.batch_size": 8}, "text": {"data.batch_size": 8}, "speech": {"data.batch_seconds": 4}}
    data = {
        "images": embedded.images,
        "text": partial(embedded.text, labelled=4, heldout=2),
        "speech": partial(embedded.speech, clips=20, labelled=20, heldout=10),
    }
    micro = {"images": {"data.micro_batch_size": 8}, "text": {"data.micro_batch_size": 8}}
    micro["speech"] = {"data.micro_batch_seconds": 4}
    shortened = {
        name: replace(part, data=data[name], overrides=part.overrides | steps | tiny[name] | micro[name] | {"probe.limit": 60})
        for name, part in demo.parts().items()
    }
    monkeypatch.setattr(demo, "parts", lambda: shortened)


@pytest.mark.usefixtures("short")
def test_every_modality_is_trained_probed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    for _ in range(2):  # a demo may be run again into the same folder
        rows = demo.run(tmp_path / "out")
    assert [row.modality for row in rows] == ["images", "text", "speech"]
    assert json.loads((tmp_path / "out" / "demo.json").read_text())[0]["loss_first"] == rows[0].loss_first
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*.png")}
    every = {f"{name}/{picture}.png" for name in ("images", "text", "speech") for picture in ("curves", "masks", "components")}
    assert drawn == every
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row.untrained:.1%} → {row.trained:.1%}" in printed
        assert (tmp_path / "out" / row.modality / "run" / "probe.json").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="choose another --out"):
        demo.run(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another --out"):
        demo.run(tmp_path / "file")


def test_what_did_not_get_better_is_said() -> None:
    row = demo.Row("text", 1.0, 0.5, 0.4, 0.6, 0.4, 0.3, 1.0, 10.0)
    assert "In text so little training did not make better: kNN." in demo.table([row])
    assert "did not make better" not in demo.table([replace(row, trained_knn=0.5)])
