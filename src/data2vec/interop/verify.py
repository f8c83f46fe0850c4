"""Verifying a file of a released model: its outputs against those that were published with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data2vec.errors import UserError
from data2vec.interop.load import load
from data2vec.local_path import local_path
from data2vec.model import Model
from data2vec.nn.heads import ClassifierSettings, CTCSettings

TOLERANCE = 1e-4
"""That of the published numbers, which have four decimals."""
TEXT_IDS = (0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2)
TEXT_FEATURES = ((0.1998, -0.0379, 0.0024), (-0.0971, -0.2214, -0.1798), (-0.0789, -0.2400, -0.1898))
IMAGE_CLASSES = (761, 281)
"""ImageNet's "remote control" and "tabby"."""
TRANSCRIPT = "a man said to the universe sir i exist"


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with the published outputs of a released one; `str()` of it says all."""

    name: str
    """The released model."""
    passed: bool
    difference: float
    """The largest difference: of features; of classes and transcripts the number of wrong ones."""
    details: str

    def __str__(self) -> str:
        return f"{self.name}: {'passed' if self.passed else 'FAILED'}: {self.details}"


@dataclass(frozen=True)
class PublishedOutput:
    """An output that was published for a released model, with the tests of transformers for its copy of the weights."""

    name: str
    recipe: tuple[str, int, int, int]
    """Its modality, version, width and number of layers."""
    rows: int | None
    """Size of its vocabulary, or of its head."""
    input: str | None
    """The file that it is the output for; None if the input is known."""
    compare: Callable[[Model, Path | None], tuple[float, float, str]]
    """The largest difference, that allowed, and a description."""


def _compare_text(model: Model, input: Path | None) -> tuple[float, float, str]:
    features = model.features([torch.tensor(TEXT_IDS)]).hidden[0, 0, :3, :3]
    difference = (features - torch.tensor(TEXT_FEATURES)).abs().max().item()
    return difference, TOLERANCE, f"largest difference of 9 features {difference:.1e}, allowed {TOLERANCE:.0e}"


def _compare_image(model: Model, input: Path | None) -> tuple[float, float, str]:
    best = model.logits([str(input)]).logits[0].topk(2).indices.tolist()
    wrong = sum(ours != theirs for ours, theirs in zip(best, IMAGE_CLASSES, strict=True))
    return wrong, 0, f"the two best classes are {best}, published {list(IMAGE_CLASSES)}: {wrong} differ"


def _compare_speech(model: Model, input: Path | None) -> tuple[float, float, str]:
    transcript = str(model.predict([str(input)])[0].value).lower()
    words, published = transcript.split(), TRANSCRIPT.split()
    pairs = zip(words, published, strict=False)
    wrong = abs(len(words) - len(published)) + sum(ours != theirs for ours, theirs in pairs)
    return wrong, 0, f"transcript {transcript!r}, published {TRANSCRIPT!r}: {wrong} words differ"


PUBLISHED = (
    PublishedOutput("version 1 text Base", ("text", 1, 768, 12), 50265, None, _compare_text),
    PublishedOutput(
        "version 1 vision Base, fine-tuned on ImageNet-1K",
        ("vision", 1, 768, 12),
        1000,
        "000000039769.jpg of COCO val2017",
        _compare_image,
    ),
    PublishedOutput(
        "version 1 speech Base, fine-tuned on 960 h",
        ("speech", 1, 768, 12),
        32,
        "1272-141231-0000.flac of LibriSpeech dev-clean",
        _compare_speech,
    ),
)


def verify(model: str | Path | Model, input: str | Path | None = None) -> Verification:
    """Compute the published outputs of a released model with the weights in a file, and compare.

    `model`: anything that `data2vec.load` opens. It is taken for the released model of its modality, version, size and head.
    `input`: the file that the outputs were published for, which version 1 text does not need. Works without a network.

    Raises UserError for a model of which no outputs are known, and when `input` is missing or not used."""
    model = load(model)
    published = published_output(model)
    if published is None:
        known = "; ".join(each.name for each in PUBLISHED)
        raise UserError(f"{model.recipe.modality.name}: no published outputs are known of a model like this, only of: {known}")
    if published.input is None and input is not None:
        raise UserError(f"{published.name}: --input {input} is not used, as the published input is known; leave it out")
    if published.input is not None and input is None:
        raise UserError(f"{published.name}: --input is missing; its outputs were published for {published.input}")
    difference, allowed, details = published.compare(model, None if input is None else local_path(input))
    return Verification(published.name, difference <= allowed, difference, details)


def published_output(model: Model) -> PublishedOutput | None:
    """The published output of the released model of this modality, version, size and head."""
    recipe = model.recipe
    version = {"data2vec": 1, "data2vec2": 2}.get(recipe.objective.name)
    head = None if model.head is None else model.head.settings
    if isinstance(head, CTCSettings | ClassifierSettings):
        rows: int | None = len(head.labels)
    else:
        rows = getattr(recipe.modality, "vocab_size", None)
    found = (recipe.modality.name, version, recipe.encoder.width, recipe.encoder.layers)
    return next((each for each in PUBLISHED if (each.recipe, each.rows) == (found, rows)), None)
