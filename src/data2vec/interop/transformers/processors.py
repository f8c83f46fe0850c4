"""Files of transformers that describe how raw input becomes model input: preprocessor, tokenizer and vocabulary."""

import json
from pathlib import Path
from typing import Any

from data2vec.data.audio import SAMPLE_RATE
from data2vec.data.tokenizer import END, MASK, SPECIAL, START, save_tokenizer
from data2vec.errors import UserError, get_logger
from data2vec.modalities.fbank import FbankSettings
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.speech import SpeechSettings
from data2vec.modalities.text import Text
from data2vec.modalities.vision import VisionSettings
from data2vec.model import Model
from data2vec.nn.heads import CTCSettings
from data2vec.settings import JsonDict
from data2vec.untrusted import read_json

log = get_logger(__name__)

BICUBIC = 3
"""Pillow's number of the filter."""


def write_processors(model: Model, folder: Path) -> None:
    """Write the files for AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer and AutoProcessor of transformers.

    A text model without a tokenizer has none."""
    settings = model.modality.settings
    if isinstance(settings, SpeechSettings):
        _speech(folder, model.head.settings if model.head is not None else None)
    elif isinstance(settings, SoundSettings):
        _write_json(folder, "preprocessor_config.json", _spectrogram_config(settings))
    elif isinstance(settings, VisionSettings):
        _write_json(folder, "preprocessor_config.json", _image_config(settings.image, settings.mean, settings.std))
    elif isinstance(model.modality, Text) and (tokenizer := model.modality.tokenizer) is not None:
        _text(folder, tokenizer, model.modality.settings.max_length)


def read_processors(folder: Path, modality: str) -> dict[str, JsonDict]:
    """These files as recipe sections, and `head.labels` of a CTC vocabulary. Missing files are skipped.

    Raises UserError for preprocessing that is not supported: the model would get other input than it was trained on."""
    readers = {"speech": _read_speech, "vision": _read_vision, "text": _read_text, "sound": _read_sound}
    return readers[modality](folder)


def _speech(folder: Path, head: Any) -> None:
    config = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": SAMPLE_RATE}
    config |= {"padding_value": 0.0, "padding_side": "right", "do_normalize": True, "return_attention_mask": True}
    if isinstance(head, CTCSettings):
        config["processor_class"] = "Wav2Vec2Processor"
        labels, blank = head.labels, head.labels[0]
        # transformers adds tokens that are not among the labels as further labels.
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "word_delimiter_token": "|"}
        special = {key: token if token in labels and token != blank else None for key, token in tokens.items()}
        _write_json(folder, "vocab.json", {label: i for i, label in enumerate(labels)})
        _write_json(
            folder,
            "tokenizer_config.json",
            {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor", "pad_token": blank}
            | {**special, "word_delimiter_token": special["word_delimiter_token"] or " "},
        )
    _write_json(folder, "preprocessor_config.json", config)


def _spectrogram_config(settings: SoundSettings) -> JsonDict:
    """The preprocessing of `fbank` in the class of transformers for AST. Raises UserError for another one."""
    mean, scale = settings.normalization
    if (other := FbankSettings(bins=settings.fbank.bins)) != settings.fbank:
        different = [key for key, value in settings.fbank.flat().items() if value != other.flat()[key]]
        raise UserError(
            f"modality.fbank.{different[0]}: cannot be written for transformers, whose spectrograms are those of AST"
        )
    return {
        **{"feature_extractor_type": "ASTFeatureExtractor", "feature_size": 1, "sampling_rate": settings.fbank.rate},
        **{"num_mel_bins": settings.fbank.bins, "max_length": settings.frames, "padding_value": 0.0, "padding_side": "right"},
        **{"do_normalize": True, "mean": mean, "std": scale / 2, "return_attention_mask": False},
    }


def _image_config(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> JsonDict:
    """The preprocessing of `data2vec.data.image.center_crop`, in a class of transformers that works without torchvision."""
    return {
        "image_processor_type": "BeitImageProcessor",
        **{"do_resize": True, "size": {"shortest_edge": round(side * 256 / 224)}, "resample": BICUBIC},
        **{"do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_reduce_labels": False},
        **{"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
        **{"image_mean": list(mean), "image_std": list(std)},
    }


def _text(folder: Path, tokenizer: Any, max_length: int) -> None:
    from tokenizers import Tokenizer, processors

    with_special = Tokenizer.from_str(tokenizer.to_str())
    with_special.post_processor = processors.RobertaProcessing((SPECIAL[END], END), (SPECIAL[START], START), True, False)
    save_tokenizer(with_special, folder)
    start, pad, end, unknown = SPECIAL
    tokens = {"bos_token": start, "eos_token": end, "sep_token": end, "cls_token": start, "unk_token": unknown}
    config: JsonDict = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    config |= {"model_max_length": max_length, "pad_token": pad, "mask_token": MASK, "clean_up_tokenization_spaces": False}
    _write_json(folder, "tokenizer_config.json", config | tokens)


def _read_speech(folder: Path) -> dict[str, JsonDict]:
    config = _preprocessor_config(folder)
    _check_settings(folder, config, {"sampling_rate": SAMPLE_RATE, "do_normalize": True, "feature_size": 1})
    vocabulary = _load_json(folder / "vocab.json") | _load_json(folder / "added_tokens.json")
    return {"head": {"labels": sorted(vocabulary, key=vocabulary.__getitem__)}} if vocabulary else {}


def _read_vision(folder: Path) -> dict[str, JsonDict]:
    config = _preprocessor_config(folder)
    if not config:
        return {}
    _check_settings(folder, config, {"do_rescale": True, "rescale_factor": 1 / 255})
    mean, std = config.get("image_mean", [0.5] * 3), config.get("image_std", [0.5] * 3)
    if not config.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    crop = config.get("crop_size") if config.get("do_center_crop") else 0
    crop = crop.get("height", 0) if isinstance(crop, dict) else crop or 0
    if config.get("size") != {"shortest_edge": round(crop * 256 / 224)} or config.get("resample", BICUBIC) != BICUBIC:
        shown = {key: config.get(key) for key in ("size", "resample", "do_center_crop", "crop_size")}
        log.warning(
            "%s: its preprocessor crops images by %r; here they are resized to 256/224 of its "
            "input size, and the centre is used",
            folder,
            shown,
        )
    return {"modality": {"mean": list(mean), "std": list(std)}}


def _read_sound(folder: Path) -> dict[str, JsonDict]:
    config = _preprocessor_config(folder)
    if not config:
        return {}
    _check_settings(folder, config, {"do_normalize": True, "sampling_rate": SAMPLE_RATE})
    return {"modality": {"mean": config["mean"], "std": config["std"], "num_std": 2.0}}


def _read_text(folder: Path) -> dict[str, JsonDict]:
    if (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file():
        return {"data": {"tokenizer": str(folder.resolve())}}
    return {}


def _check_settings(folder: Path, config: JsonDict, required: JsonDict) -> None:
    for key, value in required.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder}: {key}: {config[key]!r} in preprocessor_config.json is not supported, only {value!r}")


def _preprocessor_config(folder: Path) -> JsonDict:
    """The content of preprocessor_config.json, or its part of processor_config.json."""
    processor = _load_json(folder / "processor_config.json")
    config = _load_json(folder / "preprocessor_config.json")
    return config or processor.get("feature_extractor") or processor.get("image_processor") or {}


def _load_json(path: Path) -> JsonDict:
    """The JSON object in a file; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a JSON object; copy the folder again")
    return content


def _write_json(folder: Path, name: str, content: JsonDict) -> None:
    (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
