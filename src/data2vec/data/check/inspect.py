"""Inspect one example: hash its content, decode it, and measure it."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data2vec.data.audio import decode_audio
from data2vec.data.dataset import Row, Signal
from data2vec.data.image import decode_image
from data2vec.data.sources.formats import SignalKind
from data2vec.data.text import read_text
from data2vec.data.tokenizer import Tokenizer, encode_texts
from data2vec.errors import CorruptExample
from data2vec.settings import JsonDict

MEASURES: dict[SignalKind, tuple[str, ...]] = {
    "audio": ("seconds", "peak"),
    "image": ("shorter side", "width", "height"),
    "text": ("tokens", "words", "characters"),
}
"""The measures of a readable example, the most informative one first."""
CATEGORIES: dict[SignalKind, tuple[str, ...]] = {
    "audio": ("sample rate", "channels", "format"),
    "image": ("size", "format", "mode"),
    "text": (),
}
"""Properties with few distinct values."""


Finding = JsonDict
"""What was found in one example, by name."""


def inspect_example(kind: SignalKind, row: Row, name: str, tokenizer: Tokenizer | None = None) -> Finding:
    """`bytes`, `digest`, and the MEASURES and CATEGORIES of an example; if decoding fails, what is known and the `problem`."""
    found: Finding = {}
    try:
        found["digest"], found["bytes"], content = _content(kind, row[kind], name)
        found |= _INSIDE[kind](content, tokenizer)
    except CorruptExample as error:
        found["problem"] = str(error).removeprefix(f"{name}: ")
    except OSError as error:
        found["problem"] = error.strerror or str(error)
    except Exception as error:  # any error that a corrupt file causes in a decoder is a result here
        found["problem"] = f"{type(error).__name__}: {error}"
    return found


def _content(kind: SignalKind, signal: Any, name: str) -> tuple[bytes, int, Any]:
    """The hash and size of the content, and the signal; a text file is not loaded, since it may be larger than memory."""
    if signal is None:
        raise CorruptExample("not UTF-8, or without a text" if kind == "text" else "empty")
    if kind == "text" and isinstance(signal, dict) and signal["bytes"] is None:
        with open(signal["path"], "rb") as file:
            return hashlib.file_digest(file, _hash).digest(), file.tell(), signal
    if isinstance(signal, str):
        content = signal.encode()
    else:
        content = signal["bytes"] if signal["bytes"] is not None else Path(signal["path"]).read_bytes()
        signal = {"bytes": content, "path": name}
    return _hash(content).digest(), len(content), signal


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def _audio(audio: Signal, _: object) -> Finding:
    import soundfile

    wave = decode_audio(audio)
    with soundfile.SoundFile(io.BytesIO(audio["bytes"])) as file:
        return {
            "seconds": file.frames / file.samplerate,
            "peak": float(wave.max() - wave.min()) / 2,
            "sample rate": f"{file.samplerate} Hz",
            "channels": {1: "mono", 2: "stereo"}.get(file.channels, str(file.channels)),
            "format": f"{file.format} {file.subtype}",
        }


def _image(image: Signal, _: object) -> Finding:
    from PIL import Image

    _, height, width = decode_image(image).shape
    with Image.open(io.BytesIO(image["bytes"])) as opened:
        named = {"format": opened.format, "mode": opened.mode}
    sides = {"shorter side": min(width, height), "width": width, "height": height}
    return sides | {"size": f"{width} x {height}"} | named


def _text(document: Any, tokenizer: Tokenizer) -> Finding:
    characters = words = tokens = 0
    for part in read_text({"text": document}):
        characters += len(part)
        words += len(part.split())
        tokens += len(encode_texts(tokenizer, [part])[0])
    return {"characters": characters, "words": words, "tokens": tokens + (characters > 0)}  # </s> ends a document


_INSIDE: dict[SignalKind, Callable[[Any, Any], Finding]] = {"audio": _audio, "image": _image, "text": _text}
