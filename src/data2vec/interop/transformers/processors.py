"""What turns raw input into a model's input, as transformers keeps it: beside the model, in files of its own."""

import json
import logging
from pathlib import Path
from typing import Any

from data2vec.data.audio import SAMPLE_RATE
from data2vec.data.tokenizer import END, MASK, SPECIAL, START, save_tokenizer
from data2vec.errors import UserError
from data2vec.modalities.speech import SpeechSettings
from data2vec.modalities.text import Text
from data2vec.modalities.vision import VisionSettings
from data2vec.model import Model
from data2vec.nn.heads import CTCSettings

log = logging.getLogger(__name__)

BICUBIC = 3
"""Pillow's number for it."""


def write_processors(model: Model, folder: Path) -> None:
    """Write into `folder` what transformers' AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer and AutoProcessor read.

    A text model without a tokenizer has nothing to write."""
    settings = model.modality.settings
    if isinstance(settings, SpeechSettings):
        _speech(folder, model.head.settings if model.head is not None else None)
    elif isinstance(settings, VisionSettings):
        _dump(folder, "preprocessor_config.json", _picture(settings.image, settings.mean, settings.std))
    elif isinstance(model.modality, Text) and (tokenizer := model.modality.tokenizer) is not None:
        _text(folder, tokenizer, model.modality.settings.max_length)


def read_processors(folder: Path, modality: str) -> dict[str, dict[str, Any]]:
    """The same as sections of a recipe; besides, `head.labels` of a CTC vocabulary. What has no file is not in them.

    Raises UserError for what would give a model other input than it was trained on."""
    return {"speech": _read_speech, "vision": _read_vision, "text": _read_text}[modality](folder)


def _speech(folder: Path, head: Any) -> None:
    about = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": SAMPLE_RATE}
    about |= {"padding_value": 0.0, "padding_side": "right", "do_normalize": True, "return_attention_mask": True}
    if isinstance(head, CTCSettings):
        about["processor_class"] = "Wav2Vec2Processor"
        labels, blank = head.labels, head.labels[0]
        # A token that is not among the labels would be added to them, as a further one.
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "word_delimiter_token": "|"}
        held = {key: token if token in labels and token != blank else None for key, token in tokens.items()}
        _dump(folder, "vocab.json", {label: i for i, label in enumerate(labels)})
        _dump(
            folder,
            "tokenizer_config.json",
            {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor", "pad_token": blank}
            | {**held, "word_delimiter_token": held["word_delimiter_token"] or " "},
        )
    _dump(folder, "preprocessor_config.json", about)


def _picture(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """As `data2vec.data.image.center_crop` makes them; transformers has this class with and without torchvision."""
    return {
        "image_processor_type": "BeitImageProcessor",
        **{"do_resize": True, "size": {"shortest_edge": round(side * 256 / 224)}, "resample": BICUBIC},
        **{"do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_reduce_labels": False},
        **{"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
        **{"image_mean": list(mean), "image_std": list(std)},
    }


def _text(folder: Path, tokenizer: Any, max_length: int) -> None:
    from tokenizers import Tokenizer, processors

    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.post_processor = processors.RobertaProcessing((SPECIAL[END], END), (SPECIAL[START], START), True, False)
    save_tokenizer(whole, folder)
    start, pad, end, unknown = SPECIAL
    tokens = {"bos_token": start, "eos_token": end, "sep_token": end, "cls_token": start, "unk_token": unknown}
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    about |= {"model_max_length": max_length, "pad_token": pad, "mask_token": MASK, "clean_up_tokenization_spaces": False}
    _dump(folder, "tokenizer_config.json", about | tokens)


def _read_speech(folder: Path) -> dict[str, dict[str, Any]]:
    about = _preprocessor(folder)
    _only(folder, about, {"sampling_rate": SAMPLE_RATE, "do_normalize": True, "feature_size": 1})
    vocabulary = _load(folder / "vocab.json") | _load(folder / "added_tokens.json")
    return {"head": {"labels": sorted(vocabulary, key=vocabulary.__getitem__)}} if vocabulary else {}


def _read_vision(folder: Path) -> dict[str, dict[str, Any]]:
    about = _preprocessor(folder)
    if not about:
        return {}
    _only(folder, about, {"do_rescale": True, "rescale_factor": 1 / 255})
    mean, std = about.get("image_mean", [0.5] * 3), about.get("image_std", [0.5] * 3)
    if not about.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    crop = about.get("crop_size") if about.get("do_center_crop") else 0
    crop = crop.get("height", 0) if isinstance(crop, dict) else crop or 0
    if about.get("size") != {"shortest_edge": round(crop * 256 / 224)} or about.get("resample", BICUBIC) != BICUBIC:
        shown = {key: about.get(key) for key in ("size", "resample", "do_center_crop", "crop_size")}
        log.warning("%s: transformers cuts pictures by %r; here it is the centre, of 224 pixels of 256", folder, shown)
    return {"modality": {"mean": list(mean), "std": list(std)}}


def _read_text(folder: Path) -> dict[str, dict[str, Any]]:
    if (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file():
        return {"data": {"tokenizer": str(folder.resolve())}}
    return {}


def _only(folder: Path, about: dict[str, Any], needed: dict[str, Any]) -> None:
    for key, value in needed.items():
        if about.get(key, value) != value:
            raise UserError(f"{folder}: {key} is {about[key]!r} in its preprocessor_config.json; only {value!r} is known here")


def _preprocessor(folder: Path) -> dict[str, Any]:
    """From a file of its own, or from that of a processor, which has other parts too."""
    whole = _load(folder / "processor_config.json")
    return _load(folder / "preprocessor_config.json") or whole.get("feature_extractor") or whole.get("image_processor") or {}


def _load(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no mapping; copy the whole folder again")
    return found


def _dump(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
