"""The validation of fine-tuning on the page: the confusion matrix, and the worst and typical examples, to see and to hear.

What `data2vec.tasks.finetuning.details` has written, with the inputs themselves from the validation data. The files may be a
stranger's: nothing of them is used but numbers and escaped text, within bounds.
"""

import base64
import io
import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE
from data2vec.data.corrupt import load_example
from data2vec.data.dataset import ExampleDataset
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.report.renderers import build_renderer, to_images
from data2vec.report.style import as_text, to_svg
from data2vec.run_dir import DamagedFile, read_small_file
from data2vec.settings import JsonDict
from data2vec.tasks.finetuning.details import MAX_CELLS, NUM_TYPICAL, NUM_WORST

MAX_CLASSES = 24
"""With more classes, the most frequent confusions are listed instead of a matrix."""
MAX_CONFUSIONS = 20
"""Confusions in that list."""
MAX_COUNT = 10**12
"""Examples of a cell of the matrix."""
MAX_SECONDS = 6.0
"""Audio on the page is cut to this, and has half of the sampling rate: about 130 kB an example."""
MAX_SIDE = 160
"""Pixels of an image on the page."""
MAX_TEXT = 500
"""Characters of a text on the page."""


def validation_sections(run: Path, recipe: Recipe) -> tuple[list[str], str]:
    """The sections on the validation of a run, as HTML, and what is missing of them, with the reason; "" if nothing is."""
    try:
        text = read_small_file(run / "validation.json")
        if text is None:
            return [], ""
        found = json.loads(text)
        classes = [str(name) for name in found["classes"]]
        cells = [(int(a), int(b), int(n)) for a, b, n in found["confusion"][:MAX_CELLS]]
        if any(not (0 <= a < len(classes) and 0 <= b < len(classes) and 0 <= n <= MAX_COUNT) for a, b, n in cells):
            raise ValueError("a class or a number of examples that is none")
        numbers: list[int] = [int(each["index"]) for each in found["examples"][: NUM_WORST + NUM_TYPICAL]]
        examples = [
            {key: str(each[key]) for key in ("kind", "label", "prediction")}
            | {"loss": f"{float(each['loss']):.3g}", "correct": each.get("correct")}
            for each in found["examples"][: len(numbers)]
        ]
        step, loss = int(found["step"]), str(found["loss"])
    except (DamagedFile, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        return [], f"confusion matrix and examples: validation.json is damaged ({error!r})"
    inputs, missing = _load_inputs(recipe, numbers)
    shown = [_example(each, content) for each, content in zip(examples, inputs, strict=True)]
    head = f"Validation examples, by the best model (step {step})"
    note = (
        f"With the {loss} of each prediction in brackets. The worst examples are often labelled wrongly; typical ones have the "
        "median loss."
    )
    cards = f'<section><h2>{head}</h2><p class="soft">{as_text(note)}</p><div class="cards">{"".join(shown)}</div></section>'
    return [_confusion(classes, cells, step), cards if shown else ""], missing


def _confusion(classes: Sequence[str], cells: Sequence[tuple[int, int, int]], step: int) -> str:
    """The confusion matrix, or the most frequent confusions of many classes."""
    if not cells:
        return ""
    head = f"<h2>Confusion of classes, by the best model (step {step})</h2>"
    if len(classes) > MAX_CLASSES:
        wrong = [cell for cell in cells if cell[0] != cell[1]][:MAX_CONFUSIONS]
        rows = "".join(
            f"<tr><td>{as_text(classes[a])}</td><td>{as_text(classes[b])}</td><td>{n}</td></tr>" for a, b, n in wrong
        )
        table = f"<table><thead><tr><th>class</th><th>predicted</th><th>examples</th></tr></thead><tbody>{rows}</tbody></table>"
        note = f"The most frequent of {len(classes)} classes."
        return f'<section>{head}<p class="soft">{note}</p><div class="scroll">{table}</div></section>'
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for a, b, n in cells:
        matrix[a, b] = n
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [as_text(name) for name in classes]
    top = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = ""
    for a, name in enumerate(names):
        row = "".join(_cell(int(matrix[a, b]), float(share[a, b]), a == b) for b in range(len(names)))
        rows += f'<tr><th scope="row">{name}</th>{row}<td>{share[a, a]:.0%}</td></tr>'
    note = "Each row is a class, each column what was predicted; the last column is the share that is right."
    table = f"<table><thead><tr><td></td>{top}<th>right</th></tr></thead><tbody>{rows}</tbody></table>"
    return f'<section>{head}<p class="soft">{note}</p><div class="scroll confusion">{table}</div></section>'


def _cell(count: int, share: float, right: bool) -> str:
    colour = "healthy" if right else "collapsed"
    style = f' style="background: color-mix(in srgb, var(--{colour}) {70 * share:.0f}%, transparent)"' if count else ""
    return f"<td{style}>{count or ''}</td>"


def _example(each: JsonDict, content: str) -> str:
    words = f"<dt>label</dt><dd>{as_text(each['label'])}</dd><dt>predicted</dt><dd>{as_text(each['prediction'])}</dd>"
    kind = f'{as_text(each["kind"])} <span class="soft">({each["loss"]})</span>'
    style = "card wrong" if each["correct"] is False else "card"
    return f'<article class="{style}"><h3>{kind}</h3>{content}<dl>{words}</dl></article>'


def _load_inputs(recipe: Recipe, indices: Sequence[int]) -> tuple[list[str], str]:
    """The inputs at `indices` of the validation data as HTML, "" for one that cannot be shown; and the first reason."""
    try:
        modality = load_recipe(recipe, {"data.streaming": False}).build_modality()
        rows = modality.validation().selected_rows(str(recipe.data.valid), recipe.data.valid_rows, "data.valid_rows")
        examples = modality.labelled(rows)
    except Exception as error:  # a custom modality may raise anything; the reason is on the page
        return [""] * len(indices), f"inputs of validation examples: the validation data cannot be loaded ({_reason(error)})"
    shown, missing = [], ""
    for index in indices:
        try:
            shown.append(_show(modality, examples, index))
        except Exception as error:
            shown.append("")
            missing = missing or f"inputs of some validation examples: {_reason(error)}"
    return shown, missing


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _show(modality: Modality, examples: ExampleDataset, index: int) -> str:
    """An input as HTML: an image, an audio player, text, or a figure of its values."""
    if not 0 <= index < len(examples):
        raise UserError(f"example {index} is not in the validation data any more")
    item, kind = load_example(examples, index, None, None), getattr(modality, "kind", None)
    if kind == "audio":
        return f'<audio controls preload="none" src="data:audio/wav;base64,{_wav(item.numpy())}"></audio>'
    if kind == "text":
        tokenizer = getattr(examples, "tokenizer")  # noqa: B009
        text = tokenizer.decode(item.tolist(), skip_special_tokens=True)
        return f'<p class="text">{as_text(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…")}</p>'
    batch = modality.collate([item])
    grid = modality.grid(batch)
    if kind == "image":
        return f'<img alt="" src="data:image/png;base64,{_png(to_images(batch.input.numpy(), grid)[0])}">'
    return to_svg(_figure(modality, batch, grid), "an input")


def _figure(modality: Modality, batch: Batch, grid: tuple[int, ...]) -> Any:
    renderer = build_renderer(None, batch.input.float().numpy(), grid, modality.seconds_per_position, [])
    return renderer.render(np.zeros((1, 1, int(np.prod(grid)), 4)), ["input"], width=3.0)


def _wav(samples: np.ndarray) -> str:
    """Samples at 16 kHz as a WAV file of 16 bit at 8 kHz, in base64."""
    import soxr

    samples = soxr.resample(samples[: int(MAX_SECONDS * SAMPLE_RATE)].astype(np.float32), SAMPLE_RATE, SAMPLE_RATE // 2)
    loudest = float(np.abs(samples).max(initial=0))
    values = np.int16(samples * (30000 / loudest if loudest else 0))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE // 2)
        out.writeframes(values.astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def _png(image: np.ndarray) -> str:
    """An image (H, W, 3) in 0..1 as PNG in base64."""
    from PIL import Image

    picture = Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
