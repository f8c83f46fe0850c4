import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.distributed import Process
from data2vec.errors import RunStopped, UserError
from data2vec.recipe.train_settings import TrainSettings
from data2vec.run_dir import Run
from data2vec.train import parallel as engine

STILL = {"encoder.dropout": 0, "train.steps": 4}


def run(out: Path, recipe: str, settings: dict[str, Any], **more: Any) -> Run:
    return data2vec.pretrain(recipe, overrides=settings | more, out=out)


def losses(done: Run) -> list[float]:
    return [line["loss"] for line in done.metrics]


@pytest.mark.parametrize("recipe", ["vision/v1-tiny", "vision/v2-tiny"])
def test_recompute_gives_bitwise_equal_losses_and_weights(
    recipe: str, tiny: dict[str, Any], tiny2: dict[str, Any], tmp_path: Path
) -> None:
    """Dropout and stochastic depth included."""
    settings = tiny if "v1" in recipe else tiny2
    kept = run(tmp_path / "kept", recipe, settings)
    again = run(tmp_path / "again", recipe, settings, **{"train.recompute": True})
    assert losses(again) == losses(kept)
    one, other = (load_file(each.model / "model.safetensors") for each in (kept, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
def test_compile_gives_the_same_losses_and_blocks_share_graphs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stochastic depth, whose chance differs from block to block."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    counters.clear()
    settings = tiny | STILL | {"encoder.layers": 6, "encoder.layer_scale": 0.1, "encoder.ffn_width": 16}
    plain = run(tmp_path / "plain", "vision/v1-tiny", settings)
    compiled = run(tmp_path / "compiled", "vision/v1-tiny", settings, **{"train.compile": True})
    assert counters["stats"]["unique_graphs"] <= 4  # student and teacher, with and without what is never skipped: not twelve
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_fp16_on_cpu_or_sharded_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.precision: fp16 is hundreds of times slower"):
        engine.check_parallel_settings(TrainSettings(precision="fp16"), Process(torch.device("cpu")))
    with pytest.raises(UserError, match=r"train\.precision: fp16 is not supported with train\.shard"):
        engine.check_parallel_settings(
            TrainSettings(precision="fp16", shard=True), Process(torch.device("cuda"), rank=0, world_size=2)
        )
    engine.check_parallel_settings(
        TrainSettings(precision="fp16", shard=True), Process(torch.device("cuda"), rank=0, world_size=1)
    )


def test_fp16_loss_matches_fp32_and_resumes_exactly(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where it is refused for being slow, not for being wrong."""
    monkeypatch.setattr(engine, "check_parallel_settings", lambda *_: None)
    settings = tiny | STILL | {"train.precision": "fp16", "train.checkpoint_every": 2}
    half = run(tmp_path / "half", "vision/v1-tiny", settings)
    full = run(tmp_path / "full", "vision/v1-tiny", settings, **{"train.precision": "fp32"})
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.02)
    assert [line["loss_scale"] for line in half.metrics] == [2.0**16] * 4
    assert "loss_scale" not in full.metrics[0]
    shutil.rmtree(half.folder / "checkpoints" / "step-4")
    expected = losses(half)
    data2vec.pretrain("vision/v1-tiny", overrides=settings, out=half.folder, resume=True)
    assert losses(half) == expected


def test_fp16_overflow_skips_the_step_and_stops_when_every_step_overflows(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "check_parallel_settings", lambda *_: None)
    settings = tiny | STILL | {"train.precision": "fp16", "train.steps": 80, "objective.loss_scale": 1e4}
    over = run(tmp_path / "over", "vision/v1-tiny", settings | {"train.steps": 6})
    scales = [line["loss_scale"] for line in over.metrics]
    assert scales[0] < 2.0**16
    assert "grad_norm" not in over.metrics[0]
    with pytest.raises(RunStopped, match="the loss scale"):
        run(tmp_path / "never", "vision/v1-tiny", settings | {"objective.loss_scale": 1e30})


def test_what_no_micro_batch_uses_has_no_gradient_and_all_else_keeps_it() -> None:
    """As DDP needs it, each backward pass is through with all parameters."""
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("first", "second", "both", "none")}
    skippable, done = engine.SkippableParameters(parameters.values()), []
    for name, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: done.append(name))  # type: ignore[misc]
    for name in ("first", "second"):
        done.clear()
        skippable.require((parameters[name] * parameters["both"]).sum()).backward()  # type: ignore[no-untyped-call]
        assert sorted(done) == sorted(parameters)
    parameters["none"].grad = torch.zeros(2)  # of DDP
    skippable.clear_skipped()
    assert {name: None if p.grad is None else p.grad.tolist() for name, p in parameters.items()} == {
        **{"first": [1, 1], "second": [1, 1], "both": [2, 2], "none": None}
    }
