"""A trained model: an encoder with its modality and recipe, saved as a model folder.

The folder holds `config.json` (the recipe), `model.safetensors` (the student's encoder) and `README.md` (the model card); for
text also `tokenizer.json`. A fine-tuned model has `head.safetensors`. A pre-trained one has `pretraining.safetensors`: the EMA
teacher and the prediction head, needed only to continue pre-training, so it may be deleted.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data2vec.atomic_io import merge_dir
from data2vec.batch import Batch
from data2vec.data.dataset import ExampleDataset
from data2vec.errors import CorruptExample, UserError, quoted
from data2vec.feature_extraction import (
    FeatureBatch,
    Layers,
    LogitBatch,
    batch_features,
    count_full,
    encode_chunks,
    extract_features,
    extract_logits,
    joined,
    layer_weights,
    warn_full,
)
from data2vec.inputs import list_inputs, read_input
from data2vec.local_path import local_path
from data2vec.modalities.base import Modality
from data2vec.model_card import render_model_card
from data2vec.nn.encoder import Encoder, build_encoder, padding_invariant
from data2vec.nn.heads import AnyHeadSettings, ClassifierSettings, CTCSettings, Head, build_head
from data2vec.nn.transformer import Transformer
from data2vec.recipe.loading import untrusted_recipe
from data2vec.recipe.recipe import MODALITIES, Recipe
from data2vec.recipe.training_history import TrainingStage, origin_of, read_origin
from data2vec.run_dir import runs_below
from data2vec.settings import JsonDict
from data2vec.untrusted import read_json, require_regular

if TYPE_CHECKING:
    from data2vec.tasks.prediction.predict import Prediction

FORMAT = "data2vec model 2"
CONFIG, WEIGHTS, HEAD, PRETRAINING = "config.json", "model.safetensors", "head.safetensors", "pretraining.safetensors"
TOKENIZER = ("tokenizer.json", "vocab.json")

MAX_EXPANSION = 4
"""Bytes of a model in memory for each byte of its weights, which may be in half precision."""
SMALL_MODEL_BYTES = 2**26
"""Bytes that any model may have besides, such as indices of relative positions."""


@dataclass(frozen=True)
class Model:
    """A trained encoder, with all that is needed to compute features of raw inputs."""

    encoder: Encoder
    """In evaluation mode."""
    modality: Modality
    """Loads and batches inputs."""
    recipe: Recipe
    """The recipe it was trained with."""
    head: Head | None = None
    """The head of a fine-tuned model."""
    pretraining: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of pre-training besides the encoder, by their names in the objective: of the teacher (`teacher.ema.…`) and the
    prediction head or decoder. Needed only to continue pre-training; may be empty."""
    source: str | None = None
    """Where the weights come from, for the model card."""
    license: str | None = None
    """The license of the weights, for the model card."""
    training: tuple[TrainingStage, ...] = ()
    """The runs that the weights went through, oldest first, for the model card; empty if none is recorded."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Save as a model folder. Load it with `data2vec.load(folder)`.

        In an existing folder, files of an earlier model are replaced, and all others are left alone. Raises UserError if
        `folder` is a file."""
        save_model_folder(self, Path(folder))

    def push_to_hub(self, name: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the model folder to the hub as "owner/name" and return its URL. Load it with `data2vec.load("hf://owner/name")`.

        Raises UserError if the hub refuses the upload."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        api = HfApi(token=token)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            with tempfile.TemporaryDirectory() as tmp:
                save_model_folder(self, Path(tmp) / "model")
                return str(api.upload_folder(repo_id=name, folder_path=Path(tmp) / "model"))
        except (HfHubHTTPError, HFValidationError) as error:
            raise UserError(f"{name}: the hub refused the upload: {' '.join(str(error).split())[:300]}") from None

    @staticmethod
    def from_pretrained(model: str | Path) -> "Model":
        """Same as `data2vec.load`."""
        import data2vec

        return data2vec.load(model)

    def to(self, *args: Any, **kwargs: Any) -> "Model":
        """Move the model to another device or precision, such as `torch.bfloat16`, as `torch.nn.Module.to` does; returns it."""
        self.encoder.to(*args, **kwargs)
        if self.head is not None:
            self.head.to(*args, **kwargs)
        return self

    def eval(self) -> "Model":
        """Evaluation mode, without dropout, in which every loaded model is already; returns the model.

        There is no `train()`: for a training loop of your own, use `encoder` and `head`, which are torch modules."""
        self.encoder.eval()
        if self.head is not None:
            self.head.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the outputs will be."""
        return next(self.encoder.parameters()).device

    def __call__(self, inputs: Any, batch: int | None = None) -> FeatureBatch | LogitBatch:
        """What the model computes of each input: its `logits`, or the `features` of the last layer if it has no head."""
        return self.features(inputs, batch=batch) if self.head is None else self.logits(inputs, batch)

    def features(self, inputs: Any, layers: Layers = "last", pool: bool = False, batch: int | None = None) -> FeatureBatch:
        """Contextual features of each input, in order, in the precision of the encoder. Batching does not change them.

        `inputs`: a list, or a single one. Audio: the path of a file, (S,) samples at 16 kHz, whose rate cannot be checked, or a
        pair (samples, sampling rate). Images: a path, a Pillow image, (H, W, 3), (3, H, W) or (H, W) of integers from 0 to 255
        or floats from 0 to 1. Text: a string, a text file as a `Path`, or token ids, special tokens included. Of each kind: the
        bytes of a file, or a row of a dataset. Recordings of more than 40 seconds are encoded in overlapping chunks.
        `layers`: "last" for the encoder's output, after its final norm if it has one; "all" for the output of every block;
        "states" for the input of the first block and these, as transformers and s3prl count hidden states; "mean" for the mean
        of all blocks; a number for one block, counted from 1, or from the end if negative; a sequence with a weight for
        each block for their weighted sum. `pool`: the mean over the positions of each input. `batch`: the maximum number of
        positions per batch, padding included (a second of speech has 50); the default depends on the device.

        Raises UserError for an unreadable input and for a layer that does not exist."""
        weights = layer_weights(layers, len(self.encoder.transformer.blocks))
        items = self._read_inputs(inputs, "features")
        features = extract_features(padding_invariant(self.encoder), self.modality, items, weights, pool, batch)
        lengths = [length for _, length in features]
        step, longest = self.modality.seconds_per_position, max(lengths)
        rest = [(0, 0, 0, 0 if pool else longest - length) for length in lengths]
        hidden = [nn.functional.pad(x, missing) for (x, _), missing in zip(features, rest, strict=True)]
        return FeatureBatch(
            torch.stack(hidden, 1), torch.tensor(lengths), None if step is None else torch.arange(longest) * step
        )

    def prepare(self, inputs: Any) -> Batch:
        """The `inputs`, as of `features`, decoded, normalised and padded to one batch on the device of the model: what `encode`
        takes. Raises UserError for an unreadable input."""
        return self.modality.collate(self._read_inputs(inputs, "prepare")).to(self.device)

    def encode(self, batch: Batch, layers: Layers = "last") -> FeatureBatch:
        """The features of a batch with gradients, to train the encoder or what is before or after it; computed at once.

        `batch`: of `prepare`, or `Batch(input, padding)` of your own: waveforms (B, S) of zero mean and unit variance, images
        (B, C, H, W), token ids (B, T); `padding` (B, S) is True past the end of an input. The weights of a loaded model are
        frozen: `model.encoder.requires_grad_()` frees them, `model.encoder.train()` switches dropout on. `layers`: as of
        `features`, whose values it has in evaluation mode, except for recordings that these encode in chunks, and past the
        length of an input, where they are zero."""
        weights = layer_weights(layers, len(self.encoder.transformer.blocks))
        encoder = padding_invariant(self.encoder)
        hidden, padding = joined(encode_chunks(encoder, partial(batch_features, encoder, layers=weights), batch, None))
        count, length = hidden.shape[1:3]
        lengths = torch.full((count,), length) if padding is None else (~padding).sum(1).cpu()
        step = self.modality.seconds_per_position
        return FeatureBatch(hidden, lengths, None if step is None else torch.arange(length) * step)

    def logits(self, inputs: Any, batch: int | None = None) -> LogitBatch:
        """The logits of each input, in order, before softmax or sigmoid: a number for each of `head.settings.labels`; of a
        regression the number itself. Batching does not change them.

        `inputs` and `batch` are as of `features`; a model fine-tuned on pairs of texts takes rows with both columns, such as
        {"text": "a", "sentence2": "b"}. Raises UserError for a model without a head, and for an unreadable input."""
        head = require_head(self)
        items = self._read_inputs(inputs, "logits")
        full, most = count_full(self.modality, items)
        warn_full("logits", full, len(items), most)
        rows = extract_logits(padding_invariant(self.encoder), head, self.modality, items, batch)
        if rows[0].ndim == 1:
            return LogitBatch(torch.stack(rows), None)
        return LogitBatch(nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))

    def predict(
        self, inputs: Any, top_k: int = 1, threshold: float | None = None, batch: int | None = None
    ) -> "list[Prediction]":
        """What a fine-tuned model says of each input, in order: a class, labels, a number or a transcript, with probabilities.

        `inputs` and `batch` are as of `logits`; of unreadable inputs the prediction has an `error`. The rest is as of
        `data2vec.predict`, which is for data sets. Raises UserError for a model without a head, and if no input can be read."""
        import data2vec

        inputs = [inputs] if isinstance(inputs, str | PathLike) else inputs
        return list(data2vec.predict(self, inputs, top_k, threshold, str(self.device), batch=batch))

    def _read_inputs(self, inputs: Any, what: str) -> list[Any]:
        """The decoded inputs. `what` they are for, in the error."""
        try:
            return [
                read_input(self.modality, each, f"input {i}") for i, each in enumerate(list_inputs(self.modality, inputs), 1)
            ]
        except CorruptExample as error:
            raise UserError(f"{what}: {error}") from None


def require_head(model: Model, name: object = "this model") -> Head:
    """The head of a fine-tuned model. Raises UserError, with the name of the model, if it has none."""
    if model.head is None:
        raise UserError(
            f"{name}: has no head; fine-tune it first (data2vec finetune), or use its features (data2vec features or probe)"
        )
    return model.head


def save_model_folder(model: Model, folder: Path, examples: ExampleDataset | None = None) -> None:
    """Write a model folder. In an existing one, files of an earlier model are replaced, and all others are left alone.

    `examples`: the training examples, for what a modality saves of them (text: its tokenizer)."""
    from data2vec import __version__

    with merge_dir(folder, CONFIG, _optional_files(folder)) as tmp:
        config: JsonDict = {"format": FORMAT, "version": __version__, "files": model.modality.save(tmp, examples)}
        config |= {"recipe": model.recipe.without_local_paths(), **origin_of(model)}
        save_model(model.encoder, str(tmp / WEIGHTS), metadata={"format": "pt"})
        if model.head is not None:
            config["head"] = model.head.settings.model_dump(mode="json")
            save_model(model.head, str(tmp / HEAD), metadata={"format": "pt"})
        if model.pretraining:
            save_file({key: value.contiguous() for key, value in model.pretraining.items()}, tmp / PRETRAINING)
        (tmp / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        (tmp / "README.md").write_text(render_model_card(model, has_tokenizer=bool(config["files"])), encoding="utf-8")


def _optional_files(folder: Path) -> tuple[str, ...]:
    """The files that a model in this folder may have and another may not: none, unless the folder is one of ours."""
    try:
        config = read_json(folder / CONFIG)
        is_ours, has_tokenizer = str(config["format"]).startswith("data2vec model"), bool(config.get("files"))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return (HEAD, PRETRAINING, *(TOKENIZER if has_tokenizer else ())) if is_ours else ()


def load_model_folder(path: str | Path) -> Model:
    """The model of a run folder or a model folder, on the CPU, in evaluation mode.

    Raises UserError if there is none, if its format is another, or if its files are damaged."""
    folder = local_path(path)
    if (folder / "recipe.yaml").is_file() and (folder / "model").is_dir():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        unfinished = f" with weights (nothing is trained yet: continue it with --resume {path})"
        hint = unfinished if (folder / "recipe.yaml").is_file() else runs_below(folder)
        raise UserError(f"{path} is not a data2vec run or model folder{hint}")
    try:
        config = read_json(folder / "config.json")
        if config["format"] != FORMAT:
            raise UserError(
                f"{path} is not a data2vec model folder of this version: its format is {quoted(config['format'])}, not "
                f"{FORMAT!r}; open it with the data2vec that wrote it ({config.get('version', 'version unknown')})"
            )
        raw = config["recipe"]
        if "tokenizer" in raw["data"]:
            raw["data"]["tokenizer"] = None  # unless it is in the folder
        raw["data"] |= {key: str(_inside(folder, name)) for key, name in config["files"].items()}
        if raw["data"].get("tokenizer", "none") is None and any((folder / name).is_file() for name in TOKENIZER):
            raw["data"]["tokenizer"] = str(folder.resolve())  # added by the user
        head = TypeAdapter(AnyHeadSettings | None).validate_python(config.get("head"))
        origin = read_origin(config, str(folder / CONFIG))
    except UserError:
        raise
    except Exception as error:  # others may have written anything
        raise UserError(f"{path} is not a data2vec run or model folder: its config.json is damaged ({quoted(error)})") from None
    recipe = untrusted_recipe(raw, str(folder / "config.json"))
    size = sum((folder / name).stat().st_size for name in (WEIGHTS, HEAD) if (folder / name).is_file())
    model = blank_model(recipe, head, size)
    _load_weights(model.encoder, folder / WEIGHTS)
    if model.head is not None:
        _load_weights(model.head, folder / HEAD)
    try:
        pretraining = load_file(folder / PRETRAINING) if (folder / PRETRAINING).is_file() else {}
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{folder / PRETRAINING} is damaged ({error}); remove it, unless you continue pre-training") from None
    return replace(model, pretraining=pretraining, **origin)


def _inside(folder: Path, name: str) -> Path:
    """A file of a model folder by its name in config.json. Raises ValueError for a path that leads outside."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError("it names files outside of the folder")
    return (folder / name).resolve()


def blank_model(
    recipe: Recipe, head: CTCSettings | ClassifierSettings | None = None, weights_bytes: int | None = None
) -> Model:
    """A model of this recipe with fresh weights, in evaluation mode, to load weights into.

    `weights_bytes`: the size of these, if they and the recipe may be a stranger's. Raises UserError if the recipe asks for a
    large multiple of it."""
    modality = recipe.build_modality()
    if weights_bytes is not None and recipe.modality.name in MODALITIES:
        size = _size_in_memory(modality, recipe, head)
        if size > MAX_EXPANSION * weights_bytes + SMALL_MODEL_BYTES:
            raise UserError(
                f"the settings of the model ask for {size / 2**20:.0f} MiB, but its weights have "
                f"{weights_bytes / 2**20:.3g} MiB: config.json is damaged, or belongs to another model"
            )
    encoder = build_encoder(modality, recipe.encoder).eval().requires_grad_(False)
    built_head = None if head is None else build_head(head, recipe.encoder.width).eval().requires_grad_(False)
    return Model(encoder, modality, recipe, built_head)


def _size_in_memory(modality: Modality, recipe: Recipe, head: CTCSettings | ClassifierSettings | None) -> int:
    """Bytes of a model, without allocating them; of images, without the patches and their positions, whose settings have bounds
    of their own."""
    with torch.device("meta"), _SkipValues():
        of_modality = recipe.modality.name != "vision"  # computes its positions, for which torch imports its compiler
        parts: list[nn.Module] = [build_encoder(modality, recipe.encoder) if of_modality else Transformer(recipe.encoder)]
        parts += [] if head is None else [build_head(head, recipe.encoder.width)]
    return sum(tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers()))


class _SkipValues(TorchFunctionMode):
    """Leaves out random values: on the meta device torch imports its compiler for them, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("normal_", "uniform_", "erfinv_"):
            return next(iter((*args, *(kwargs or {}).values())))
        return (torch.empty if name in ("randn", "rand") else func)(*args, **(kwargs or {}))


def _load_weights(module: nn.Module, weights: Path) -> None:
    try:
        require_regular(weights)  # the library would wait for the writer of a FIFO
        load_model(module, weights)
    except FileNotFoundError:
        raise UserError(f"{weights} is missing; copy the complete folder again") from None
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{weights} is damaged or belongs to another model: {' '.join(str(error).split())[:200]}") from None
