"""Comparisons from end to end, on tiny models."""

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec.cli import main
from data2vec.comparison.compare import build_plan, describe_plan
from data2vec.comparison.result import Comparison
from data2vec.errors import UserError
from data2vec.run_dir import Run
from data2vec.settings import JsonDict
from data2vec.train.planning.step_cost import step_cost
from data2vec.train.train_step import TrainStep

FINETUNE = {"train.steps": 2, "data.batch_size": 16, "data.micro_batch_size": 8, "data.workers": 0, "train.device": "cpu"}


@pytest.fixture(autouse=True)
def _one_step_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the operations of four steps takes longer than these runs."""
    monkeypatch.setattr("data2vec.comparison.plan.step_cost", functools.partial(step_cost, steps=1))


@pytest.fixture
def raw(tiny: dict[str, Any]) -> JsonDict:
    """Two learning rates, two seeds, a probe."""
    arms = {"slow": {"settings": {"train.lr": 1e-4}}, "fast": {"settings": {"train.lr": 1e-3}}}
    data = {key: value for key, value in tiny.items() if key not in ("data.train", "train.steps")} | {"data.train": "train"}
    data.pop("train.schedule.warmup_steps")
    probe = {"kind": "probe", "train": "train", "dev": "dev", "test": {"test": "test"}}
    settings = {"recipe": "vision/v1-tiny", "budget": {"steps": 3}, "seeds": [1, 2], "trivial": False, "data": data}
    return settings | {"arms": arms, "evaluations": {"shade": probe}}


def test_compare_two_arms_gives_scores_of_each_seed_with_paired_differences(
    raw: JsonDict, pictures: Path, tmp_path: Path
) -> None:
    result = data2vec.compare(raw, tmp_path / "out", pictures)
    slow, fast = (result.row(arm, "shade", "test", "linear accuracy") for arm in ("slow", "fast"))
    assert slow.values.keys() == fast.values.keys() == {1, 2}
    assert fast.difference == pytest.approx(sum(fast.values[seed] - slow.values[seed] for seed in (1, 2)) / 2)
    assert slow.difference is None
    assert Comparison.read(tmp_path / "out" / "results.json") == result
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == str(result)
    steps = [flops for flops, _ in result.arms[0].curves[1]]
    assert steps == [number * result.arms[0].flops_per_step for number in (1, 2, 3)]
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "<svg" in page and "slow" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_compare_again_runs_nothing(raw: JsonDict, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw |= {"seeds": [1], "arms": {"slow": {}}}
    first = data2vec.compare(raw, tmp_path, pictures)
    assert "1/1 jobs done" in capsys.readouterr().err
    assert data2vec.compare(raw, tmp_path, pictures).rows == first.rows
    assert "jobs done" not in capsys.readouterr().err


def test_compare_with_other_settings_in_the_same_folder_is_refused(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1], "arms": {"slow": {}}}
    data2vec.compare(raw, tmp_path, pictures)
    with pytest.raises(UserError, match="slow/seed-1 was made with other settings"):
        data2vec.compare(raw | {"budget": {"steps": 4}}, tmp_path, pictures)
    raw["evaluations"]["shade"]["knn_k"] = 3
    with pytest.raises(UserError, match=r"slow/seed-1 was made with other settings \(recipe, evaluations\)"):
        data2vec.compare(raw, tmp_path, pictures)


def test_compare_does_not_replace_a_run_when_a_larger_grid_chooses_other_settings(
    raw: JsonDict, pictures: Path, tmp_path: Path
) -> None:
    raw |= {"seeds": [1], "arms": {"slow": {"settings": {"train.lr": 5e-4}}}}
    data2vec.compare(raw, tmp_path, pictures)
    before = (tmp_path / "slow" / "seed-1" / "outcome.json").read_bytes()
    raw |= {"arms": {"slow": {"grid": {"train.lr": [1e-3, 2e-3]}}}, "tune": {"seed": 7}}
    with pytest.raises(UserError, match="slow/seed-1 was made with other settings"):
        data2vec.compare(raw, tmp_path, pictures)
    assert (tmp_path / "slow" / "seed-1" / "outcome.json").read_bytes() == before


def test_compare_at_equal_flops_differs_by_less_than_a_step(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw["arms"] = {"small": {}, "large": {"settings": {"encoder.ffn_width": 256}}}
    plan = build_plan(raw, tmp_path, pictures, {"budget.flops": 1e9})
    for arm in ("small", "large"):
        assert 0 <= 1e9 - plan.flops(arm, {}) < plan.cost(arm, {}).flops
    assert plan.steps("small", {}) > plan.steps("large", {})


def test_compare_keeps_a_collapsed_arm_as_failed_and_goes_on(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    never = {"health.min_target_std": 1e9, "health.grace_steps": 1}
    raw |= {"seeds": [1], "arms": {"collapsing": {"settings": never}, "other": {}}}
    result = data2vec.compare(raw, tmp_path, pictures)
    assert "collapsed" in result.arms[0].failed["collapsing/seed-1"]
    assert {row.arm for row in result.rows} == {"other"}
    assert "collapsed" in str(result)
    assert result.arms[0].to_repeat == []
    before = (tmp_path / "collapsing" / "seed-1" / "outcome.json").stat().st_mtime_ns
    data2vec.compare(raw, tmp_path, pictures)
    assert (tmp_path / "collapsing" / "seed-1" / "outcome.json").stat().st_mtime_ns == before


def test_command_whose_job_failed_prints_the_table_and_exits_1(
    raw: JsonDict, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("data2vec.comparison.run.pretrain", fail)
    raw |= {"seeds": [1], "arms": {"failing": {}}}
    (tmp_path / "x.yaml").write_text(json.dumps(raw))
    assert main(["compare", str(tmp_path / "x.yaml"), "--data", str(pictures), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "failing/seed-1: OSError: the disk is gone" in out
    assert "1 jobs failed" in err


def test_compare_tunes_each_arm_on_dev_with_a_seed_of_its_own(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1], "arms": {"a": {"grid": {"train.lr": [1e-4, 1e-3]}}}}
    result = data2vec.compare(raw, tmp_path, pictures)
    tried = result.arms[0].tuning
    assert [each["settings"] for each in tried] == [{"train.lr": 1e-4}, {"train.lr": 1e-3}]
    best = max(tried, key=lambda each: each["dev"])  # the first of equals
    assert result.arms[0].settings == best["settings"]
    recipe = data2vec.load_recipe(Run(tmp_path / "a" / "seed-1" / "run").recipe)
    assert (recipe.train.lr, recipe.train.seed) == (best["settings"]["train.lr"], 1)
    assert data2vec.load_recipe(Run(tmp_path / "a" / "tune" / "lr=0.001" / "run").recipe).train.seed == 101


def test_compare_finetunes_trained_and_scratch_arms_alike(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    sets = {"train": "train", "dev": "dev", "test": {"test": "test"}}
    raw |= {"seeds": [1], "evaluations": {"few": {"kind": "finetune", "recipe": "vision/classify-tiny", **sets}}}
    raw["evaluations"]["few"] |= {"settings": FINETUNE}
    raw["arms"] = {"a": {}, "scratch": {"scratch": True}, "longer": {"scratch": True, "equal_flops": True}}
    result = data2vec.compare(raw, tmp_path, pictures)
    assert {row.arm for row in result.rows} == {"a", "scratch", "longer"}
    steps = {
        arm: data2vec.load_recipe(tmp_path / arm / "few" / "seed-1" / "few" / "run" / "recipe.yaml").train.steps
        for arm in ("a", "scratch", "longer")
    }
    assert steps["a"] == steps["scratch"] == 2 < steps["longer"]


def test_compare_has_trivial_baselines_in_the_table(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1], "arms": {"untrained": {"untrained": True}}, "trivial": True}
    result = data2vec.compare(raw, tmp_path, pictures)
    assert result.row("majority class", "shade", "test", "linear accuracy").mean == 0.5
    assert [arm.kind for arm in result.arms] == ["untrained", "trivial"]
    assert "| majority class" in str(result)


def test_compare_only_one_arm_needs_nothing_of_the_others(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1]}
    raw["arms"]["absent"] = {"recipe": "absent.yaml"}
    result = data2vec.compare(raw, tmp_path, pictures, only=["fast"])
    assert [arm.name for arm in result.arms] == ["fast"]
    assert {row.difference for row in result.rows} == {None}  # the reference has not run


@pytest.mark.slow
def test_compare_in_two_processes_gives_the_same_scores(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1]}
    raw["data"]["data.workers"] = 1  # forked beside the thread that waits for commands
    one = data2vec.compare(raw, tmp_path / "one", pictures)
    two = data2vec.compare(raw, tmp_path / "two", pictures, processes=2)
    assert two.rows == one.rows


def test_compare_interrupted_while_training_resumes_the_run(
    raw: JsonDict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw |= {"seeds": [1], "arms": {"a": {}}, "budget": {"steps": 8}}
    make_step = TrainStep.__call__

    def interrupt(self: Any, step: int, *rest: Any, **more: Any) -> Any:
        if step == 6:
            raise KeyboardInterrupt
        return make_step(self, step, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            data2vec.compare(raw, tmp_path, pictures)
    run = Run(tmp_path / "a" / "seed-1" / "run")
    assert run.checkpoints and not (run.folder.parent / "outcome.json").exists()
    reached = int(run.checkpoints[0].name[5:])
    result = data2vec.compare(raw, tmp_path, pictures)
    assert [start["step"] for start in run.starts] == [0, reached]
    assert result.arms[0].missing == 0


@pytest.mark.slow
def test_compare_interrupted_resumes_from_the_checkpoint(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw |= {"seeds": [1], "arms": {"a": {}}, "budget": {"steps": 400}}
    (tmp_path / "c.yaml").write_text(json.dumps(raw), encoding="utf-8")
    command = [sys.executable, "-m", "data2vec", "compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    command += ["--data", str(pictures), "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    run = Run(tmp_path / "out" / "a" / "seed-1" / "run")
    while process.poll() is None and len(run.metrics) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert run.checkpoints
    assert not (run.folder.parent / "outcome.json").exists()
    reached = int(run.checkpoints[0].name[5:])
    result = data2vec.compare(raw, tmp_path / "out", pictures)
    assert [start["step"] for start in run.starts] == [0, reached]
    assert result.arms[0].missing == 0


def test_compare_command_runs_recipes_with_a_probe_of_their_own(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{key}={json.dumps(value)}" for key, value in tiny.items() if key.startswith(("encoder", "data", "objective"))]
    words = ["vision/v1-tiny", "--out", str(tmp_path), "budget.steps=2", "--seeds", "1", "train.device=cpu", "trivial=false"]
    assert main(["compare", *words, *settings, f"probe.data={pictures / 'train'}"]) == 0
    out = capsys.readouterr().out
    assert "| vision/v1-tiny" in out and "| untrained" in out
    assert "linear accuracy" in out


def test_compare_with_a_missing_test_set_is_refused_before_training(raw: JsonDict, pictures: Path, tmp_path: Path) -> None:
    raw["evaluations"]["shade"]["test"] = {"test": "missing"}
    with pytest.raises(UserError, match=r"evaluations\.shade: test test: missing: there is no such folder"):
        describe_plan(build_plan(raw, tmp_path / "plan", pictures))
    with pytest.raises(UserError, match=r"evaluations\.shade: test test: missing: there is no such folder"):
        data2vec.compare(raw, tmp_path / "out", pictures)
    assert not list((tmp_path / "out").rglob("run"))


def test_compare_dry_run_prints_the_plan_and_trains_nothing(
    raw: JsonDict, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(raw), encoding="utf-8")
    words = ["compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "--data", str(pictures), "--dry-run"]
    assert main(words) == 0
    assert "4 jobs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
