"""The command `data2vec features`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from data2vec import cli
from data2vec.model import Model, blank_model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from helpers.command import exit_status
from helpers.recordings import CHANNELS, waves

COMMAND = (sys.executable, "-m", "data2vec", "features")


@pytest.fixture
def model(tmp_path: Path) -> str:
    recipe = load_recipe("speech/v1-tiny", {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2})
    torch.manual_seed(0)
    save_model_folder(
        Model(build_encoder(recipe.build_modality(), recipe.encoder), recipe.build_modality(), recipe), tmp_path / "model"
    )
    return str(tmp_path / "model")


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    files = [tmp_path / "clips" / f"{i}.flac" for i in range(3)]
    for i, file in enumerate(files):
        soundfile.write(file, rng.normal(0, 0.1, 8000 + 1600 * i), 16000)
    return [str(file) for file in files]


def test_features_pooled_has_null_for_unreadable_files(
    model: str, clips: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(clips[1]).write_bytes(b"no sound")
    words = [model, str(tmp_path / "clips"), "--out", str(tmp_path / "out.parquet"), "--pool", "--layers", "-1"]
    assert cli.main(["features", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    first, second, third = printed.out.splitlines()
    assert first == f"{tmp_path}/out.parquet: 2 inputs, 58 positions"
    assert second == "1 more cannot be decoded, and have length 0:" and third.startswith(f"  {clips[1]}: ")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["name"].to_pylist() == clips
    assert [None if row is None else len(row) for row in table["features"].to_pylist()] == [16, None, 16]


@pytest.mark.parametrize(("words", "count"), [("all", 2), ("0.25,0.75", None), ("mean", None), ("1", None)])
def test_features_with_layers_writes_the_expected_shape(
    model: str, clips: list[str], tmp_path: Path, words: str, count: int | None
) -> None:
    out = tmp_path / "out.npy"
    assert cli.main(["features", model, *clips, "--out", str(out), "--layers", words]) == 0
    assert np.load(out).shape == ((87, 16) if count is None else (87, count, 16))


def test_features_with_invalid_arguments_exits_with_2(
    model: str, clips: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.npy")
    for words, printed in (
        ([str(tmp_path), *clips, "--out", out], "is not a data2vec run or model folder"),
        ([model, *clips, "--out", "out.csv"], "out.csv: unknown file extension; use .safetensors, .npy, .parquet"),
        ([model, *clips, "--out", out, "--layers", "3"], "layers: 3 does not exist; this model has blocks 1 to 2"),
        ([model, *clips, "--out", out, "--layers", "1,2,3"], "layers: [1.0, 2.0, 3.0] does not exist"),
        ([model, *clips, "--out", out, "--device", "gpu"], "device: 'gpu' is not a device"),
        ([model, *clips, "--out", out, "--batch", "0"], "argument --batch: '0' is not an integer of at least 1"),
        ([model, clips[0], str(tmp_path), "--out", out], "is a folder: give one dataset alone, or files"),
        ([model, str(tmp_path / "gone"), "--out", out], "there is no such folder or file"),
        ([model, model, "--out", out], "no audio found"),
    ):
        assert exit_status("features", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(("data2vec: error: ", "data2vec features: error: ")) and printed in line
    assert not list(tmp_path.glob("out*"))


def test_features_take_settings_of_how_inputs_are_read_and_name_them_in_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"modality.channels": CHANNELS, "modality.rate": 50.0, "modality.scale.by": "none", "data.workers": 0}
    small = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 1, "encoder.heads": 2}
    blank_model(load_recipe("signal/v2-tiny", known | small)).save_pretrained(tmp_path / "model")
    (tmp_path / "new").mkdir()
    for index in range(3):
        np.save(tmp_path / "new" / f"{index}.npy", waves(4.0, seed=index)[:, :2])
    words = ["features", str(tmp_path / "model"), str(tmp_path / "new"), "--out", str(tmp_path / "out.npy")]
    assert exit_status(*words) == 2  # one line for the folder, not one for each file
    assert (
        "new/0.npy and 2 more: an array of shape (200, 2), whose time axis is unknown: set data.time_axis"
        in capsys.readouterr().err
    )
    named = [*words, "data.rate=50", "data.channels=[ax,ay]"]
    assert exit_status(*named) == 2
    assert "new/0.npy and 2 more: lacks az " in capsys.readouterr().err
    assert exit_status(*named, "data.missing_channels=pad") == 0
    assert np.load(tmp_path / "out.npy").shape == (3 * 25, 16)
    wrong = ("train.lr=1", "data.train=clips", "modality.patch=4", "data.batch_size=2", "data.train_rows.seed=1")
    for word in wrong:
        assert exit_status(*words, word) == 2
        error = capsys.readouterr().err
        assert f"{word.partition('=')[0]}: is not about how inputs are read; of this model these settings are: " in error
        assert "data.rate, " in error and error.endswith("modality.aliases\n") and "batch" not in error.partition(";")[2]
    assert exit_status(*words, "data.rte=50") == 2
    error = capsys.readouterr().err
    assert "did you mean 'data.rate'?; of this model these settings are: data.split, " in error and "batch" not in error
    names = ", ".join(f"a long name of channel {index}: ax" for index in range(20))  # longer than a name of a file may be
    assert exit_status(*named, "data.missing_channels=pad", f"modality.aliases={{{names}}}", "data.streaming=true") == 2
    assert "data.streaming: is not about" in capsys.readouterr().err
    assert exit_status(*words[:2], "data.rate=50", *words[3:]) == 2
    assert "INPUT is missing; name files, or one data set (data.rate=50 is taken for a setting)" in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_keeps_finished_parts(model: str, clips: list[str], tmp_path: Path) -> None:
    for i in range(3, 4000):
        (tmp_path / "clips" / f"{i}.flac").symlink_to(clips[0])
    child = subprocess.Popen(
        [*COMMAND, model, str(tmp_path / "clips"), "--out", str(tmp_path / "out.npy")],
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)  # while it forks, Python loses what a signal raises
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=300)
    assert child.returncode == 130, printed
    assert printed.splitlines() == ["data2vec: stopped: interrupted"]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert (tmp_path / "out.npy.parts").is_dir() and not (tmp_path / "out.npy").exists()
