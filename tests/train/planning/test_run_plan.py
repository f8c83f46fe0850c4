"""The plan of a run, against the run itself."""

import json
import mmap
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.errors import UserError
from data2vec.train.planning import advice, measure
from data2vec.train.planning import plan as planning_of_a_run
from data2vec.train.planning.run_plan import RunPlan, StepMeasurement
from helpers.command import exit_status

TEACHER = "objective.teacher."


@pytest.fixture
def short(tiny2: dict[str, Any]) -> dict[str, Any]:
    """A run whose schedules fit its length."""
    shares = {f"{TEACHER}{key}": None for key in ("half_life", "end_half_life", "anneal")}
    return tiny2 | shares | {f"{TEACHER}decay": 0.91, f"{TEACHER}end_decay": 0.91, f"{TEACHER}anneal_steps": 0}


def plan(overrides: dict[str, Any], name: str = "vision/v2-tiny", **more: Any) -> RunPlan:
    return data2vec.plan(name, overrides=overrides, **({"measure": False} | more))


def keys(found: RunPlan) -> list[str]:
    return [each.key for each in found.advice]


def words(overrides: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in overrides.items()]


def test_counts_are_those_of_the_recipe_and_its_data(short: dict[str, Any]) -> None:
    found = plan(short)
    assert (found.examples, found.steps, found.warmup_steps) == (40, 8, 2)
    assert found.epochs == 4, "40 images are 5 micro-batches of 8, of which a step has 2"
    assert (found.batch, found.batch_unit, found.micro_batch, found.accumulation) == (16, "examples", 8, 2)
    assert found.teacher is not None
    assert 0.91**found.teacher.half_life == pytest.approx(0.5)
    assert "half-life 7.35 steps (91.9% of the run)" in str(found) and "2 micro-batches of 8" in str(found)
    assert found.measured is None
    assert found.seconds is None


def test_a_warm_start_is_announced_with_its_end(short: dict[str, Any]) -> None:
    found = plan(short | {"objective.input_target": {"features": "raw", "fade_to": 0.3}})
    assert (found.warm_start, plan(short).warm_start) == (3, 0)
    assert "  warm start  the input is predicted too until step 3; the loss may rise as that ends" in str(found)


def test_a_frozen_teacher_never_forgets(tiny2: dict[str, Any]) -> None:
    found = plan(tiny2 | {"objective.teacher.end_decay": 1.0})
    assert found.teacher is not None
    assert found.teacher.end_half_life is None
    assert "then never forgets after 4 steps (50% of the run)" in str(found)


def test_parameters_and_checkpoints_are_those_of_the_run(short: dict[str, Any], tmp_path: Path) -> None:
    found = plan(short)
    run = data2vec.pretrain("vision/v2-tiny", overrides=short, out=tmp_path / "run")
    folders = run.checkpoints
    tensors = {name: tensor for file in folders[0].glob("*.safetensors") for name, tensor in load_file(file).items()}
    steps = tensors.pop("optimizer.step")
    assert len(steps) < 100, "a number for each weight matrix, which is left out"
    assert found.checkpoint_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert found.checkpoints == len(folders) + 1, "one more while it is written"
    model = data2vec.load(run.folder)
    assert found.parameters > sum(p.numel() for p in model.encoder.parameters())


def test_an_input_that_is_predicted_to_the_end_is_no_warm_start(short: dict[str, Any]) -> None:
    found = plan(short | {"objective.input_target": {"features": "raw", "weight": 0.8, "fade_from": 1, "fade_to": 1}})
    assert (found.warm_start, found.input_share) == (0, 0.8)
    assert "  input       predicted too, with 0.8 of the loss to the end" in str(found)


@pytest.mark.parametrize(("load_seconds", "compared"), [(1.0, "less"), (9.0, "more")])
def test_what_is_measured_is_shown_with_the_copy_of_a_checkpoint(
    short: dict[str, Any], load_seconds: float, compared: str
) -> None:
    measured = StepMeasurement(1e9, 2.0, 80_000_000, 30_000_000, 200_000_000, load_seconds)
    shown = str(replace(plan(short), measured=measured))
    assert "80 MB at the peak (measured), 30 MB more while a checkpoint is written, 200 MB available" in shown
    assert f", {compared} than the step itself" in shown
    assert "30 MB" not in str(replace(plan(short), measured=replace(measured, copied=0)))


@pytest.mark.parametrize(
    ("memory", "copied", "named"),
    [(80, 0, None), (80, 5, None), (80, 30, "train.async_checkpoints"), (95, 5, "data.micro_batch_size")],
)
def test_advice_on_memory_names_what_does_not_fit(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, memory: int, copied: int, named: str | None
) -> None:
    measured = StepMeasurement(1e9, 2.0, memory * 10**6, copied * 10**6, 100 * 10**6, None)
    monkeypatch.setattr(planning_of_a_run, "measure_step", lambda *arguments: measured)
    found = keys(plan(short, measure=True))
    assert [key for key in found if key in ("train.async_checkpoints", "data.micro_batch_size")] == ([named] if named else [])


