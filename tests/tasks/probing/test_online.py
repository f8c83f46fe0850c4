"""A student probed while it is trained: what is measured, and that training does not notice."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import data2vec
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.tasks.probing.features import pool_features
from data2vec.tasks.probing.online import OnlineProbe
from data2vec.train import trainer
from helpers.runs import TIMINGS, crash_before, measured

RECIPE = "vision/v2-tiny"
KEYS = {f"probe_{name}{what}" for name in ("linear", "knn") for what in ("", "_layer", "_untrained")} | {
    "probe_seconds",
    "probe_examples",
}
TINY: dict[str, Any] = {
    "train.steps": 5,
    "train.checkpoint_every": 2,
    "train.device": "cpu",
    "encoder.width": 16,
    "encoder.layers": 3,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "encoder.dropout": 0.1,
    "encoder.drop_path": 0.1,
    "objective.masks_per_sample": 2,
    "objective.target.top_k": 2,
    "objective.decoder.width": 16,
    "data.batch_size": 16,
    "data.micro_batch_size": 8,
    "data.workers": 0,
    "log.every": 2,
    "log.report": False,
    "probe.every": 3,
}
WORK = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch.distributed.fsdp import fully_shard
from data2vec.recipe.loading import load_recipe
from data2vec.nn.encoder import build_encoder
from data2vec.tasks.probing.online import OnlineProbe
from data2vec.tasks.probing.features import pool_features
from data2vec.distributed import process_group
from data2vec.train.parallel import gathered

recipe = load_recipe(sys.argv[1])
with process_group("cpu") as process:
    probe = OnlineProbe(recipe, None, process)
    torch.manual_seed(5)
    student = build_encoder(recipe.build_modality(), recipe.encoder)
    for block in student.transformer.blocks:
        fully_shard(block)
    fully_shard(student)
    found = probe({name: gathered(weight) for name, weight in student.state_dict().items()})
    del found["probe_seconds"]
    Path(sys.argv[2], f"{process.rank}.txt").write_text(str(found))
    np.save(f"{sys.argv[2]}/{process.rank}.npy", pool_features([probe.encoder], probe.modality, probe.train_set, process)[0])
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that are not easy to tell apart, twenty pictures of each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(40):
        low = 12 * (i % 2)
        (folder / ("dark", "bright")[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(low, low + 200, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / ("dark", "bright")[i % 2] / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(pictures: Path) -> dict[str, Any]:
    return TINY | {"data.train": str(pictures), "probe.data": str(pictures)}


def pretrain(out: Path, settings: dict[str, Any], **more: Any) -> Run:
    return data2vec.pretrain(RECIPE, overrides=settings, out=out, **more)


@pytest.fixture(scope="module")
def probed(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(tmp_path_factory.mktemp("probed") / "run", tiny)


def test_online_probe_runs_at_the_first_the_last_and_every_nth_step(probed: Run) -> None:
    assert [line["step"] for line in probed.metrics] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in probed.metrics if line.keys() >= KEYS] == [1, 3, 5]
    assert not any(KEYS & line.keys() for line in probed.metrics if line["step"] in (2, 4))


def test_samples_per_second_excludes_probing_time(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def lasting(seconds: float, call: Any) -> Any:
        def timed(*rest: Any, **more: Any) -> Any:
            clock[0] += seconds
            return call(*rest, **more)

        return timed

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(trainer.TrainStep, "__call__", lasting(2, trainer.TrainStep.__call__))
    monkeypatch.setattr(OnlineProbe, "__call__", lasting(1000, OnlineProbe.__call__))
    run = pretrain(tmp_path / "run", tiny)
    assert [line["samples_per_second"] for line in run.metrics] == [8] * 5
    assert [line["seconds"] for line in run.metrics] == [2, 1004, 1006, 2008, 2010]


def test_last_online_probe_equals_the_probe_of_the_saved_model(probed: Run) -> None:
    found, last = data2vec.probe(probed.folder), probed.metrics[-1]
    for name in ("linear", "knn"):
        best = found.best(name)
        assert (last[f"probe_{name}"], last[f"probe_{name}_layer"]) == (getattr(best, name), best.layer)
        start = f"untrained_{name}"
        assert last[f"probe_{name}_untrained"] == getattr(found.best(start), start)


def test_training_with_and_without_a_probe_is_bit_equal(probed: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    alone = pretrain(tmp_path / "run", tiny | {"probe.data": None, "log.every": 1})
    assert measured(alone) == measured(probed, TIMINGS | KEYS)
    weights, same = (load_file(run.model / "model.safetensors") for run in (alone, probed))
    assert all(torch.equal(weights[key], same[key]) for key in weights)


def test_online_probe_changes_neither_student_nor_random_state(tiny: dict[str, Any]) -> None:
    recipe = load_recipe(RECIPE, tiny)
    student = build_encoder(recipe.build_modality(), recipe.encoder).train()
    student.local_encoder.eval()
    modes = [part.training for part in student.modules()]
    weights = {key: value.clone() for key, value in student.state_dict().items()}
    torch.set_flush_denormal(True)
    drawn, numbers, threads = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    OnlineProbe(recipe, None, Process(torch.device("cpu")))(student.state_dict())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (np.random.get_state()[1] == numbers).all()
    assert torch.get_num_threads() == threads
    assert (torch.tensor([1e-39]) * torch.tensor([0.5])).item() == 0
    assert [part.training for part in student.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    assert all(part.requires_grad and part.grad is None for part in student.parameters())


def test_resumed_run_with_a_probe_is_bit_equal(probed: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    with crash_before(4):
        pretrain(tmp_path / "run", tiny)
    assert measured(pretrain(tmp_path / "run", tiny, resume=True)) == measured(probed)


def test_probe_can_be_added_when_a_run_is_resumed(tiny: dict[str, Any], tmp_path: Path) -> None:
    without = tiny | {"probe.data": None, "train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1}}
    pretrain(tmp_path / "run", without | {"train.steps": 2})
    longer = pretrain(tmp_path / "run", without | {"probe.data": tiny["probe.data"]}, resume=True)
    assert [line["step"] for line in longer.metrics if line.keys() >= KEYS] == [3, 5]


def test_probe_scores_are_printed(tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(tmp_path / "run", tiny | {"train.steps": 2, "probe.every": 100})
    last = run.metrics[-1]
    assert f"probe {last['probe_linear']:.1%} linear, {last['probe_knn']:.1%} kNN" in capsys.readouterr().err


def test_invalid_probe_data_raises_before_the_first_step(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one" / "dark").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (32, 32)).save(tmp_path / "one" / "dark" / f"{i}.png")
    for wrong, said in (
        ({"probe.data": str(tmp_path / "nowhere")}, r"probe\.data: .*nowhere: there is no such folder"),
        ({"probe.label": "colour"}, r"probe\.label: there is no column 'colour'"),
        ({"probe.data": str(tmp_path / "one")}, r"probe\.data: every example has the label 'dark'"),
    ):
        with pytest.raises(UserError, match=said):
            pretrain(tmp_path / "run", tiny | wrong)
        assert not (tmp_path / "run").exists()


def test_unreadable_probe_files_are_logged_once(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in pictures.glob("*/*.png"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(b"no picture" if path.name == "8.png" else path.read_bytes())
    recipe = load_recipe(RECIPE, tiny | {"probe.data": str(tmp_path)})
    with caplog.at_level(logging.WARNING):
        probe = OnlineProbe(recipe, None, Process(torch.device("cpu")))
        probe(build_encoder(recipe.build_modality(), recipe.encoder).state_dict())
    assert len(probe.train_set.indices) + len(probe.valid_set.indices) == 39
    assert sum("8.png" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_tokenized_by_the_tokenizer_of_the_run(streaming: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {"fruit": ["apple", "pear", "plum", "grape"], "metal": ["iron", "zinc", "copper", "lead"]}
    texts = [(" ".join(rng.choice(words[kind], 6)), kind) for kind in words for _ in range(40)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.txt").write_text("\n".join(text for text, _ in texts))
    (tmp_path / "table.tsv").write_text("\n".join(["text\tkind", *(f"{text}\t{kind}" for text, kind in texts)]))
    small = {key: value for key, value in TINY.items() if key not in ("objective.masks_per_sample", "objective.decoder.width")}
    settings = small | {"modality.vocab_size": 280, "data.block_size": 16, "data.batch_size": 4, "data.micro_batch_size": 4}
    settings |= {"data.train": str(tmp_path / "texts"), "probe.data": str(tmp_path / "table.tsv"), "probe.label": "kind"}
    settings |= {"modality.positions": "learned"}
    if streaming:
        first = data2vec.pretrain("text/v1-tiny", overrides=settings | {"train.steps": 1}, out=tmp_path / "first")
        settings |= {"data.streaming": True, "data.tokenizer": str(first.model)}
    run = data2vec.pretrain("text/v1-tiny", overrides=settings | {"train.steps": 2}, out=tmp_path / "run")
    assert run.metrics[-1]["probe_linear"] > 0.9
    assert data2vec.probe(run.folder).best("linear").linear == run.metrics[-1]["probe_linear"]


@pytest.mark.slow
def test_two_sharded_processes_find_the_scores_of_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, tiny)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, str(tmp_path / "work.py"), str(tmp_path / "recipe.yaml"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    torch.manual_seed(5)
    student = build_encoder(recipe.build_modality(), recipe.encoder)
    probe = OnlineProbe(recipe, None, Process(torch.device("cpu")))
    found = probe(student.state_dict())
    del found["probe_seconds"]
    features = pool_features([probe.encoder], probe.modality, probe.train_set, probe.process)[0]
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == str(found)
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), features)
