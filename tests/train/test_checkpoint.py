import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from data2vec.distributed import Process
from data2vec.errors import RunStopped, UserError
from data2vec.recipe.train_settings import TrainSettings
from data2vec.run_dir import checkpoint_damage, latest_checkpoint, load_checkpoint_weights
from data2vec.train import checkpoint
from data2vec.train.checkpoint import BackgroundWriter, load_checkpoint, save_checkpoint
from data2vec.train.optimizer import build_adamw

PROCESS = Process(torch.device("cpu"))


def trained(seed: int = 0, width: int = 8) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    optimizer = build_adamw(model, TrainSettings())
    model(torch.randn(4, width)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def save(run: Path, step: int, keep: int | None = None) -> Path:
    return save_checkpoint(run, step, *trained(step), {"samples": 7}, keep, PROCESS)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files over 4 kB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_load_checkpoint_restores_weights_and_optimizer(tmp_path: Path) -> None:
    save(tmp_path, 3)
    model, optimizer = trained(seed=99)
    newest = latest_checkpoint(tmp_path)
    assert newest
    assert load_checkpoint(newest, model, optimizer) == {"step": 3, "files": {}, "samples": 7}
    expected_model, expected_optimizer = trained(3)
    for one, other in zip(model.parameters(), expected_model.parameters(), strict=True):
        assert torch.equal(one, other)
        for key, value in expected_optimizer.state[other].items():
            assert torch.equal(value, optimizer.state[one][key])


def test_load_checkpoint_weights_restores_the_weights_only(tmp_path: Path) -> None:
    folder, (model, _) = save(tmp_path, 3), trained(seed=99)
    load_checkpoint_weights(folder, model)
    assert torch.equal(model.weight, trained(3)[0].weight)
    with pytest.raises(UserError, match="does not fit this recipe"):
        load_checkpoint_weights(folder, trained(width=4)[0])


def test_save_checkpoint_keeps_the_latest_ones(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-2"]


def damage_cut(folder: Path) -> None:
    file = folder / "objective.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_flip(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_missing(folder: Path) -> None:
    (folder / "state.json").unlink()


def damage_torn(folder: Path) -> None:
    (folder / "complete.json").unlink()


def damage_list(folder: Path) -> None:
    (folder / "complete.json").write_text('{"objective')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_cut, "objective.safetensors has"),
        (damage_flip, "optimizer.safetensors has a wrong checksum"),
        (damage_missing, "state.json is missing"),
        (damage_torn, "complete.json is missing"),
        (damage_list, "complete.json cannot be read"),
    ],
)
def test_latest_checkpoint_skips_and_reports_a_damaged_one(
    tmp_path: Path, damage: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))  # type: ignore[operator]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-1"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "step-2" in lines[0]
    assert said in lines[0]


def test_latest_checkpoint_without_checkpoints_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_save_checkpoint_replaces_a_temporary_folder_left_by_a_crash(tmp_path: Path) -> None:
    tmp = tmp_path / "checkpoints" / ".step-2.tmp"
    tmp.mkdir(parents=True)
    (tmp / "objective.safetensors").write_text("half")
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]


def test_save_checkpoint_on_a_full_disk_keeps_earlier_checkpoints(tmp_path: Path, small_files: None) -> None:
    save(tmp_path, 1)
    big, optimizer = trained(2, width=64)
    with pytest.raises(RunStopped, match=r"disk full.*the latest complete checkpoint is step-1") as stopped:
        save_checkpoint(tmp_path, 2, big, optimizer, {}, 1, PROCESS)
    assert len(str(stopped.value).splitlines()) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert checkpoint_damage(tmp_path / "checkpoints" / "step-1") is None


def test_background_writer_writes_what_was_there_when_the_checkpoint_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained(3)
    state, go, background = {"task": {"best": 1}}, threading.Event(), BackgroundWriter(PROCESS, sharded=False)
    write = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda *arguments: go.wait(60) and write(*arguments))
    save_checkpoint(tmp_path, 3, model, optimizer, state, None, PROCESS, lambda folder: {"data.x": "x"}, background)
    assert latest_checkpoint(tmp_path) is None
    state["task"]["best"] = 2
    with torch.no_grad():
        for parameter in model.parameters():
            for tensor in (parameter, *optimizer.state[parameter].values()):
                tensor.zero_()
    go.set()
    background.wait()
    restored = trained(seed=99)
    written = load_checkpoint(tmp_path / "checkpoints" / "step-3", *restored)
    assert written == {"step": 3, "files": {"data.x": "x"}, "task": {"best": 1}}
    expected = trained(3)
    for one, other in zip(restored[0].parameters(), expected[0].parameters(), strict=True):
        assert torch.equal(one, other)
        for key, value in expected[1].state[other].items():
            assert torch.equal(value, restored[1].state[one][key])


def test_background_writer_writes_one_checkpoint_at_a_time_and_keeps_the_latest_ones(tmp_path: Path) -> None:
    background = BackgroundWriter(PROCESS, sharded=False)
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, *trained(step), {}, 2, PROCESS, background=background)
    background.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-2"]


def test_background_writer_raises_for_a_full_disk_before_the_next_checkpoint(tmp_path: Path, small_files: None) -> None:
    background = BackgroundWriter(PROCESS, sharded=False)
    save(tmp_path, 1)
    big, optimizer = trained(2, width=64)
    save_checkpoint(tmp_path, 2, big, optimizer, {}, 1, PROCESS, background=background)
    with pytest.raises(RunStopped, match=r"disk full.*the latest complete checkpoint is step-1"):
        save_checkpoint(tmp_path, 3, big, optimizer, {}, 1, PROCESS, background=background)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    background.wait()  # an error is raised once


def test_background_writer_that_is_closed_waits_and_reports_what_failed(
    tmp_path: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    background = BackgroundWriter(PROCESS, sharded=False)
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 2, *trained(2, width=64), {}, 1, PROCESS, background=background)
    background.close()
    assert "disk full" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_load_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(UserError, match="does not fit this recipe"):
        load_checkpoint(folder, *trained(0, width=4))
