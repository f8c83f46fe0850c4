import pytest
import torch
from torch import nn

from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import ClassifierSettings, build_head
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.train_settings import LayerDecay
from data2vec.train.optimizer import layer_scale, parameter_groups


def model(name: str) -> nn.ModuleDict:
    """A fine-tuning model of this recipe, `encoder` and `head`, on the meta device."""
    recipe = load_recipe(name)
    with torch.device("meta"):
        head = build_head(ClassifierSettings(labels=("cat", "dog"), norm_eps=1e-6), recipe.encoder.width)
        return nn.ModuleDict({"encoder": build_encoder(recipe.build_modality(), recipe.encoder), "head": head})


def scales(name: str, decay: LayerDecay) -> dict[str, float]:
    return {key: layer_scale(key, 12, decay) for key, _ in model(name).named_parameters()}


def block_scales(result: dict[str, float]) -> list[float]:
    """The learning rate scale of each block."""
    per_block = [{scale for key, scale in result.items() if f".blocks.{block}." in key} for block in range(12)]
    assert all(len(values) == 1 for values in per_block)
    return [values.pop() for values in per_block]


def test_layer_scale_of_version_1_decays_everything_below_the_head() -> None:
    # ViT-B: 0.65 ** (13 - i), i = 0 below the blocks, b + 1 in block b, 13 elsewhere
    result = scales("vision/v1-base", LayerDecay())
    below = {
        "local_encoder.mask_vector",
        "local_encoder.project.weight",
        "local_encoder.project.bias",
        "transformer.extra_tokens",
    }
    assert {key for key, scale in result.items() if scale == 0.65**13} == {f"encoder.{name}" for name in below}
    table = "encoder.position_encoder.table"
    full = {"encoder.transformer.final_norm", "head.norm", "head.out"}
    assert {key for key, scale in result.items() if scale == 1} == {
        table,
        *(f"{k}.{v}" for k in full for v in ("weight", "bias")),
    }
    assert block_scales(result) == [0.65 ** (12 - block) for block in range(12)]


def test_layer_scale_with_full_rate_below_decays_only_blocks() -> None:
    result = scales("vision/v2-base", LayerDecay(below="full"))
    assert {scale for key, scale in result.items() if "blocks" not in key} == {1}
    assert block_scales(result) == [0.65 ** (12 - block) for block in range(12)]
    assert block_scales(result)[0] == pytest.approx(0.00568801)
    assert block_scales(result)[11] == 0.65


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text/v1-base", {"local_encoder.tokens", "position_encoder.table", "position_encoder.norm"}),
        (
            "speech/v1-base",
            {
                "local_encoder.conv",
                "local_encoder.norm",
                "local_encoder.project",
                "position_encoder.convs",
                "transformer.input_norm",
            },
        ),
    ],
)
def test_layer_scale_of_parameters_before_the_blocks_is_the_lowest(name: str, expected: set[str]) -> None:
    result = scales(name, LayerDecay(rate=0.5))
    below = {".".join(key.split(".")[1:3]) for key, scale in result.items() if scale == 0.5**13}
    assert below - {"local_encoder.mask_vector"} == expected


@pytest.mark.parametrize(("below", "groups"), [("decayed", 2 * 14), ("full", 2 * 13)])
def test_parameter_groups_contain_every_parameter_once(below: str, groups: int) -> None:
    finetuned = model("vision/v1-base")
    decay = LayerDecay(below=below)  # type: ignore[arg-type]
    settings = load_recipe("vision/v1-base").train
    result = parameter_groups(finetuned, settings, lambda name: layer_scale(name, 12, decay))
    assert len(result) == groups
    names = {id(parameter): name for name, parameter in finetuned.named_parameters()}
    assert sorted(names[id(p)] for group in result for p in group["params"]) == sorted(names.values())
    for group in result:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr_scale"] == layer_scale(name, 12, decay)
            undecayed = parameter.ndim == 1 or "extra_tokens" in name or "table" in name
            assert group["weight_decay"] == (0 if undecayed else settings.weight_decay)
