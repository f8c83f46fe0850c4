"""The recipes of fine-tuning against the released ones, number by number."""

import re
from pathlib import Path
from typing import Any

import pytest

from data2vec import cli_help
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.shipped import recipe_names

TRI = {"name": "tri_stage", "warmup": 0.1, "hold": 0.4, "initial_scale": 0.01, "final_scale": 0.05}
# name: steps, lr, share of masked positions and of channels, layer drop, frozen steps, seconds a step and a device
SPEECH = {
    "v1-base-10m": (13000, 5e-5, 0.65, 0.25, 0.1, 10000, 1600, 200),
    "v1-base-1h": (13000, 5e-5, 0.65, 0.25, 0.1, 10000, 1600, 200),
    "v1-base-10h": (20000, 5e-5, 0.65, 0.5, 0.05, 10000, 1600, 200),
    "v1-base-100h": (80000, 3e-5, 0.65, 0.5, 0.1, 0, 1600, 200),
    "v1-base-960h": (320000, 1e-4, 0.5, 0.1, 0.1, 0, 1600, 200),
    "v1-large-10m": (13000, 1e-4, 0.65, 0.25, 0.1, 10000, 1600, 80),
    "v1-large-1h": (13000, 3e-4, 0.75, 0.25, 0.1, 10000, 1600, 80),
    "v1-large-10h": (20000, 1e-4, 0.75, 0.25, 0.1, 10000, 1600, 80),
    "v1-large-100h": (80000, 3e-5, 0.5, 0.5, 0.1, 10000, 1600, 80),
    "v1-large-960h": (320000, 3e-5, 0.5, 0.25, 0.1, 10000, 1920, 80),
}
# name: steps, lr, warm-up of a cosine, share and length of masks, channels, frozen steps, devices × accumulation, samples
SPEECH_2 = {
    "v2-10m": (13000, 2e-5, None, 0.65, 10, 0.25, 10000, 20, 1.28e6),
    "v2-1h": (13000, 6e-5, None, 0.65, 10, 0.25, 10000, 40, 0.64e6),
    "v2-10h": (60000, 2e-5, 8000, 0.5, 5, 0.1, 100, 4, 1.28e6),
    "v2-100h": (100000, 1e-5, 8000, 0.4, 5, 0.1, 100, 8, 1.0e6),
    "v2-960h": (200000, 1e-5, 8000, 0.4, 5, 0.1, 100, 16, 1.0e6),
}
# name: epochs, batch, lr, warm-up steps, last lr, drop path, layer decay, mixup, its chance, betas, clip
VISION = {
    "v1-base": (100, 1024, 4e-3, 10 * 1251, 1e-6, 0.2, 0.65, 0.8, 1.0, (0.9, 0.999), 0),
    "v1-large": (50, 1024, 5e-3, 5 * 1251, 1e-6, 0.25, 0.65, 0.8, 1.0, (0.9, 0.999), 0),
    "v2-base": (100, 512, 1e-3, 16000, 1e-6, 0.1, 0.65, 0.7, 0.9, (0.9, 0.95), 0),
    "v2-large": (50, 512, 5e-4, 16000, 1e-7, 0.2, 0.75, 0.7, 0.9, (0.9, 0.95), 4),
    "v2-huge": (50, 512, 5e-4, 16000, 1e-20, 0.2, 0.75, 0.7, 0.9, (0.9, 0.95), 4),
}
# name: batch, warm-up, steps, lr of version 1 and 2, metric, pairs
GLUE = {
    "cola": (16, 320, 5336, 1e-5, 2e-5, "matthews", False),
    "mnli": (32, 7432, 123873, 1e-5, 2e-5, "accuracy", True),
    "mrpc": (16, 137, 2296, 1e-5, 2e-5, "accuracy_f1", True),
    "qnli": (32, 1986, 33112, 1e-5, 2e-5, "accuracy", True),
    "qqp": (32, 28318, 113272, 1e-5, 2e-5, "accuracy_f1", True),
    "rte": (16, 122, 2036, 2e-5, 2e-5, "accuracy", True),
    "sst2": (32, 1256, 20935, 1e-5, 2e-5, "accuracy", False),
    "stsb": (16, 214, 3598, 2e-5, 4e-5, "pearson_spearman", True),
}


def test_recipes_named_in_help_and_docs_exist() -> None:
    root = Path(__file__).parents[2]
    texts = [cli_help.__doc__, *(value for value in vars(cli_help).values() if isinstance(value, str))]
    texts += [path.read_text(encoding="utf-8") for path in (root / "README.md", *(root / "docs").glob("*.md"))]
    spoken = {
        name
        for text in texts
        for name in re.findall(r"\b(?:speech|vision|text)/(?:v\d|ctc|classify|glue)-[\w-]*\w", text or "")
    }
    partly = {name for name in spoken if any(known.startswith(name) for known in recipe_names())}  # "speech/ctc-v1-large-…"
    assert spoken and spoken == partly


def speech(name: str) -> tuple[Any, dict[str, Any]]:
    found = load_recipe(f"speech/ctc-{name}")
    assert (found.train.betas, found.train.eps, found.train.weight_decay, found.train.clip_norm) == ((0.9, 0.98), 1e-8, 0, 0)
    assert found.modality.conv_grad_scale == 0  # type: ignore[attr-defined]
    encoder = found.encoder
    assert (encoder.dropout, encoder.attention_dropout, encoder.activation_dropout) == (0, 0, 0.1)
    assert found.objective.dropout == 0 and found.objective.channel_mask.length == 64
    return found, found.train.schedule.model_dump()


