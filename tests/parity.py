"""Compare with numbers that the official code computed: `python tests/parity.py [--pt] FIXTURE.safetensors…`

A fixture is a pair of files: NAME.json (the official configuration and what to expect) and NAME.safetensors (weights,
inputs, masks, and what came of them). The model is rebuilt from the configuration, the official weights are loaded
through the key tables of `data2vec.interop.fairseq.key_mapping`, and features, targets, predictions, loss, gradients and
the next EMA step are compared. Exit status 1 when one of them is off by more than the fixture allows, or cannot be computed.

With --pt the fixture is written as an official checkpoint first, and the model that `data2vec.load` makes of it is compared.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

import data2vec
from data2vec.batch import Batch, MaskedBatch
from data2vec.errors import UserError
from data2vec.interop.fairseq.config import speech_recipe, text_recipe, version2_recipe, vision_recipe
from data2vec.interop.fairseq.key_mapping import TEXT, VISION, speech_table, version2_table
from data2vec.interop.key_mapping import Table, to_foreign_keys, to_our_keys
from data2vec.nn.encoder import Encoder
from data2vec.nn.position_encoders import LearnedPositionEncoder
from data2vec.objective import Data2Vec, Data2Vec2, Objective
from data2vec.objective.latent import LatentObjective, smooth_l1
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe

TOLERANCE = {"loss rel": 2e-6, "forward tensors atol": 2e-5, "gradients atol": 1e-4}


@dataclass
class Fixture:
    """Tensors by group (student, teacher, ema, grad, input, mid, out) and what the JSON says about them."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def group(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in self.tensors.items() if key.startswith(f"{name}/")}

    def tolerance(self, kind: str) -> float:
        found = re.search(rf"{kind} ([\d.]+e-?\d+)", self.facts.get("float_noise", {}).get("suggested_tolerance", ""))
        return float(found[1]) if found else TOLERANCE[kind]


@dataclass
class Case:
    """A fixture in our terms."""

    recipe: dict[str, Any]
    table: Table
    teacher_prefix: str
    batch: MaskedBatch
    plain: Batch
    per_position: bool = False
    """The official loss is a mean over the masked positions."""
    prenet: int = 0
    """Blocks that the official code keeps apart from the others."""
    noise: Tensor | None = None
    """What stood at masked positions before the official decoder, (B·M, T, D)."""


def masked(plain: Batch, mask: Tensor, **more: Tensor) -> MaskedBatch:
    """The batch with a mask (B·M, T)."""
    return MaskedBatch(plain.input, plain.padding, mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0], **more)


def speech(fixture: Fixture) -> Case:
    config, inputs = fixture.facts["config"], fixture.group("input")
    plain = Batch(inputs["source"])
    if "padding_mask" in inputs and inputs["padding_mask"].any():
        plain.padding = inputs["padding_mask"].bool()
    whole = not (config["ema_transformer_only"] or config["ema_layers_only"])
    recipe = speech_recipe(config)
    batch = masked(plain, inputs["mask_indices"].bool())
    return Case(recipe, speech_table(config), "" if whole else "encoder.", batch, plain)


def text(fixture: Fixture) -> Case:
    tokens, inputs = fixture.group("input")["tokens"], fixture.group("input")
    vocab = len(fixture.tensors["student/encoder.sentence_encoder.embed_tokens.weight"])
    recipe = text_recipe(fixture.facts["config"], vocab)
    mask = inputs["mask"].bool()
    pad = fixture.facts["dictionary"]["pad"]
    plain = Batch(tokens, padding=tokens == pad if (tokens == pad).any() else None)
    batch = masked(plain, mask, replaced_input=inputs["src_tokens"])
    if not torch.equal(inputs["target_tokens"], tokens):
        recipe["objective"]["teacher"]["context"] = "masked"
        batch.teacher_visible = inputs["target_tokens"] != pad
    return Case(recipe, TEXT, "encoder.sentence_encoder.", batch, plain)


def vision(fixture: Fixture) -> Case:
    inputs = fixture.group("input")
    plain = Batch(inputs["img"])
    batch = masked(plain, inputs["mask"].flatten(1).bool())
    recipe = vision_recipe(fixture.facts["config"])
    return Case(recipe, VISION, "", batch, plain, per_position=True)


def version2(fixture: Fixture) -> Case:
    config, inputs = fixture.facts["config"], fixture.group("input")
    kind = config["supported_modality"]
    tokens = fixture.group("student").get(f"modality_encoders.{kind}.local_encoder.embed_tokens.weight", ())
    recipe = version2_recipe(config, len(tokens))
    plain = Batch(inputs["source"])
    if "padding_mask" in inputs and inputs["padding_mask"].any():
        plain.padding = inputs["padding_mask"].bool()
    prefix = "blocks." if config["ema_encoder_only"] else ""
    batch = masked(plain, inputs["mask"].bool())
    prenet = config["modalities"][kind.lower()]["prenet_depth"]
    noise = inputs.get("decoder_mask_noise")
    return Case(recipe, version2_table(config), prefix, batch, plain, prenet=prenet, noise=noise)


