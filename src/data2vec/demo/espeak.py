"""Speech synthesis by eSpeak NG, a small synthesizer with many voices, from the package `espeakng-loader`.

The library keeps state from one clip to the next, so each call runs this file in a new process: the same requests always give
the same samples.
"""

import ctypes
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data2vec.errors import UserError

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
VOICES = (
    *(f"m{i}" for i in range(1, 9)),
    *(f"f{i}" for i in range(1, 6)),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco", "Mario"),
    *("Michael", "Mike", "Nguyen", "Reed", "Storm", "adam", "anika", "antonio", "aunty", "belinda", "benjamin", "boris"),
    *("caleb", "david", "edward", "grandma", "grandpa", "ian", "john", "linda", "max", "miguel", "norbert", "pablo"),
    *("paul", "quincy", "rob", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)

_RATE, _PITCH, _RANGE = 1, 3, 4  # parameters of espeak_SetParameter
_SYNCHRONOUS, _UTF8, _NO_EXIT = 2, 1, 0x8000


@dataclass(frozen=True)
class Utterance:
    """A text to speak, and the voice."""

    text: str
    accent: str = "en-us"
    """One of ACCENTS."""
    voice: str = "m1"
    """One of VOICES."""
    rate: int = 170
    """Words per minute, 80 to 450."""
    pitch: int = 50
    """Pitch of the voice, 0 to 100."""
    range: int = 50
    """Pitch range of the intonation, 0 (flat) to 100."""


def require_espeak() -> None:
    """Raises UserError if the package `espeakng-loader` is not installed."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError("the demo needs espeakng-loader for speech, which is not installed: pip install 'data2vec[demo]'")


def synthesize(utterances: Sequence[Utterance]) -> tuple[int, list[np.ndarray]]:
    """The sample rate, and an int16 array (samples,) for each utterance.

    Raises UserError if the package `espeakng-loader` is not installed."""
    require_espeak()
    request = "".join(json.dumps(asdict(utterance)) + "\n" for utterance in utterances)
    done = subprocess.run([sys.executable, "-m", __name__], input=request.encode(), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"eSpeak NG failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    rate, *clips = _unpack(done.stdout)
    return int(rate[0]), clips


def _unpack(data: bytes) -> Iterator[np.ndarray]:
    offset = 0
    while offset < len(data):
        (size,) = struct.unpack_from("<i", data, offset)
        yield np.frombuffer(data, "<i2", size, offset + 4)
        offset += 4 + 2 * size


def _pack(samples: np.ndarray) -> bytes:
    return struct.pack("<i", len(samples)) + samples.astype("<i2").tobytes()


def _serve() -> None:
    """Read requests from standard input; write the sample rate, then the samples of each, to standard output."""
    import espeakng_loader

    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, events) -> int:  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), _NO_EXIT)
    if rate <= 0:
        raise RuntimeError(f"no voices in {espeakng_loader.get_data_path()}")
    espeak.espeak_SetSynthCallback(collect)
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise is seeded by the clock otherwise
    clips: list[np.ndarray] = []
    for utterance in (Utterance(**json.loads(line)) for line in sys.stdin.buffer):
        if espeak.espeak_SetVoiceByName(f"{utterance.accent}+{utterance.voice}".encode()):
            raise RuntimeError(f"no voice {utterance.accent}+{utterance.voice}")
        for parameter, value in ((_RATE, utterance.rate), (_PITCH, utterance.pitch), (_RANGE, utterance.range)):
            espeak.espeak_SetParameter(parameter, value, 0)
        text = utterance.text.encode()
        if espeak.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None):
            raise RuntimeError(f"eSpeak NG cannot speak {utterance.text!r}")
        espeak.espeak_Synchronize()
        clips.append(np.concatenate(chunks) if chunks else np.zeros(0))
        chunks.clear()
    sys.stdout.buffer.write(b"".join(_pack(samples) for samples in (np.array([rate]), *clips)))


if __name__ == "__main__":
    _serve()
