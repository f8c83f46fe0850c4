"""Numbers that must not move: a small model of each modality with weights from a formula.

The figures in golden.json were written by this file (`python tests/test_parity.py`) at a time when the comparison with
the official code's numbers, `tests/parity.py`, passed. Where fixtures for that are at hand, name their folder in
DATA2VEC_PARITY and they are run too.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.batch import Batch, MaskedBatch
from data2vec.objective import Data2Vec2
from data2vec.recipe.loading import validate_recipe

GOLDEN = Path(__file__).parent / "golden.json"
ENCODER = {"width": 24, "layers": 3, "heads": 4, "ffn_width": 48, "dropout": 0.0, "attention_dropout": 0.0}
TEACHER = {"decay": 0.6, "end_decay": 0.9, "anneal_steps": 10}
AVERAGED = {"local_encoder": "averaged", "position_encoder": "averaged"}
DECODER = {"layers": 2, "groups": 4, "dropout": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "speech": {
        "modality": {"name": "speech", "conv_layers": [[12, 10, 5], [12, 3, 2], [12, 2, 2]], "position_depth": 2,
                     "position_kernel": 4, "position_groups": 4},
        "encoder": ENCODER,
        "objective": {"name": "data2vec", "teacher": TEACHER, "target": {"top_k": 2}},
    },
    "speech-pre-norm": {
        "modality": {"name": "speech", "conv_layers": [[12, 10, 5], [12, 3, 2], [12, 2, 2]], "conv_norm": "group",
                     "conv_bias": True, "conv_grad_scale": 0.1,
                     "position_depth": 3, "position_kernel": 3, "position_groups": 2},
        "encoder": ENCODER | {"norm": "pre", "input_norm": False, "final_norm": True},
        "objective": {"name": "data2vec", "teacher": TEACHER | {"position_encoder": "averaged"}, "beta": 1.0, "loss_scale": 2.0,
                      "target": {"top_k": 3, "per_layer_norms": ["instance", "layer"], "final_norms": ["layer", "instance"]}},
    },
    "vision": {
        "modality": {"name": "vision", "image": 40, "patch": 8},
        "encoder": ENCODER | {"norm": "pre", "norm_eps": 1e-6, "input_norm": False, "final_norm": True, "extra_tokens": 1,
                              "key_bias": False, "layer_scale": 0.1, "init": "beit"},
        "objective": {"name": "data2vec",
                      "teacher": TEACHER | AVERAGED, "beta": 2.0, "loss_scale": "1/width",
                      "target": {"source": "block", "top_k": 2, "per_layer_norms": ["layer"], "final_norms": ["layer"]}},
    },
    "text": {
        "modality": {"name": "text", "vocab_size": 50, "max_length": 30},
        "encoder": ENCODER | {"input_norm": False},
        "objective": {"name": "data2vec", "teacher": TEACHER, "beta": 4.0, "loss_scale": 1.0, "head_layers": 2,
                      "target": {"top_k": 2, "per_layer_norms": ["layer"]}},
    },
    "text-masked-context": {
        "modality": {"name": "text", "vocab_size": 50, "max_length": 30},
        "encoder": ENCODER | {"input_norm": False},
        "objective": {"name": "data2vec",
                      "teacher": TEACHER | {"context": "masked"}, "target": {"top_k": 2, "per_layer_norms": ["layer"]}},
    },
    "speech-2": {
        "modality": {"name": "speech", "conv_layers": [[12, 10, 5], [12, 3, 2], [12, 2, 2]], "position_depth": 2,
                     "position_kernel": 4, "position_groups": 4, "position_padding": "none", "alibi": True,
                     "mask_vector": False},
        "encoder": ENCODER,
        "objective": {"name": "data2vec2", "masks_per_sample": 3, "teacher": TEACHER | {"position_encoder": "averaged"},
                      "target": {"top_k": 2},
                      "decoder": DECODER | {"kernel": [7], "width": 16}},
    },
    "vision-2": {
        "modality": {"name": "vision", "image": 40, "patch": 8, "positions": "sincos", "mask_vector": False},
        "encoder": ENCODER | {"norm_eps": 1e-6, "extra_tokens": 1, "extra_token_std": 1.0, "prenet_layers": 1},
        "objective": {"name": "data2vec2", "masks_per_sample": 2, "teacher": TEACHER | AVERAGED,
                      "target": {"top_k": 2, "final_norms": ["layer"]}, "decoder": DECODER | {"kernel": [3, 3], "width": 24},
                      "cls_loss": 0.01, "cls_reduction": "sum"},
    },
    "text-2": {
        "modality": {"name": "text", "vocab_size": 50, "max_length": 30, "position_padding": "none"},
        "encoder": ENCODER | {"input_norm": False},
        "objective": {"name": "data2vec2", "masks_per_sample": 2, "teacher": TEACHER, "loss_scale": 1.0, "target": {"top_k": 3},
                      "decoder": DECODER | {"kernel": [9], "groups": 1, "width": 24, "residual": False, "head_layers": 2}},
    },
}  # fmt: skip


def wave(*shape: int, phase: float) -> torch.Tensor:
    """Values in -1…1 from a formula, so that they are the same everywhere and always."""
    return (
        torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        .add(phase)
        .mul(12.9898)
        .sin()
        .mul(437.5453)
        .sin()
        .view(shape)
        .float()
    )


def figures(name: str) -> dict[str, float]:
    """Loss, targets, gradients and the moving average of one step of a case."""
    recipe = validate_recipe(CASES[name] | {"data": {}}, name)
    modality = recipe.build_modality()
    objective = recipe.build_objective()
    if isinstance(objective, Data2Vec2):
        objective.decoder.draw_noise = lambda count, width, like: 0.01 * wave(count, width, phase=0.75)  # type: ignore[method-assign]
    with torch.no_grad():
        for number, (key, p) in enumerate(sorted(objective.named_parameters())):
            p.copy_(wave(*p.shape, phase=number) * 0.3 + (1.0 if "norm" in key and key.endswith("weight") else 0.0))
    if recipe.modality.name == "speech":  # type: ignore[attr-defined]
        batch = Batch(wave(2, 420, phase=0.5))
    elif recipe.modality.name == "vision":  # type: ignore[attr-defined]
        batch = Batch(wave(2, 3, 40, 40, phase=0.5))
    else:
        batch = Batch((4 + 45 * wave(2, 20, phase=0.5).abs()).long())
    T = int(torch.tensor(modality.grid(batch)).prod())
    values = wave(2 * recipe.objective.masks_per_sample, T, phase=0.25)
    equal = isinstance(objective, Data2Vec2)  # masks the same number in every row
    mask = values >= values.sort(1, descending=True).values[:, [T * 3 // 5]] if equal else values > 0.2
    masked = MaskedBatch(batch.input, mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])
    output = objective(masked, measure=True)
    output.loss.backward()
    found = {"loss": output.loss.item(), "predicted": float(len(output.errors))}
    found |= {key: value.item() for key, value in output.stats.items() if key.endswith("std")}
    for part in ("student.local_encoder", "student.position_encoder", "student.transformer", "decoder" if equal else "head"):
        gradients = [p.grad for p in objective.get_submodule(part).parameters() if p.grad is not None]
        if not gradients:  # fixed positions
            continue
        found[f"gradient of {part}"] = torch.cat([g.flatten() for g in gradients]).norm().item()
    objective.after_step(5)
    found["teacher"] = sum((wave(*p.shape, phase=1) * p).sum().item() for p in objective.teacher.parameters())
    return found


@pytest.mark.parametrize("name", CASES)
def test_figures_have_not_moved(name: str) -> None:
    assert figures(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=2e-5)


@pytest.mark.parametrize("pt", [False, True], ids=["tensors", "checkpoint"])
@pytest.mark.skipif("DATA2VEC_PARITY" not in os.environ, reason="DATA2VEC_PARITY names no folder of official fixtures")
def test_official_fixtures(pt: bool, capsys: pytest.CaptureFixture[str]) -> None:
    import parity

    folder = Path(os.environ["DATA2VEC_PARITY"])
    paths = sorted(p for p in folder.glob("v[12]_*.safetensors") if p.stem != "v1_vision")  # that port has defects of its own
    assert {path.stem[:2] for path in paths} == {"v1", "v2"}
    assert parity.report([str(path) for path in paths], pt) == 0, capsys.readouterr().out


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: figures(name) for name in CASES}, indent=1) + "\n")
