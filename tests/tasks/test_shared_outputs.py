"""Evaluation and probes in shares: the last one has the result of one process, and what is finished is not computed again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data2vec
from data2vec.cli import main
from data2vec.errors import Unfinished, UserError
from data2vec.model import Model
from data2vec.tasks import digests, shares
from data2vec.tasks.eval_batches import EvalPass
from data2vec.tasks.finetuning import evaluate
from data2vec.tasks.probing.features import compute_pooled
from helpers.fine_tuned import fine_tuned, make_data

Task = Callable[..., Any]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of two examples, and a shard for every group."""
    monkeypatch.setattr(shares, "SMALLEST_BLOCK", 2)
    monkeypatch.setattr(shares, "SHARD_SECONDS", 0)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    where = make_data(tmp_path / "data")
    (tmp_path / "data" / "sounds" / "3.wav").write_bytes(b"no sound")
    return where


def evaluation(kind: str, label: str) -> Callable[[dict[str, Path]], Task]:
    def prepare(data: dict[str, Path]) -> Task:
        model = fine_tuned(kind, data["tokenizer"])
        overrides = {"objective.label": label, "data.max_seconds": 0.6, "data.micro_batch_seconds": 0.6}
        return lambda out=None, **more: data2vec.evaluate(model, str(data[kind]), overrides, out, **more)

    return prepare


def probing(probe: Task, **settings: Any) -> Callable[[dict[str, Path]], Task]:
    def prepare(data: dict[str, Path]) -> Task:
        model: Model = fine_tuned("classes of sounds", data["tokenizer"])
        sounds = str(data["events"])
        return lambda out=None, **more: probe(model, sounds, sounds, out=out, **settings, **more)

    return prepare


TASKS = {
    "classes": evaluation("classes of sounds", "label"),
    "transcripts": evaluation("transcripts", "transcript"),
    "probe": probing(data2vec.probe),
    "few shots": probing(data2vec.few_shot_probe, shots=2, draws=2),
    "superb": probing(data2vec.superb_probe, steps=3),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_last_share_has_the_result_of_one_process(data: dict[str, Path], tmp_path: Path, task: str) -> None:
    run, out = TASKS[task](data), tmp_path / "out.json"
    whole = run(tmp_path / "whole.json")
    for i in (3, 1):
        with pytest.raises(Unfinished, match=rf"out\.json: share {i} of 3 is complete; \d+ inputs of other shares are missing"):
            run(out, shard=f"{i}/3")
    found = run(out, shard="2/3")
    assert str(found) == str(whole)
    assert_close(json.loads(out.read_text()), json.loads((tmp_path / "whole.json").read_text()))
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out.json", "whole.json"}
    assert "9 examples" in str(found) or "9 held-out" in str(found), "without the one that cannot be decoded"


def assert_close(found: Any, expected: Any) -> None:
    if isinstance(expected, dict | list):
        assert len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_close(found[key], expected[key])
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


def test_an_interrupted_evaluation_computes_only_what_is_missing(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = TASKS["classes"](data), tmp_path / "out.json"
    rows, most = list[int](), 6

    def counted(self: EvalPass, groups: Any, batches: Any = EvalPass.batches) -> Any:
        for found in batches(self, groups):
            if len(rows) >= most:
                raise KeyboardInterrupt
            rows.extend(row for each, _ in found for row in each.tolist())
            yield found

    monkeypatch.setattr(EvalPass, "batches", counted)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    first, rows, most = sorted(rows), [], 100
    (parts,) = tmp_path.glob("out.json.*.parts")
    assert run(out, precision="bf16").examples == 9
    assert len(rows) == 9, "other settings have a folder of their own"
    rows = []
    assert run(out).examples == 9
    assert 0 < len(rows) < 9 and sorted({*first, *rows}) == list(range(9))
    assert not parts.exists()


@pytest.mark.parametrize("setting", [{"modality.position_depth": 1}, {"encoder.ffn_width": 16}, {"train.seed": 7}], ids=str)
def test_shares_of_other_settings_of_the_recipe_are_not_mixed(
    data: dict[str, Path], tmp_path: Path, setting: dict[str, int]
) -> None:
    run, out = TASKS["probe"](data), tmp_path / "out.json"
    for shard, overrides in (("1/2", setting), ("2/2", {})):
        with pytest.raises(Unfinished, match=r"\d+ inputs of other shares are missing"):
            run(out, shard=shard, overrides=overrides)


def test_shares_need_a_file_for_the_result(data: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="shard: 1/2, but this process writes no file"):
        TASKS["classes"](data)(shard="1/2")


@pytest.mark.parametrize("verb", ["evaluate", "probe"])
def test_processes_of_torchrun_refuse_a_model_that_is_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([verb, "someone/model"]) == 2
    assert "someone/model: is no folder, beside whose result several processes could keep" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classes", "probe"])
def test_without_a_file_for_the_result_nothing_is_hashed(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Hashing reads all rows of a custom modality, which need not be fit for it."""
    monkeypatch.setattr(digests, "content_digest", None)
    monkeypatch.setattr(hashlib, "blake2b", None)
    assert "9 examples" in (found := str(TASKS[task](data)())) or "9 held-out" in found


def test_bf16_products_round_pooled_features(data: dict[str, Path]) -> None:
    model = fine_tuned("classes of sounds", data["tokenizer"])
    batch = model.prepare([np.random.default_rng(0).standard_normal(8000)])
    exact, rounded = (
        compute_pooled([model.encoder], model.modality, "all", precision)(batch)[0] for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - rounded).max() < 0.1
    with pytest.raises(UserError, match="precision: 'fp16' does not exist"):
        TASKS["probe"](data)(precision="fp16")


@pytest.mark.parametrize("error", [UserError("no such label"), OSError("full")], ids=["user", "disk"])
def test_outputs_are_kept_for_another_try_unless_it_would_fail_again(
    error: Exception, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS["classes"](data)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "compute_scores", fail)
    with pytest.raises(type(error)):
        task(tmp_path / "scores.json")
    assert len(list(tmp_path.glob("scores.json.*.parts"))) == isinstance(error, OSError)


def test_features_are_kept_for_fewer_shots_than_there_were_too_many(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="shots: 50 are more than the training examples"):
        probing(data2vec.few_shot_probe, shots=50, draws=2)(data)(tmp_path / "shots.json")

    def refused(self: EvalPass, groups: Any) -> Any:
        assert not list(groups), "features are computed again"
        return iter(())

    monkeypatch.setattr(EvalPass, "batches", refused)
    assert probing(data2vec.few_shot_probe, shots=2, draws=2)(data)(tmp_path / "shots.json").shots == 2
    assert not list(tmp_path.glob("*.parts"))
