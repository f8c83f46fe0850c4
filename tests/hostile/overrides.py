"""Hostile overrides: every setting of tiny recipes with values that nobody should give, run through the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from data2vec.recipe.loading import load_recipe
from data2vec.train.train_step import TrainStep
from helpers.command import exit_status

SMALL = {
    "encoder.width": 16,
    "encoder.layers": 3,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "data.workers": 0,
    "log.report": False,
    "train.device": "cpu",
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "speech": (
        "speech/v1-tiny",
        {"data.min_seconds": 0.2, "data.max_seconds": 1, "data.batch_seconds": 2, "data.micro_batch_seconds": 2}
        | {"modality.conv_layers": [[8, 10, 5], [8, 8, 8]], "modality.position_groups": 2, "objective.input_target": None},
    ),
    "vision": (
        "vision/v2-tiny",
        {"data.batch_size": 4, "data.micro_batch_size": 4, "objective.decoder.width": 8, "objective.decoder.groups": 2}
        | {"modality.image": 16, "objective.masks_per_sample": 2},
    ),
    "text": (
        "text/v1-tiny",
        {"data.batch_size": 2, "data.micro_batch_size": 2, "data.block_size": 16, "modality.max_length": 16}
        | {"modality.vocab_size": 300},
    ),
    "classes": ("vision/classify-tiny", {"data.batch_size": 4, "data.micro_batch_size": 4, "modality.image": 16}),
}
"""By its name: a shipped recipe, and the settings that make a step of it quick."""
DIGITS = "1" + 400 * "0"
VALUES = (
    *("big", "", "null", "true", "[]", "[1, 2]", "{}", "{a: 1}", "-1", "0", "1", "3", "0.5", "1.5", "1e-3", "1e15", "1e308"),
    *(".nan", ".inf", "-.inf", DIGITS, f"-{DIGITS}", "0x7fffffffffffffff", "[.nan, -1]", "[[[]]]", "{null: null}"),
    *("\u0661\u0662", "2026-11-30", "a\nb: [", "'\u202e'", '"\\0\\e[31m"', "\x00", "\x1b[31m", "\ud800", "x" * 100_000),
    *(
        "[" * 1000,
        "!!python/object:os.system x",
        "~nobody/x",
        "/dev/null/x",
        "x" * 300 + "/y",
        "..",
        "hf://",
        "s3:///",
        "&a [*a]",
    ),
)
"""As written after `key=`."""


class Case(NamedTuple):
    """One override of one recipe."""

    recipe: str
    key: str
    value: str


def cases() -> list[Case]:
    """Every setting of every recipe with every value."""
    return [Case(name, key, value) for name in RECIPES for key in [*_settings(name), "nothing", "train"] for value in VALUES]


def _settings(name: str) -> list[str]:
    recipe, changes = RECIPES[name]
    return sorted(load_recipe(recipe, SMALL | changes).flat())


def write_inputs(folder: Path) -> None:
    """The recipes, as `NAME.yaml`, and the data that they train on."""
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("speech", "vision/a", "vision/b", "text"):
        (folder / name).mkdir(parents=True)
    for i in range(6):
        soundfile.write(folder / "speech" / f"{i}.wav", 0.1 * rng.standard_normal(8000), 16000)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "vision" / "ab"[i % 2] / f"{i}.png")
        (folder / "text" / f"{i}.txt").write_text("a few words of a text, and some more of them\n" * 4)
    for name, (recipe, changes) in RECIPES.items():
        data = folder / {"classes": "vision"}.get(name, name)
        valid = {"data.valid": str(data)} if name == "classes" else {}
        loaded = load_recipe(recipe, SMALL | changes | valid | {"data.train": str(data)})
        (folder / f"{name}.yaml").write_text(loaded.to_yaml())


class FirstStep(KeyboardInterrupt):
    """Ends a run after its first step, in which every setting of a recipe is used."""


@contextmanager
def one_step() -> Iterator[None]:
    """Runs in this block end after a step, with status 130."""
    make_step = TrainStep.__call__

    def step(*arguments: Any, **options: Any) -> Any:
        make_step(*arguments, **options)
        raise FirstStep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        yield


def run(case: Case, inputs: Path, out: Path) -> int:
    """The status of training one step with the override."""
    verb = "finetune" if case.recipe == "classes" else "pretrain"
    with one_step():
        status = exit_status(verb, str(inputs / f"{case.recipe}.yaml"), "--out", str(out), f"{case.key}={case.value}")
    assert isinstance(status, int)
    return status