@pytest.mark.parametrize("name", SPEECH)
def test_ctc_recipe_of_version_1_has_the_published_settings(name: str) -> None:
    steps, lr, share, channels, layerdrop, frozen, seconds, device = SPEECH[name]
    found, schedule = speech(name)
    task = found.objective
    assert (found.train.steps, found.train.lr, schedule) == (steps, lr, TRI)
    assert (task.mask.prob, task.mask.length, task.channel_mask.prob, task.mask_fill) == (share, 10, channels, "vector")
    assert (found.encoder.layerdrop, task.freeze_steps) == (layerdrop, frozen)
    assert (found.data.batch_seconds, found.data.micro_batch_seconds) == (seconds, device)


@pytest.mark.parametrize("name", SPEECH_2)
def test_ctc_recipe_of_version_2_has_the_published_settings(name: str) -> None:
    steps, lr, warmup, share, length, channels, frozen, devices, samples = SPEECH_2[name]
    found, schedule = speech(name)
    task = found.objective
    expected = TRI if warmup is None else {"name": "cosine", "warmup_steps": warmup, "final_lr": 0.0}
    assert (found.train.steps, found.train.lr, schedule) == (steps, lr, expected)
    assert (task.mask.prob, task.mask.length, task.channel_mask.prob, task.mask_fill) == (share, length, channels, "noise")
    assert (found.encoder.layerdrop, task.freeze_steps) == (0.1, frozen)
    assert found.data.micro_batch_seconds == pytest.approx(samples / 16000)
    assert found.data.batch_seconds == pytest.approx(devices * samples / 16000)


@pytest.mark.parametrize("name", VISION)
def test_image_recipe_has_the_published_settings(name: str) -> None:
    epochs, batch, lr, warmup, last, drop_path, decay, mixup, chance, betas, clip = VISION[name]
    found: Any = load_recipe(f"vision/classify-{name}")
    train, data, task = found.train, found.data, found.objective
    assert train.steps == pytest.approx(epochs * 1281167 / batch, rel=2e-3)
    assert (data.batch_size, train.lr, train.betas, train.weight_decay, train.clip_norm) == (batch, lr, betas, 0.05, clip)
    assert train.schedule.model_dump() == {"name": "cosine", "warmup_steps": warmup, "final_lr": last}
    assert (found.encoder.drop_path, train.layer_decay.rate) == (drop_path, decay)
    assert train.layer_decay.below == ("decayed" if name.startswith("v1") else "full")
    assert (task.mixing.mixup, task.mixing.cutmix, task.mixing.prob) == (mixup, 1.0, chance)
    assert (task.mixing.switch_prob, task.mixing.label_smoothing) == (0.5, 0.1)
    assert (task.pooling, task.norm_eps) == ("mean", 1e-6)
    assert (data.rand_augment.ops, data.rand_augment.magnitude, data.rand_augment.magnitude_std) == (2, 9, 0.5)
    assert data.random_erasing == 0.25
    assert (data.crop_scale, data.color_jitter, data.flip) == ((0.08, 1), 0, 0.5)
    half = (0.5, 0.5, 0.5)
    assert (found.modality.mean == half and found.modality.std == half) is name.startswith("v1")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", GLUE)
def test_glue_recipe_has_the_published_settings(name: str, version: int) -> None:
    batch, warmup, steps, *rates, metric, pairs = GLUE[name]
    found: Any = load_recipe(f"text/glue-v{version}-{name}")
    train, task = found.train, found.objective
    assert (train.steps, train.lr, found.data.batch_size) == (steps, rates[version - 1], batch)
    assert train.schedule.model_dump() == {"name": "polynomial", "warmup_steps": warmup, "power": 1.0}
    assert (train.betas, train.eps, train.weight_decay, train.clip_norm) == ((0.9, 0.98), 1e-6, 0.1, 0)
    assert (task.pooling, task.hidden_layer, task.dropout, task.metric) == ("first", "tanh", 0, metric)
    assert (found.data.second is not None) is pairs
    assert (task.problem_type == "regression") is (name == "stsb") and (task.label_scale == 5) is (name == "stsb")


def test_audioset_recipe_has_the_published_settings() -> None:
    found: Any = load_recipe("speech/classify-audioset")
    train, task = found.train, found.objective
    assert (train.steps, train.lr, train.head_lr) == (13000, 3e-5, 2e-4)  # as in the paper
    assert train.schedule.model_dump() == {"name": "cosine", "warmup_steps": 5000, "final_lr": 0.0}
    assert (found.data.batch_seconds, task.mask.prob, task.mask.length, task.mixing.prob) == (1280, 0.45, 4, 0.7)
    assert (task.problem_type, task.pooling, task.metric) == ("multi_label_classification", "linear-softmax", "map")
    encoder = found.encoder
    assert (encoder.dropout, encoder.attention_dropout, encoder.activation_dropout, encoder.layerdrop) == (0.1, 0.2, 0.1, 0.1)
    assert found.modality.conv_grad_scale == 0
