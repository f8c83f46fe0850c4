"""The shipped recipes: complete, of the published size, and able to take a step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data2vec.batch import Batch, MaskedBatch
from data2vec.console.quantities import format_count, format_duration
from data2vec.errors import UserError
from data2vec.nn.encoder import build_encoder
from data2vec.objective import Data2Vec2, Objective
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import GPU_FLOPS, RATES, is_supervised, recipe_names, recipe_parameters, recipe_time
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
from data2vec.train.planning.recipe_flops import count_run_flops
from helpers.released_models import RELEASED

PUBLISHED = {  # student without head, head
    "speech/v1-base": (93_164_288, 590_592),
    "speech/v1-audioset": (93_164_288, 590_592),
    "speech/v1-large": (313_276_416, 1_049_600),
    "vision/v1-base": (86_256_720 - 590_592, 590_592),
    "vision/v1-large": (304_186_816 - 1_049_600, 1_049_600),
    "text/v1-base": (124_054_272, 2_361_600),
    "text/v1-base-bert": (124_054_272, 2_361_600),
    "speech/v2-base": (93_163_532, 619_776),
    "speech/v2-large": (313_275_408, 1_908_736),
    "vision/v2-base": (85_647_360, 2_585_856),
    "vision/v2-large": (303_099_904, 5_967_872),
    "vision/v2-huge": (630_435_840, 6_639_872),
    "text/v2-base": (124_054_272, 28_907_520),
    "text/v2-large": (354_309_120, 31_070_464),
    "sound/v2-eat-base": (85_254_144, 2_585_856),
    "sound/v2-eat-large": (302_575_616, 4_594_688),
}
AVERAGED = {
    "speech/v1-base": 85_056_000,  # blocks and the norm before them
    "speech/v1-audioset": 88_561_920,  # with the positional convolutions
    "vision/v1-base": 86_256_720 - 590_592,  # everything but the head
    "speech/v2-base": 88_561_932,
    "vision/v2-base": 85_647_360,
    "text/v2-base": 85_054_464,  # the blocks alone
    "sound/v2-eat-base": 85_254_144,
}


MEDIUM = [f"{modality}/v{version}-medium" for modality in ("speech", "vision", "text") for version in (1, 2)]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def last(whole: Objective) -> torch.nn.Module:
    return whole.decoder if isinstance(whole, Data2Vec2) else whole.get_submodule("head")


def objective(name: str, device: str) -> tuple[Recipe, Objective]:
    recipe = load_recipe(name)
    with torch.device(device):
        return recipe, recipe.build_objective()


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_recipe_has_the_published_number_of_parameters(name: str) -> None:
    _, whole = objective(name, "meta")
    assert (parameters(whole.student), parameters(last(whole))) == PUBLISHED[name]
    if name in AVERAGED:
        assert parameters(whole.teacher) == AVERAGED[name]


def test_every_base_and_large_recipe_has_a_parameter_count() -> None:
    assert set(RELEASED) == set(PUBLISHED)  # of signals none is published


def test_the_table_of_parameters_is_that_of_the_shipped_recipes() -> None:
    table = recipe_parameters()
    supervised = (RecognitionSettings, ClassificationSettings)
    sized = [name for name in recipe_names() if not name.startswith(("signal/", "joint/"))]  # as wide as their data; of parts
    measured = {"modality.mean": 0.0, "modality.std": 1.0}  # of the data, in tiny recipes of sound
    recipes = {name: load_recipe(name, measured if name.startswith("sound/") else {}) for name in sized}
    assert [name for name in recipes if is_supervised(name)] == [
        name for name, recipe in recipes.items() if isinstance(recipe.objective, supervised)
    ]
    recipes = {name: recipe for name, recipe in recipes.items() if not is_supervised(name)}
    assert list(table) == list(recipes)
    for name, recipe in recipes.items():
        with torch.device("meta"):
            assert table[name] == parameters(build_encoder(recipe.build_modality(), recipe.encoder)), name


COUNTED = [name for name in recipe_parameters() if recipe_time(name) is not None]
DEFAULT = ("speech/v2-tiny", "text/v2-tiny", "vision/v1-tiny")


@pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in COUNTED])
def test_the_table_of_operations_is_that_of_the_shipped_recipes(name: str) -> None:
    hardware, seconds = recipe_time(name) or ("", 0.0)
    rate = RATES.get(name.rpartition("-")[2], ("GPU", GPU_FLOPS))[1]
    assert hardware in ("CPU", "GPU")
    assert count_run_flops(load_recipe(name)) == pytest.approx(seconds * rate, rel=1e-3)


@pytest.mark.parametrize("name", ["speech/v2-tiny", "vision/v1-tiny"])
def test_operations_counted_by_shapes_are_about_those_counted_while_they_are_made(name: str) -> None:
    recipe = load_recipe(name)
    assert count_run_flops(recipe) == pytest.approx(count_run_flops(recipe, "cpu"), rel=0.03), "kernels of the CPU differ"


def test_operations_include_the_head_of_the_tokens_as_long_as_it_has_a_weight() -> None:
    flops = {}
    for weight, until in ((None, 0.0), (0.8, 1.0), (0.8, 0.5)):
        target = None if weight is None else {"features": "tokens", "weight": weight, "fade_from": until, "fade_to": until}
        recipe = load_recipe("text/v2-tiny", {"objective.input_target": target})
        flops[until] = count_run_flops(recipe) / recipe.train.steps
    masked = round(recipe.objective.mask.prob * recipe.data.block_size) * recipe.objective.masks_per_sample
    head = 3 * 2 * recipe.data.batch * masked * recipe.objective.decoder.width * recipe.modality.vocab_size
    assert flops[1.0] - flops[0.0] == pytest.approx(head, rel=0.02), "forward, and backward to weights and input"
    assert flops[0.5] - flops[0.0] == pytest.approx(0.4 * head, rel=0.02), "two of the five steps that are counted"


def test_recipes_whose_operations_depend_on_the_data_are_refused() -> None:
    for name in ("signal/v2-tiny", "speech/hubert-tiny", "vision/mae-tiny"):
        assert recipe_time(name) is None
        with pytest.raises(UserError, match="its data"):
            count_run_flops(load_recipe(name))


def test_docs_list_the_cost_of_every_size_of_data2vec() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = {cells[1].strip(" `"): cells[2:6] for line in page.splitlines() if len(cells := line.split("|")) == 7}
    for name in COUNTED:
        if "/v" not in name or name.endswith(("-bert", "-audioset")):
            continue
        hardware, seconds = recipe_time(name) or ("", 0.0)
        weights, _, gpu, cpu = (cell.strip() for cell in rows[name])
        assert weights == format_count(recipe_parameters()[name])
        assert (gpu if hardware == "GPU" else cpu) == format_duration(seconds)


@pytest.mark.parametrize("name", MEDIUM)
def test_medium_recipe_lies_between_small_and_base(name: str) -> None:
    table = recipe_parameters()
    modality = name.partition("/")[0]
    assert 10e6 < table[name] < 25e6
    assert 2 * table[f"{modality}/v2-small"] < table[name] < table[f"{modality}/v2-base"] / 2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("speech/v1-base", marks=pytest.mark.slow),
        pytest.param("vision/v1-base", marks=pytest.mark.slow),
        pytest.param("text/v1-base", marks=pytest.mark.slow),
        "speech/v2-base",
        "vision/v2-base",
        "text/v2-base",
        *MEDIUM,
    ],
)
def test_base_or_medium_model_trains_one_step_with_finite_gradients(name: str) -> None:
    torch.manual_seed(0)
    recipe, whole = objective(name, "cpu")
    modality = recipe.build_modality()
    inputs = {
        "speech": torch.randn(1, 16_000),
        "vision": torch.randint(0, 256, (1, 3, 224, 224)).byte(),
        "text": torch.randint(4, 16_000, (1, 64)),
    }
    batch = Batch(inputs[name.split("/")[0]])
    mask = recipe.objective.mask.draw(min(2, recipe.objective.masks_per_sample), modality.grid(batch), np.random.default_rng(0))
    masked = torch.from_numpy(mask.masked)
    batch = MaskedBatch(batch.input, mask=masked, predicted_indices=masked.flatten().nonzero()[:, 0])
    output = whole.train()(batch, measure=True)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert [key for key, value in output.stats.items() if not torch.isfinite(value)] == ["content_r2"]  # needs several inputs
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in last(whole).parameters())


# Values of the paper and the released configurations, as (section.key, value).
SETTINGS: dict[str, dict[str, object]] = {
    "speech/v1-base": {
        "train.lr": 5e-4, "train.steps": 400_000, "objective.target.top_k": 8, "objective.mask.prob": 0.65,
        "objective.mask.length": 10, "objective.teacher.decay": 0.999, "objective.teacher.end_decay": 0.9999,
        "objective.teacher.anneal_steps": 30_000, "encoder.layerdrop": 0.05, "encoder.dropout": 0.1, "objective.beta": 0,
        "data.max_seconds": 20, "data.min_seconds": 2, "train.schedule.warmup": 0.03, "train.schedule.hold": 0.9,
    },
    "vision/v1-base": {
        "train.lr": 2e-3, "train.steps": 500_000, "objective.target.top_k": 6, "objective.mask.patches": 120,
        "objective.teacher.decay": 0.9998, "objective.beta": 2, "encoder.drop_path": 0.2, "encoder.layer_scale": 1e-4,
        "data.batch_size": 2048, "train.weight_decay": 0.05, "train.clip_norm": 3, "train.schedule.warmup_steps": 25_000,
    },
    "text/v1-base": {
        "train.lr": 2e-4, "train.steps": 1_000_000, "objective.target.top_k": 10, "objective.mask.prob": 0.35,
        "objective.mask.length": 4, "objective.beta": 4, "objective.loss_scale": 1, "objective.head_layers": 2,
        "objective.teacher.anneal_steps": 100_000, "data.batch_size": 256, "train.clip_norm": 5,
    },
    "text/v1-base-bert": {"objective.mask.prob": 0.15, "objective.mask.length": 1, "train.schedule.name": "tri_stage"},
    "speech/v2-base": {
        "train.steps": 400_000, "train.lr": 7.5e-4, "train.schedule.warmup_steps": 8_000, "data.batch_seconds": 500,
        "objective.masks_per_sample": 8, "objective.mask.prob": 0.5, "objective.mask.adjust": 0.05, "objective.mask.length": 5,
        "objective.target.top_k": 8, "objective.teacher.end_decay": 0.99999, "objective.teacher.anneal_steps": 75_000,
        "objective.decoder.layers": 4, "objective.decoder.kernel": (7,), "objective.decoder.width": 384,
        "encoder.layerdrop": 0.05, "encoder.prenet_layers": 0, "train.clip_norm": 0, "train.weight_decay": 0.01,
    },
    "speech/v2-large": {
        "train.steps": 600_000, "train.lr": 4e-4, "train.schedule.warmup_steps": 10_000, "data.batch_seconds": 960,
        "objective.masks_per_sample": 12, "objective.mask.prob": 0.55, "objective.mask.adjust": 0.1,
        "objective.target.top_k": 16,
        "objective.teacher.decay": 0.9997, "objective.teacher.end_decay": 1, "objective.teacher.anneal_steps": 300_000,
        "objective.decoder.width": 768, "encoder.prenet_layers": 8, "encoder.layers": 24, "train.clip_norm": 1,
    },
    "vision/v2-base": {
        "train.steps": 375_300, "train.lr": 1e-3, "train.schedule.warmup_steps": 50_040, "data.batch_size": 256,
        "objective.masks_per_sample": 16, "objective.mask.prob": 0.8, "objective.mask.adjust": 0.07, "objective.mask.length": 3,
        "objective.mask.inverse": True, "objective.target.top_k": 10, "objective.teacher.anneal_steps": 100_000,
        "objective.decoder.layers": 6, "objective.decoder.kernel": (3, 3), "encoder.prenet_layers": 2, "train.clip_norm": 4,
        "train.weight_decay": 0.05, "train.betas": (0.9, 0.95), "data.crop_scale": (0.2, 1.0), "encoder.norm_eps": 1e-6,
    },
    "vision/v2-large": {
        "train.steps": 375_300, "train.lr": 4e-4, "data.batch_size": 128, "objective.target.top_k": 18,
        "objective.mask.prob": 0.75, "objective.mask.adjust": 0.1, "objective.teacher.anneal_steps": 150_000,
        "objective.decoder.layers": 3, "objective.decoder.kernel": (5, 5), "objective.decoder.width": 1024,
    },
    "vision/v2-huge": {
        "train.steps": 500_000, "train.lr": 4e-4, "data.batch_size": 256, "objective.target.top_k": 24, "modality.patch": 14,
        "objective.teacher.end_decay": 1, "objective.teacher.anneal_steps": 300_000, "objective.decoder.width": 1024,
    },
    "text/v2-base": {
        "train.steps": 1_000_000, "train.lr": 2e-4, "train.schedule.warmup_steps": 4_000, "data.batch_size": 64,
        "objective.masks_per_sample": 8, "objective.mask.prob": 0.48, "objective.target.top_k": 12, "objective.loss_scale": 1,
        "objective.teacher.decay": 0.9999, "objective.teacher.end_decay": 0.99999, "objective.teacher.anneal_steps": 100_000,
        "objective.decoder.kernel": (9,), "objective.decoder.groups": 1, "objective.decoder.residual": False,
        "objective.target.per_layer_norms": ("instance",), "train.clip_norm": 1,
    },
    "sound/v2-eat-base": {
        "train.steps": 400_000, "train.lr": 5e-4, "train.schedule.warmup_steps": 53_333, "train.clip_norm": 4,
        "train.betas": (0.9, 0.95), "train.weight_decay": 0.05, "objective.masks_per_sample": 16, "objective.mask.prob": 0.8,
        "objective.mask.adjust": 0.07, "objective.mask.length": 5, "objective.mask.inverse": True, "objective.target.top_k": 12,
        "objective.teacher.decay": 0.9998, "objective.teacher.end_decay": 0.99999, "objective.teacher.anneal_steps": 100_000,
        "objective.teacher.local_encoder": "averaged", "objective.decoder.layers": 6, "objective.decoder.kernel": (3, 3),
        "objective.decoder.width": 768, "objective.decoder.groups": 16, "objective.cls_loss": 1, "encoder.prenet_layers": 0,
        "modality.mean": -4.2677393, "modality.std": 4.5689974, "modality.num_std": 2, "modality.frames": 1024,
        "modality.patch": (16, 16), "modality.fbank.bins": 128, "modality.fbank.window": "hanning",
    },
    "text/v2-large": {
        "train.steps": 600_000, "train.lr": 1e-4, "objective.mask.prob": 0.5, "objective.target.top_k": 24,
        "objective.target.per_layer_norms": ("layer",), "objective.target.final_norms": ("instance",),
        "objective.decoder.width": 768,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_shipped_recipe_has_the_published_settings(name: str) -> None:
    recipe = load_recipe(name)
    for key, expected in SETTINGS[name].items():
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, key