def test_planning_writes_nothing_and_leaves_the_random_state_alone(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    found = plan(short, measure=True)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert list(tmp_path.iterdir()) == []
    assert found.measured is not None
    assert 0 < found.measured.memory < found.measured.available
    assert found.seconds == pytest.approx(8 * found.measured.seconds)
    assert found.load_seconds == found.measured.load_seconds / max(1, found.workers) > 0  # type: ignore[operator]


def test_copy_of_a_checkpoint_is_measured_where_it_is_made(short: dict[str, Any]) -> None:
    found = plan(short | {"train.async_checkpoints": True, "train.device": "cpu"}, measure=True)
    assert found.measured is not None and found.measured.copied == found.checkpoint_bytes > 0
    found = plan(short, measure=True)
    assert found.measured is not None and found.measured.copied == 0


def test_measured_flops_are_those_of_the_whole_step(short: dict[str, Any]) -> None:
    one, two = (plan(short | {"data.batch_size": size}, measure=True).measured for size in (8, 16))
    assert one is not None
    assert two is not None
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)


@pytest.mark.slow
def test_measured_flops_of_two_processes_that_share_a_micro_batch_are_those_of_both(
    short: dict[str, Any], tmp_path: Path
) -> None:
    overrides = short | {"data.batch_size": 8, "train.device": "cpu"}
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "data2vec", "plan")
    command = [*start, "vision/v2-tiny", *words(overrides), "--json", str(tmp_path / "plan.json")]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    alone = plan(overrides, measure=True).measured
    assert alone is not None
    assert json.loads((tmp_path / "plan.json").read_text())["measured"]["flops"] == pytest.approx(alone.flops, rel=0.1)


def test_peak_memory_on_a_cpu_sees_a_block_that_is_freed() -> None:
    with measure.peak_memory(torch.device("cpu")) as before:
        pass
    with measure.peak_memory(torch.device("cpu")) as peak, mmap.mmap(-1, 2**26) as block:  # a tensor may reuse resident pages
        for page in range(0, 2**26, mmap.PAGESIZE):
            block[page] = 1
    assert peak.bytes - before.bytes > 2**25


def test_a_healthy_plan_warns_of_nothing(short: dict[str, Any]) -> None:
    assert plan(short).warnings == []


@pytest.mark.parametrize(
    ("changes", "key", "reason", "better"),
    [
        (
            {"data.batch_size": 4, "data.micro_batch_size": 4},
            "train.steps",
            "80.0% of an epoch",
            "train.steps=10",
        ),
        ({"train.steps": 2000}, "train.steps", "1,000 epochs, and the published base model was trained for 75", "steps=150"),
        ({"train.schedule.warmup_steps": 9}, "train.steps", "ends within the warm-up", "train.schedule.warmup_steps=1"),
        ({"train.checkpoint_every": 9}, "train.checkpoint_every", "9 is more than the 8 steps", "train.checkpoint_every=1"),
        ({"data.workers": 512}, "data.workers", "512 processes that load data share", "set data.workers="),
        (
            {"encoder.width": 768, "encoder.layers": 1, "objective.target.top_k": 1},
            "encoder.width",
            "from 10,000 images on, and there are 40",
            "vision/v2-small",
        ),
        (
            {f"{TEACHER}decay": 0.8, f"{TEACHER}end_decay": 0.8},
            f"{TEACHER}decay",
            "starts with a half-life of 3.1 steps, and below 6.6 it is hardly an average",
            "decay=0.99",
        ),
    ],
)
def test_what_is_unwise_has_a_reason_and_a_better_setting(
    short: dict[str, Any], changes: dict[str, Any], key: str, reason: str, better: str
) -> None:
    (found,) = plan(short | changes).advice
    assert found.key == key
    assert reason in found.reason
    assert better in found.better
    assert str(found) in str(plan(short | changes))


def test_validation_on_the_training_data_is_reported(short: dict[str, Any], pictures: Path) -> None:
    assert keys(plan(short | {"data.valid": str(pictures)})) == ["data.valid"]
    part = {"data.valid_rows": {"fraction": 0.5}}
    assert keys(plan(short | {"data.valid": str(pictures)} | part)) == []


def test_checkpoints_that_do_not_fit_on_the_disk_are_reported(short: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "_free_bytes", lambda folder: 1000)
    (found,) = plan(short).advice
    assert found.key == "train.keep_checkpoints"
    assert "1 kB are free" in found.reason


def test_a_batch_larger_than_the_data_is_refused_as_by_the_run(short: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size: a step has 64 examples, but the training data only has 40"):
        plan(short | {"data.batch_size": 64})


def test_dry_run_prints_the_plan_and_writes_nothing(
    short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status("pretrain", "vision/v2-tiny", "--dry-run", *words(short)) == 0
    assert "plan: vision, data2vec2" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert exit_status("pretrain", "vision/v2-tiny", "--dry-run", "--resume", *words(short)) == 2


def test_plan_command_writes_all_numbers_as_json(
    short: dict[str, Any], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = words({key: value for key, value in short.items() if key != "data.train"})
    file = tmp_path / "plan.json"
    arguments = ("--data", str(pictures), "--no-measure", "--json", str(file))
    assert exit_status("plan", "vision/v2-tiny", *settings, *arguments) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["examples"], written["epochs"], written["warnings"]) == (40, 4.0, [])
    assert "40 examples" in capsys.readouterr().out


def test_a_run_starts_with_its_plan(short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data2vec.pretrain("vision/v2-tiny", overrides=short, out=tmp_path / "run")
    printed = capsys.readouterr().err
    assert "  steps       8, 4 epochs" in printed
    assert printed.index("  steps ") < printed.index("step 1/8: loss")
    said = r"^loading takes [\d.]+ m?s a step by the training process; a step takes [\d.]+ m?s$"
    assert re.search(said, printed, re.MULTILINE)
