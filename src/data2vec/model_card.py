"""The model card: what a model is, in words, for people and for the hub."""

from collections.abc import Sequence
from typing import Any

from data2vec.recipe.yaml_format import dump_yaml

TASKS = {
    ("speech", "ctc"): "automatic-speech-recognition",
    ("speech", "classifier"): "audio-classification",
    ("vision", "classifier"): "image-classification",
    ("text", "classifier"): "text-classification",
}
"""The hub's names for what fine-tuned models do; of others it is feature-extraction."""
USE = """\
import data2vec

model = data2vec.load("this/folder")
features = model.features(["an input"], layers="all")  # .hidden is (layers, inputs, positions, width)"""
SHOWN = ("step", "samples", "loss", "target_std", "prediction_std", "student_rank", "seconds")


def card(model: Any, metrics: Sequence[dict[str, Any]] = (), library: str = "data2vec", use: str = USE) -> str:
    """The README.md of a folder that holds `model` (`data2vec.model.Model`), for the hub's page as well.

    `metrics`: the logged steps of the run it comes from. `library` and `use`: what opens the folder, and how."""
    recipe, shape = model.recipe, model.recipe.encoder
    name = recipe.modality.name
    head = "" if model.head is None else model.head.settings.name
    about = {
        "library_name": library,
        "pipeline_tag": TASKS.get((name, head), "feature-extraction"),
        "tags": [recipe.objective.name, "self-supervised-learning", name],
        **({"license": model.license} if model.license else {}),
    }
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    lines = [
        *("---", dump_yaml(about).strip(), "---", ""),
        *(f"# A {recipe.objective.name} encoder of {name}", ""),
        f"{parameters:,} parameters: {shape.layers} blocks of width {shape.width}, {shape.heads} heads.",
    ]
    if recipe.data.train is not None:
        steps = metrics[-1]["step"] if metrics else recipe.train.steps
        lines.append(f"Trained without labels on `{recipe.data.train}` for {steps} steps.")
    if model.head is not None:
        labels = model.head.settings.labels
        shown = ", ".join(f"`{label}`" for label in labels[:12]) + (", …" if len(labels) > 12 else "")
        lines.append(f"Fine-tuned: a {head} head with {len(labels)} labels, {shown}.")
    lines += ["", *([f"Source: {model.source}."] if model.source else []), f"Licence: {model.license or 'not told'}."]
    lines += ["", "```python", use, "```", ""]
    if metrics:
        last = metrics[-1]
        lines += ["| at the end of training | |", "|---|---|"]
        lines += [f"| {name} | {last[name]:.6g} |" for name in SHOWN if name in last]
        lines.append("")
    return "\n".join([*lines, "The complete recipe is in `config.json`." if library == "data2vec" else "", ""])
