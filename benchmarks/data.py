"""Data throughput of one core: images, seconds of audio, tokens. `python benchmarks/data.py [seconds per line]`

First decoding and augmentation alone, in one thread; then the loader with one worker, as in training: rows, decoding,
augmentation, batching, masks, and transfer to the training process. Figures are per second of CPU time, so other load on the
machine does not matter; multiply the loader's by the number of workers, as long as there are cores for them. The last column is
the time that the training process needs to receive a batch.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import files
import numpy as np
import soundfile
import torch

from data2vec.data.augment import RandAugment
from data2vec.data.image import decode_image
from data2vec.data.loader import Loader
from data2vec.data.tokenizer import encode_texts, train_tokenizer
from data2vec.modalities.speech import SpeechData, SpeechExamples
from data2vec.modalities.vision import VisionData, VisionExamples
from data2vec.recipe.loading import load_recipe

RECIPES = ("vision/v1-base", "vision/v2-base", "speech/v1-base", "speech/v2-base", "text/v1-base", "text/v2-base")
UNITS = {"vision": "images", "speech": "seconds of audio", "text": "tokens"}


def rate(work: Callable[[int], float], seconds: float) -> float:
    """Units of work per second of CPU time, after warm-up."""
    work(0)
    done, i, start = 0.0, 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        done, i = done + work(i), i + 1
    return done / spent


def decoding(seconds: float) -> None:
    """Print the throughput of decoding and augmentation alone."""
    pictures = [{"image": {"bytes": content, "path": None}} for content in files.photographs(16)]
    size = np.mean([len(row["image"]["bytes"]) for row in pictures]) / 1000

    def images(settings: VisionData | None) -> float:
        examples = VisionExamples(pictures, settings or VisionData(), 224)

        def work(i: int) -> float:
            if settings is None:
                decode_image(pictures[i % 16]["image"])
            else:
                examples.load(i % 16, None, np.random.default_rng(i))
            return 1.0

        return rate(work, seconds)

    print(f"500 x 375 JPEG ({size:.0f} kB), decoded only        {images(None):8.0f} images")
    print(f"... cropped to 224 and flipped            {images(VisionData(color_jitter=0.0)):8.0f} images")
    print(f"... and colour jitter                     {images(VisionData()):8.0f} images")
    tuning = VisionData(color_jitter=0.0, rand_augment=RandAugment(ops=2), random_erasing=0.25)
    print(f"... or RandAugment and erasing            {images(tuning):8.0f} images")
    with tempfile.TemporaryDirectory() as folder:
        for ending, sample_rate in (("flac", 16000), ("flac", 44100), ("mp3", 16000), ("ogg", 16000), ("wav", 16000)):
            path = Path(folder) / f"{sample_rate}.{ending}"
            soundfile.write(path, next(files.speech(1, sample_rate)), sample_rate)
            clips = SpeechExamples([{"audio": {"bytes": None, "path": str(path)}}], SpeechData())

            def work(i: int, clips: SpeechExamples = clips) -> float:
                clips.load(0, 14.0, np.random.default_rng(i))
                return files.SECONDS

            heard = rate(work, seconds)
            print(f"15 s {ending:4} at {sample_rate / 1000:4.1f} kHz                     {heard:8.0f} seconds of audio")
    text = files.text(2_000_000)
    tokenizer = train_tokenizer([text], 16_000)
    documents = [text[i : i + 5000] for i in range(0, len(text), 5000)]

    def encoding(i: int) -> float:
        some = documents[i * 40 % len(documents) :][:40]
        encode_texts(tokenizer, some)
        return sum(map(len, some)) / 1e6

    print(f"text to tokens, done once                 {rate(encoding, seconds):8.1f} MB")


def loading(name: str, folder: Path, seconds: float) -> tuple[float, float]:
    """Units per second of the worker's CPU time, and the receiving process's time relative to it.

    Steps of one micro-batch, of the recipe's own size."""
    recipe = load_recipe(name, {"data.workers": 1})
    batch = next(key for key in type(recipe.data).model_fields if key.startswith("batch_"))
    recipe = load_recipe(recipe, {f"data.{batch}": getattr(recipe.data, f"micro_{batch}")})
    modality, method = recipe.build_modality(), recipe.objective
    loader = Loader(modality, method.mask, modality.rows(str(folder)), seed=1, masks=method.masks_per_sample)
    steps = loader.steps()
    for _ in range(6):  # prefetched batches
        next(steps)
    (worker,) = multiprocessing.active_children()
    received, spent, begin, done = time.process_time(), _spent(worker.pid), time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        ((made),) = next(steps)
        done += made.input.numel()
    worked, received = _spent(worker.pid) - spent, time.process_time() - received
    steps.close()
    size = {"vision": 3 * 224 * 224, "speech": 16000, "text": 1}[modality.settings.name]
    return done / size / worked, received / worked


def _spent(pid: int | None) -> float:
    """CPU seconds of another process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print a line for each kind of data."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    torch.set_num_threads(1)
    print("per second of one core, decoding and augmentation:")
    decoding(seconds)
    print("per second of a worker's core, the complete loader:")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATA2VEC_CACHE"] = f"{folder}/cache"
        for name in RECIPES:
            kind = name.partition("/")[0]
            if not (data := Path(folder, kind)).exists():
                files.write(kind, data)
            units, receiving = loading(name, data, 2 * seconds)
            print(f"{name:41} {units:8.0f} {UNITS[kind]}; receiving: {receiving:.1%} of that")


if __name__ == "__main__":
    main()
