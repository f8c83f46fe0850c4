"""How much one core loads: images, seconds of audio, bytes of text. `python benchmarks/data.py [seconds per line]`

Makes its own files in a temporary folder. Decoding and augmentation run in one thread, as they do in a loader's worker, so
a line times the number of workers is what the loader gives, as long as there are cores for them.
"""

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import soundfile
import torch
from PIL import Image

from data2vec.data.speech import SpeechData, SpeechExamples
from data2vec.data.text import TextData, TextExamples
from data2vec.data.tokenizer import encode, train_tokenizer
from data2vec.data.vision import VisionData, VisionExamples, decode


def picture(rng: np.random.Generator, width: int = 500, height: int = 375) -> bytes:
    """A JPEG of about 55 kB, as those of ImageNet."""
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels = (smooth + 9 * rng.standard_normal(smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=82)
    return file.getvalue()


def rate(work: Callable[[int], float], seconds: float) -> float:
    """Units of work a second of processor time, warmed up; so that a busy machine measures the same."""
    work(0)
    done, i, start = 0.0, 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        done, i = done + work(i), i + 1
    return done / spent


def main() -> None:
    """Print a line for each kind of data."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    pictures = [{"image": {"bytes": picture(rng), "path": None}} for _ in range(16)]
    size = np.mean([len(row["image"]["bytes"]) for row in pictures]) / 1000

    def images(settings: VisionData | None) -> float:
        examples = VisionExamples(pictures, settings or VisionData(), 224)

        def work(i: int) -> float:
            if settings is None:
                decode(pictures[i % 16]["image"])
            else:
                examples.load(i % 16, None, np.random.default_rng(i))
            return 1.0

        return rate(work, seconds)

    print(f"500 x 375 JPEG ({size:.0f} kB) -> 224, per core:")
    print(f"  decode only                    {images(None):8.0f} images/s")
    print(f"  crop and flip                  {images(VisionData(color_jitter=0.0)):8.0f} images/s")
    print(f"  crop, flip and colour jitter   {images(VisionData()):8.0f} images/s")

    with tempfile.TemporaryDirectory() as folder:
        for ending, sample_rate in (("flac", 16000), ("flac", 44100), ("mp3", 16000), ("ogg", 16000), ("wav", 16000)):
            path = Path(folder) / f"{sample_rate}.{ending}"
            envelope = np.repeat(rng.random(151), sample_rate // 10)[: 15 * sample_rate]
            voiced = np.sin(2 * np.pi * 150 * np.arange(15 * sample_rate) / sample_rate)
            soundfile.write(path, 0.3 * envelope * voiced + 0.01 * rng.standard_normal(15 * sample_rate), sample_rate)
            clips = SpeechExamples([{"audio": {"bytes": None, "path": str(path)}}], SpeechData())

            def work(i: int, clips: SpeechExamples = clips) -> float:
                return len(clips.load(0, 14.0, np.random.default_rng(i))) / 14.0 * 15.0 / 16000

            print(f"15 s {ending:4s} at {sample_rate / 1000:4.1f} kHz            {rate(work, seconds):8.0f} seconds of audio/s")

        words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(20000)]
        zipf = np.minimum(rng.zipf(1.3, 400_000), len(words)) - 1
        text = " ".join(words[i] for i in zipf)
        tokenizer = train_tokenizer([text[:2_000_000]], 16_000)
        documents = [text[i : i + 5000] for i in range(0, len(text), 5000)]

        def encoding(i: int) -> float:
            some = documents[i * 40 % len(documents) :][:40]
            encode(tokenizer, some)
            return sum(map(len, some)) / 1e6

        print(f"text to tokens, once           {rate(encoding, seconds):8.1f} MB/s")
        blocks = TextExamples([{"text": text}], TextData(), 16_000, tokenizer)

        def block(i: int) -> float:
            blocks.load(i % len(blocks))
            return 1.0

        print(f"blocks of 512 tokens           {rate(block, seconds):8.0f} blocks/s")


if __name__ == "__main__":
    main()
