"""A trained model in a folder of its own: written at the end of a run, loaded to be used.

`config.json` holds the recipe it was trained by, `model.safetensors` the student's encoder, and `README.md` says what it is.
Where there are any, `head.safetensors` is the head of a fine-tuned model, and `pretraining.safetensors` the teacher and the
prediction head, with which pre-training can go on; it can be deleted. Text has its `tokenizer.json` too.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from data2vec.atomic_io import atomic_dir
from data2vec.errors import BadExample, UserError
from data2vec.feature_extraction import FeatureBatch, Layers, extract_features, layer_weights, read_input, require_tokenizer
from data2vec.modalities.base import Examples, Modality
from data2vec.model_card import card
from data2vec.nn.encoder import Encoder, build_encoder, padding_invariant
from data2vec.nn.heads import AnyHeadSettings, ClassifierSettings, CTCSettings, Head, build_head
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe

FORMAT = "data2vec model 1"
WEIGHTS, HEAD, PRETRAINING = "model.safetensors", "head.safetensors", "pretraining.safetensors"
TOKENIZER = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class Model:
    """An encoder with all that is needed to give it input."""

    encoder: Encoder
    """In evaluation mode."""
    modality: Modality
    """Loads and batches its input."""
    recipe: Recipe
    """What it was trained by."""
    head: Head | None = None
    """What fine-tuning put on it."""
    pretraining: Mapping[str, Tensor] = field(default_factory=dict)
    """What pre-training had besides the encoder, by the names of the objective: `teacher.ema.…`, and the prediction head or
    decoder. It is needed only to go on with pre-training, and may be missing."""
    source: str | None = None
    """Where the weights come from, in words."""
    license: str | None = None
    """Under which licence they are."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder, in place of what was there: `data2vec.load(folder)` gives this model again."""
        save_model_folder(self, Path(folder))

    def push_to_hub(self, name: str, private: bool | None = None, token: str | None = None) -> str:
        """Put the model folder on the hub as "owner/name", and return its address: `data2vec.load(name)` opens it anywhere.

        Raises UserError when the hub refuses it."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        api = HfApi(token=token)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            with tempfile.TemporaryDirectory() as tmp:
                save_model_folder(self, Path(tmp) / "model")
                return str(api.upload_folder(repo_id=name, folder_path=Path(tmp) / "model"))
        except (HfHubHTTPError, HFValidationError) as error:
            raise UserError(f"{name}: the hub refuses it: {' '.join(str(error).split())[:300]}") from None

    @staticmethod
    def from_pretrained(model: str | Path) -> "Model":
        """The same as `data2vec.load`."""
        import data2vec

        return data2vec.load(model)

    def features(
        self, inputs: Sequence[Any], layers: Layers = "last", pool: bool = False, batch: int | None = None
    ) -> FeatureBatch:
        """Contextual vectors of each input, in the order given, the same as if each were computed alone.

        `inputs`: paths of files; or arrays or tensors, (S,) samples or (H, W, 3) bytes; for text, strings (the path of a text
        file as a `Path`), or token ids as they are, special ones included. Samples must be at 16 kHz: an array cannot tell its
        rate, so anything else gives wrong features without an error.
        `layers`: "last" is what the encoder puts out, after its final norm where it has one; "all" is the output of every
        block, first to last; "mean" is their mean; a number is that of one block, counted from 1, or from the end when
        negative; a sequence of weights, one for each block, is their weighted sum. `pool`: the mean over each input's own
        positions. `batch`: at most so many positions are computed at a time, padding among them (50 are a second of
        speech), or a single input; by default what is fast on the device.

        Raises UserError for an input that cannot be read and for a layer that is not there."""
        if not len(inputs):
            raise UserError("features: there is no input")
        weights = layer_weights(layers, len(self.encoder.transformer.blocks))
        if any(isinstance(each, str | Path) for each in inputs):
            require_tokenizer(self.modality)
        try:
            items = [read_input(self.modality, each, f"input {i}") for i, each in enumerate(inputs, 1)]
        except BadExample as error:
            raise UserError(f"features: {error}") from None
        found = extract_features(padding_invariant(self.encoder), self.modality, items, weights, pool, batch)
        lengths = [length for _, length in found]
        step, longest = self.modality.seconds_per_position, max(lengths)
        rest = [(0, 0, 0, 0 if pool else longest - length) for length in lengths]
        hidden = [nn.functional.pad(x, missing) for (x, _), missing in zip(found, rest, strict=True)]
        return FeatureBatch(
            torch.stack(hidden, 1), torch.tensor(lengths), None if step is None else torch.arange(longest) * step
        )


def save_model_folder(
    model: Model, folder: Path, examples: Examples | None = None, metrics: Sequence[dict[str, Any]] = ()
) -> None:
    """Write a model folder, in place of what was there.

    `examples`: the training examples, from which some modalities keep something (text: its tokenizer). `metrics`: the
    logged steps of the run, for the model card."""
    from data2vec import __version__

    with atomic_dir(folder) as tmp:
        config: dict[str, Any] = {"format": FORMAT, "version": __version__, "files": model.modality.save(tmp, examples)}
        config |= {"recipe": model.recipe.model_dump(mode="json"), "source": model.source, "license": model.license}
        save_model(model.encoder, str(tmp / WEIGHTS), metadata={"format": "pt"})
        if model.head is not None:
            config["head"] = model.head.settings.model_dump(mode="json")
            save_model(model.head, str(tmp / HEAD), metadata={"format": "pt"})
        if model.pretraining:
            save_file({key: value.contiguous() for key, value in model.pretraining.items()}, tmp / PRETRAINING)
        (tmp / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        (tmp / "README.md").write_text(card(model, metrics), encoding="utf-8")


def load_model_folder(path: str | Path) -> Model:
    """The model in a run folder or a model folder, on the CPU, in evaluation mode.

    Raises UserError when there is none, or its files are damaged."""
    folder = Path(path).expanduser()
    if (folder / "recipe.yaml").is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        unfinished = " (the run has not ended yet: go on with it by --resume)" if (folder / "recipe.yaml").is_file() else ""
        raise UserError(f"{path} is not a data2vec run or model folder{unfinished}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise UserError(
                f"{path} is not a data2vec model folder that this version reads ({config['format']!r}, not {FORMAT!r})"
            )
        raw = config["recipe"]
        raw["data"] |= {key: str((folder / name).resolve()) for key, name in config["files"].items()}
        if raw["data"].get("tokenizer", "none") is None and any((folder / name).is_file() for name in TOKENIZER):
            raw["data"]["tokenizer"] = str(folder.resolve())  # put there by hand
        head = TypeAdapter(AnyHeadSettings | None).validate_python(config.get("head"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is not a data2vec run or model folder: its config.json is damaged ({error!r})") from None
    model = blank_model(validate_recipe(raw, str(folder / "config.json")), head)
    _fill(model.encoder, folder / WEIGHTS)
    if model.head is not None:
        _fill(model.head, folder / HEAD)
    pretraining = load_file(folder / PRETRAINING) if (folder / PRETRAINING).is_file() else {}
    return replace(model, pretraining=pretraining, source=config.get("source"), license=config.get("license"))


def blank_model(recipe: Recipe, head: CTCSettings | ClassifierSettings | None = None) -> Model:
    """A model of this recipe, in evaluation mode, whose weights are yet to come."""
    modality = recipe.build_modality()
    encoder = build_encoder(modality, recipe.encoder).eval().requires_grad_(False)
    on_top = None if head is None else build_head(head, recipe.encoder.width).eval().requires_grad_(False)
    return Model(encoder, modality, recipe, on_top)


def _fill(part: nn.Module, weights: Path) -> None:
    try:
        load_model(part, weights)
    except FileNotFoundError:
        raise UserError(f"{weights} is missing; copy the whole folder again") from None
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{weights} is damaged or of another model: {' '.join(str(error).split())[:200]}") from None
