"""The model card: the README.md of a model folder, for people and for the hub."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from data2vec.errors import printable
from data2vec.recipe.recipe import data_name
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.yaml_format import dump_yaml
from data2vec.settings import JsonMapping

if TYPE_CHECKING:
    from data2vec.model import Model

PIPELINE_TAGS = {
    ("speech", "ctc"): "automatic-speech-recognition",
    ("speech", "classifier"): "audio-classification",
    ("vision", "classifier"): "image-classification",
    ("text", "classifier"): "text-classification",
}
"""The hub's task names by modality and head; every other model is tagged feature-extraction."""
USAGE = """\
import data2vec

model = data2vec.load("this/folder")
features = model.features(["an input"], layers="all")  # .hidden is (layers, inputs, positions, width)"""
METRICS = ("step", "samples", "loss", "target_std", "prediction_std", "student_rank", "seconds")
MAX_LABELS = 12
MAX_NAME = 100


def render_model_card(
    model: "Model", metrics: Sequence[JsonMapping] = (), library: str = "data2vec", usage: str = USAGE
) -> str:
    """The README.md of a folder that holds `model`, with the metadata the hub reads.

    `metrics`: the logged steps of its run. `library` and `usage`: what loads the folder, and example code."""
    recipe, encoder = model.recipe, model.recipe.encoder
    modality: str = recipe.modality.name
    supervised = isinstance(recipe.objective, SupervisedSettings)  # without pre-training
    head = "" if model.head is None else model.head.settings.name
    metadata = {
        "library_name": library,
        "pipeline_tag": PIPELINE_TAGS.get((modality, head), "feature-extraction"),
        "tags": [recipe.objective.name, *([] if supervised else ["self-supervised-learning"]), modality],
        **({"license": model.license} if model.license else {}),
    }
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    lines = [
        *("---", dump_yaml(metadata).strip(), "---", ""),
        *(f"# {recipe.objective.name} encoder for {modality}", ""),
        f"{parameters:,} parameters: {encoder.layers} blocks of width {encoder.width}, {encoder.heads} heads.",
    ]
    steps = metrics[-1]["step"] if metrics else recipe.train.steps
    if model.head is not None:
        labels = model.head.settings.labels
        shown = ", ".join(map(_code, labels[:MAX_LABELS])) + (", …" if len(labels) > MAX_LABELS else "")
        data = "" if recipe.data.train is None else f" on {_code(data_name(recipe.data.train))} for {steps} steps"
        trained = "Trained from scratch" if supervised else "Fine-tuned"
        lines.append(f"{trained}{data}, with a {head} head of {len(labels)} labels: {shown}.")
    elif recipe.data.train is not None:
        lines.append(f"Pre-trained without labels on {_code(data_name(recipe.data.train))} for {steps} steps.")
    lines += ["", *([f"Source: {_text(model.source)}."] if model.source else [])]
    lines += [f"License: {_text(model.license)}." if model.license else "No license is recorded."]
    lines += ["", "```python", usage, "```", ""]
    if metrics:
        last = metrics[-1]
        lines += ["| at the last logged step | |", "|---|---|"]
        lines += [f"| {name} | {last[name]:.6g} |" for name in METRICS if last.get(name) is not None]
        lines.append("")
    return "\n".join([*lines, "The complete recipe is in `config.json`." if library == "data2vec" else "", ""])


def _code(name: str) -> str:
    """A name as code in Markdown, whatever it consists of."""
    return f"`{printable(name).replace('`', chr(39))[:MAX_NAME]}`"


def _text(words: str) -> str:
    """Words as text in Markdown, without HTML; a link stays one."""
    return escape(printable(str(words)), quote=False)
