"""Inspect one example: hash its content, decode it, and measure it."""

import hashlib
from collections.abc import Callable
from typing import Any

from data2vec.data.audio import decode_audio, read_audio_header
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import UNREADABLE, Row, Signal, array_of
from data2vec.data.image import decode_image, image_content, open_image
from data2vec.data.sources.formats import SignalKind
from data2vec.data.text import read_text
from data2vec.data.tokenizer import Tokenizer, encode_texts
from data2vec.errors import CorruptExample
from data2vec.settings import JsonDict
from data2vec.untrusted import open_regular

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
"""What was found in one example, by name; or `damaged`: 1 and the `problem` of a shard that cannot be read to its end."""


def inspect_example(kind: SignalKind, row: Row, name: str, tokenizer: Tokenizer | None = None) -> Finding:
    """`bytes`, `digest`, and the MEASURES and CATEGORIES of an example; if decoding fails, what is known and the `problem`."""
    found: Finding = {}
    signal = row[kind]
    if isinstance(signal, dict) and _in_memory(signal):
        signal = {**signal, "path": name}
    try:
        with decoding(signal if isinstance(signal, dict) else {"bytes": b"", UNREADABLE: row.get(UNREADABLE)}, name):
            if signal is None:
                raise CorruptExample("not UTF-8, or without a text" if kind == "text" else "empty")
            found["digest"], found["bytes"] = _digest(signal)
        found |= _INSIDE[kind](signal, tokenizer)
    except CorruptExample as error:
        found["problem"] = str(error).removeprefix(f"{name}: ")
    return found


def _in_memory(signal: Signal) -> bool:
    return any(signal.get(content) is not None for content in ("bytes", "array"))


def _digest(signal: Any) -> tuple[bytes, int]:
    """Hash and size of the content; a file is not loaded, since it may be larger than memory."""
    content: bytes
    if isinstance(signal, str):
        content = signal.encode()
    elif signal.get("array") is not None:
        content = array_of(signal["array"]).tobytes()
    elif signal.get("bytes") is not None:
        content = signal["bytes"]
    else:
        with open_regular(signal["path"]) as file:
            return hashlib.file_digest(file, _hash).digest(), file.tell()
    return _hash(content).digest(), len(content)


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def _audio(audio: Signal, _: object) -> Finding:
    wave, header = decode_audio(audio), read_audio_header(audio)
    return {
        "seconds": header.seconds,
        "peak": (float(wave.max()) - float(wave.min())) / 2,  # which may be beyond float32
        "sample rate": f"{header.rate} Hz",
        "channels": {1: "mono", 2: "stereo"}.get(header.channels, str(header.channels)),
        "format": header.format,
    }


def _image(image: Signal, _: object) -> Finding:
    _, height, width = decode_image(image).shape
    with decoding(image, "an unnamed image"), open_image(image_content(image)) as opened:
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
