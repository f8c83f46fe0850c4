"""The model card: the README.md of a model folder, for people and for the hub."""

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from data2vec.data.audio import SAMPLE_RATE
from data2vec.errors import printable
from data2vec.modalities.signal import SignalSettings
from data2vec.modalities.video import VideoSettings
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.shipped import SUPERVISED
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.recipe.training_history import TrainingStage
from data2vec.recipe.yaml_format import dump_yaml

if TYPE_CHECKING:
    from data2vec.model import Model

PIPELINE_TAGS = {
    ("speech", "ctc"): "automatic-speech-recognition",
    ("speech", "classifier"): "audio-classification",
    ("sound", "classifier"): "audio-classification",
    ("vision", "classifier"): "image-classification",
    ("text", "classifier"): "text-classification",
}
"""The hub's task names by modality and head; every other model is tagged feature-extraction."""
MAX_LABELS = 12
MAX_NAME = 100


def render_model_card(model: "Model", library: str = "data2vec", usage: str | None = None, has_tokenizer: bool = True) -> str:
    """The README.md of a folder that holds `model`, with the metadata the hub reads.

    `library` and `usage`: what loads the folder, and code that does, which runs in the folder; by default this package.
    `has_tokenizer`: whether the folder of a text model has one."""
    recipe, encoder = model.recipe, model.recipe.encoder
    modality: str = recipe.modality.name
    from_scratch = isinstance(recipe.objective, SupervisedSettings)
    head = None if model.head is None else model.head.settings
    metadata = {
        "library_name": library,
        "pipeline_tag": PIPELINE_TAGS.get((modality, head.name), "feature-extraction") if head else "feature-extraction",
        "tags": [recipe.objective.name, *([] if from_scratch else ["self-supervised-learning"]), modality],
        **({"license": model.license} if model.license else {}),
    }
    name = f"{recipe.objective.name} encoder" if not from_scratch else "Encoder"
    with_head = f" with a {'CTC' if head.name == 'ctc' else head.name} head" if head else ""
    size = f"The encoder has {_count(model.encoder)} parameters in {encoder.layers} blocks of width {encoder.width}, with "
    lines = [
        *("---", dump_yaml(metadata).strip(), "---", ""),
        *(f"# {name} for {modality}{with_head}", ""),
        f"{size}{encoder.heads} attention heads." + (f" The head has {_count(model.head)}." if model.head else ""),
        *([] if head is None else [_predicts(head)]),
        *("", "## Training", ""),
        *(f"{i}. {_describe(stage, i == 1 and from_scratch)}" for i, stage in enumerate(model.training, 1)),
        *([] if model.training else ["No training is recorded here."]),
        "",
        *([f"Source: {_text(model.source)}."] if model.source else []),
        f"License: {_text(model.license)}." if model.license else "No license is recorded.",
        *_scores(model.training[-1:]),
        *("", "## Use", "", "```python", usage or usage_code(model, has_tokenizer), "```", ""),
    ]
    if library == "data2vec":
        if head is not None and ":" not in modality:
            lines += [
                "Or for a data set, into a table:",
                "",
                "```",
                "data2vec predict . INPUT --out predictions.csv",
                "```",
                "",
            ]
        settings = "architecture, and the settings of the last run" if head else "complete recipe"
        lines += [
            f"The {settings}, without paths of the machine that trained it, {'are' if head else 'is'} in `config.json`.",
            "",
        ]
    return "\n".join([*lines, ""])


def usage_code(model: "Model", has_tokenizer: bool = True) -> str:
    """Code that opens the folder of this model in the current folder, and runs it on an input made up here."""
    recipe, modality, head = model.recipe, model.recipe.modality.name, model.head
    classes = {"modality": modality, "objective": recipe.objective.name}
    custom = "".join(f", {key}={name!r}" for key, name in classes.items() if ":" in name)
    opened = f'model = data2vec.load("."{custom})  # the folder of this file; or hf://owner/name on the hub'
    if ":" in modality:  # only its class knows what an input is
        return f"import data2vec\n\n{opened}"
    numpy = [] if modality == "text" else ["import numpy as np", ""]
    value, what = _example_input(model, has_tokenizer)
    if head is None:
        used = 'features = model.features(inputs, layers="all")  # .hidden is (layers, inputs, positions, width)'
    else:
        used = f"prediction = model.predict(inputs)[0]  # .value is {_value(head.settings)}"
    return "\n".join([*numpy, "import data2vec", "", opened, f"inputs = [{value}]  # {what}", used])