def case(fixture: Fixture) -> Case:
    """Which model a fixture is of, by its tensors' names. Raises ValueError for one that is not supported."""
    student = fixture.group("student")
    if any(key.startswith("modality_encoders.") for key in student):
        return version2(fixture)
    if "post_extract_proj.weight" in student:
        return speech(fixture)
    if "encoder.sentence_encoder.embed_tokens.weight" in student:
        return text(fixture)
    if "patch_embed.proj.weight" in student:
        return vision(fixture)
    if "patch_embed.conv.weight" in student:
        raise ValueError("the vision port in fairseq, whose defects are not imitated: see docs/differences.md")
    raise ValueError("no known model has tensors of these names")


def error(ours: Tensor, official: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    ours, scale = ours.detach().float(), official.abs().max().clamp(min=1e-30)
    return float((ours - official.float()).abs().max() / scale)


def trained(objective: Objective) -> dict[str, Tensor]:
    """The parameters of all but the teacher, by the names that the key tables have for them."""
    named = objective.named_parameters()
    return {name.removeprefix("student."): value for name, value in named if not name.startswith("teacher.")}


def built(recipe: Recipe, encoder: Encoder | None = None) -> LatentObjective:
    objective = recipe.build_objective(encoder)
    assert isinstance(objective, LatentObjective)
    return objective


def build(case: Case, fixture: Fixture) -> LatentObjective:
    recipe = validate_recipe(case.recipe | {"data": {}}, "fixture")
    objective = built(recipe)
    ours = trained(objective)
    loaded = to_our_keys(fixture.group("student"), ours, case.table)
    teacher = {case.teacher_prefix + key: value for key, value in fixture.group("teacher").items()}
    own = dict(objective.teacher.ema.named_parameters())
    with torch.no_grad():
        for name, value in loaded.items():
            ours[name].copy_(value)
        for name, value in to_our_keys(teacher, own, case.table).items():
            own[name].copy_(value)
    return objective


def reopen(case: Case, fixture: Fixture) -> LatentObjective:
    """The same through an official checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fixture.pt"
        write(fixture, path)
        model = data2vec.load(path)
    settings, expected = model.recipe.objective, case.recipe["objective"]["teacher"]
    # What the official text model was shown is not in its files; and a copy of the student's is opened as the student's own.
    told = {key: expected[key] for key in ("context", "local_encoder", "position_encoder") if key in expected}
    settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update=told)})
    recipe = model.recipe.model_copy(update={"objective": settings})
    objective = built(recipe, model.encoder.requires_grad_(True))
    copied = tuple(f"teacher.ema.{part}." for part in ("local_encoder", "position_encoder") if expected[part] == "copied")
    state = {name: value for name, value in objective.state_dict().items() if not name.startswith("student.")}
    if lost := {name for name in state.keys() ^ model.pretraining.keys() if not name.startswith(copied)}:
        raise ValueError(f"not in the file, or not in the objective: {', '.join(sorted(lost))}")
    objective.load_state_dict(objective.state_dict() | dict(model.pretraining))
    return objective


def write(fixture: Fixture, path: Path) -> None:
    """The fixture as the official code would have saved it."""
    config, student, teacher = fixture.facts["config"], fixture.group("student"), fixture.group("teacher")
    if "patch_embed.proj.weight" in student:
        content = {"model": student, "model_ema": teacher, "args": config}
    else:
        ema = "encoder._ema" if any(key.startswith("encoder.sentence_encoder.") for key in student) else "_ema"
        content = {"args": None, "cfg": {"model": config}, "model": student | {ema: teacher}}
    torch.save(content, path)


def compare(fixture: Fixture, pt: bool = False) -> list[tuple[str, float, float, str]]:
    """(what, largest relative error, allowed, remark) for each of the six comparisons."""
    this = case(fixture)
    objective = (reopen if pt else build)(this, fixture)
    if this.noise is not None and isinstance(objective, Data2Vec2):
        noise = this.noise.flatten(0, 1)
        objective.decoder.draw_noise = lambda count, width, like: noise.clone()  # type: ignore[method-assign]
    mid, forward, batch = fixture.group("mid"), fixture.tolerance("forward tensors atol"), this.batch
    lines = []

    objective.eval()
    errors: dict[str, float] = {}
    with torch.no_grad():
        features, padding = objective.student.local_encoder(this.plain)
        for output in objective.student.block_outputs(features, padding):
            index = output.layer - this.prenet
            name = f"hidden/{index}" if index >= 0 else f"hidden/prenet{output.layer}"
            for key, state in ((name, output.block), (f"hidden_ffn/{index}", output.state)):
                if key in mid:
                    errors[key] = error(state, mid[key][:, -state.shape[1] :])  # version 2 kept the extra tokens here
        out = objective.student.encode(features, padding)
        final = objective.head(out) if isinstance(objective, Data2Vec) and this.per_position else out
        errors["hidden/out"] = error(final, mid["hidden/out"][:, -final.shape[1] :])
        if "local_features" in mid:
            placed = isinstance(
                objective.student.position_encoder, LearnedPositionEncoder
            )  # the official ones have positions in them
            embedded = objective.student.position_encoder(features, padding) if placed else features
            errors["local_features"] = error(embedded, mid["local_features"])
        if "hidden/embedding" in mid:
            errors["hidden/embedding"] = error(objective.student.position_encoder(features, padding), mid["hidden/embedding"])
    worst = max(errors, key=lambda key: errors[key])
    lines.append(("features", errors[worst], forward, f"{len(errors)} tensors, worst {worst}"))

    objective.train()
    seen: dict[str, Tensor] = {}

    def loss_of(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
        seen.update(prediction=prediction, target=target)
        return smooth_l1(prediction, target, beta)

    with mock.patch("data2vec.objective.latent.smooth_l1", loss_of):
        output = objective(batch)
    lines.append(("targets", error(seen["target"], mid["target"]), forward, ""))
    lines.append(("predictions", error(seen["prediction"], mid["pred"]), forward, ""))

    loss = output.loss / len(output.errors) if this.per_position else output.loss
    expected = fixture.tensors["out/loss"].double()
    lines.append(("loss", abs(loss.item() / expected.item() - 1), fixture.tolerance("loss rel"), f"{loss.item():.6f}"))

    loss.backward()
    lines.append(("gradients", *gradients(objective, fixture, this)))

    step = fixture.facts["ema_update"].get("num_updates_passed", 1)
    objective.after_step(step)
    lines.append(("EMA step", *ema(objective, fixture, this, forward)))
    return lines


def gradients(objective: LatentObjective, fixture: Fixture, this: Case) -> tuple[float, float, str]:
    expected, skip = fixture.group("grad"), set(fixture.facts.get("gradients_that_are_rounding_noise", []))
    ours = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in trained(objective).items()}
    ours = to_foreign_keys(ours, fixture.group("student"), this.table)
    wanted = [key for key in expected if key not in skip]
    if missing := [key for key in wanted if key not in ours]:
        raise ValueError(f"no gradient of ours for {', '.join(missing)}")
    errors = {key: error(ours[key], expected[key]) for key in wanted}
    silent = [key for key in ours.keys() - expected.keys() if ours[key].abs().max() > 0]
    if silent:
        raise ValueError(f"a gradient where the official code has none: {', '.join(silent)}")
    worst = max(errors, key=lambda key: errors[key])
    return errors[worst], fixture.tolerance("gradients atol"), f"{len(errors)} tensors, worst {worst}"


def ema(objective: LatentObjective, fixture: Fixture, this: Case, allowed: float) -> tuple[float, float, str]:
    expected = {this.teacher_prefix + key: value for key, value in fixture.group("ema").items()}
    ours = to_foreign_keys(dict(objective.teacher.ema.named_parameters()), expected, this.table)
    errors = {key: error(value, expected[key]) for key, value in ours.items()}
    rest = [key for key in expected.keys() - ours.keys() if expected[key].is_floating_point()]
    rest = [key for key in rest if not key.endswith("fixed_positional_encoder.positions")]  # ours are computed
    unused = [key for key in rest if key.startswith(("lm_head", "final_proj")) or key.endswith("version")]
    if other := sorted(set(rest) - set(unused)):
        raise ValueError(f"not in our teacher: {', '.join(other)}")
    worst = max(errors, key=lambda key: errors[key])
    note = f"; not kept, since no target needs it: {', '.join(sorted(unused))}" if unused else ""
    return errors[worst], allowed, f"{len(errors)} tensors{note}"


def read(path: Path) -> Fixture:
    return Fixture(load_file(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))


def report(paths: list[str], pt: bool = False) -> int:
    failed = False
    for path in map(Path, paths):
        print(path.stem)
        try:
            lines = compare(read(path), pt)
        except (ValueError, KeyError, OSError, UserError) as problem:
            print(f"  cannot be computed: {problem}")
            failed = True
            continue
        for what, value, allowed, remark in lines:
            good = value <= allowed  # also False for NaN
            failed |= not good
            print(f"  {'ok  ' if good else 'FAIL'} {what:<12} {value:.1e} (allowed {allowed:.0e}) {remark}")
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    sys.exit(report([each for each in sys.argv[1:] if each != "--pt"], "--pt" in sys.argv))