def _example_input(model: "Model", has_tokenizer: bool) -> tuple[str, str]:
    """Code of an input, and a comment."""
    settings, modality = model.recipe.modality, model.recipe.modality.name
    if isinstance(settings, VideoSettings):
        frames, side = 1 + (settings.frames - 1) * getattr(model.recipe.data, "frame_stride", 1), settings.image
        return f"np.zeros(({frames}, {side}, {side}, 3), np.uint8)", f"{frames} black frames; or paths of videos"
    if isinstance(settings, SignalSettings):
        samples, channels = round((settings.rate or 1) * settings.window_seconds), len(settings.names)
        return f"np.zeros(({samples}, {channels}), np.float32)", "samples of each channel in order; or paths of recordings"
    if modality in ("speech", "sound"):
        return f"np.zeros({SAMPLE_RATE}, np.float32)", f"a second of silence, at {SAMPLE_RATE} Hz; or paths of audio files"
    if modality == "vision":
        side = getattr(settings, "image", 224)
        return f"np.zeros(({side}, {side}, 3), np.uint8)", "a black picture; or paths of images"
    if not has_tokenizer:
        return "[0, 3, 2]", "token ids, as this folder has no tokenizer; with its tokenizer.json here, also texts"
    second = getattr(model.recipe.data, "second", None)
    if second is not None:
        return f'{{"text": "a text", {printable(str(second))!r}: "another text"}}', "pairs of texts"
    return '"a text"', "texts; or paths of text files, as pathlib.Path"


def _value(head: CTCSettings | ClassifierSettings) -> str:
    if isinstance(head, CTCSettings):
        return "the transcript"
    if head.problem_type == "regression":
        return "the number"
    if head.problem_type == "multi_label_classification":
        return "the labels of at least 0.5; .probability theirs"
    return "the class; .probability its probability"


def _predicts(head: CTCSettings | ClassifierSettings) -> str:
    shown = ", ".join(map(_code, head.labels[:MAX_LABELS])) + (", …" if len(head.labels) > MAX_LABELS else "")
    if isinstance(head, CTCSettings):
        return f"It transcribes with {len(head.labels)} labels, of which the first is the blank: {shown}."
    if head.problem_type == "regression":
        return f"It predicts a number: {shown}."
    several = "any number" if head.problem_type == "multi_label_classification" else "one"
    return f"It predicts {several} of {len(head.labels)} classes: {shown}."


def _describe(stage: TrainingStage, from_scratch: bool) -> str:
    """A stage of training in a sentence."""
    if stage.task in SUPERVISED:
        how = "Trained from scratch" if from_scratch else "Fine-tuned"
    else:
        how = f"Pre-trained without labels by {_code(stage.task)}"
    data = "" if stage.data is None else f" on {_code(stage.data)}"
    if stage.shared_with:
        others = " and ".join(map(_code, stage.shared_with))
        data += f", by turns with {others}, whose own data has trained the same Transformer"
    if stage.chosen_by is None:
        of = f" of {stage.steps}" if stage.step < stage.steps else ""
        return f"{how}{data} for {stage.step}{of} steps."
    valid = next((score.data for score in stage.scores if score.data is not None), None)
    where = "" if valid is None else f" on {_code(valid)}"
    return f"{how}{data}: step {stage.step} of {stage.steps}, the best by {_text(stage.chosen_by)}{where}."


def _scores(stages: tuple[TrainingStage, ...]) -> Iterator[str]:
    """The lines of a table of the scores of a stage."""
    rows = [(stage, score) for stage in stages for score in stage.scores]
    if rows:
        yield from ("", f"Measured at step {rows[0][0].step}:", "", "| | | on |", "|---|---|---|")
    for _, score in rows:
        value = (
            "NaN or inf" if score.value is None else f"{score.value:.4g}" if abs(score.value) < 1e4 else f"{score.value:.0f}"
        )
        data = "the training batches" if score.data is None else _code(score.data)
        note = f", {_text(score.note)}" if score.note else ""
        yield f"| {_cell(_text(score.name))} | {value} | {_cell(data + note)} |"


def _count(module: object) -> str:
    parameters = module.parameters()  # type: ignore[attr-defined]
    return f"{sum(parameter.numel() for parameter in parameters):,}"


def _code(name: str) -> str:
    """A name as code in Markdown, whatever it consists of."""
    return f"`{printable(name).replace('`', chr(39))[:MAX_NAME]}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(words: str) -> str:
    """Words as text in Markdown, without HTML; a link stays one."""
    return escape(printable(str(words)), quote=False)
