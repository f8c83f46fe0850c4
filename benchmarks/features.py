"""Features of short clips or of images, here and by transformers, with decoding. `python benchmarks/features.py --data FOLDER`

Both use the same random weights of speech/v1-base or vision/v1-base size, and their results are compared. Both decode the files
with the same code, and normalise with the epsilon of the method, which differs from that of transformers' extractor.
transformers runs inputs one by one, as in its documentation; and in batches of the best size of several, clips sorted by length
and padded, which changes their results. The variants alternate in one process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModel

import data2vec
from data2vec.data.sources.formats import MEDIA
from data2vec.inputs import read_input
from data2vec.model import Model, blank_model
from data2vec.recipe.loading import load_recipe

Result = list[np.ndarray]
RECIPES = {"clips": "speech/v1-base", "images": "vision/v1-base"}
ENDINGS = {"clips": MEDIA["audio"], "images": MEDIA["image"]}


def pair(name: str) -> tuple[Model, Any]:
    """The same weights in both."""
    torch.manual_seed(0)
    ours = blank_model(load_recipe(name))
    with tempfile.TemporaryDirectory() as folder:
        data2vec.convert(ours, Path(folder) / "theirs", "transformers", "random weights")
        return ours, AutoModel.from_pretrained(Path(folder) / "theirs").eval()


def here(model: Model, files: list[Path], precision: str) -> Result:
    """By data2vec.features, written to a file and read back."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        data2vec.features(model, files, out, precision=precision)
        found = load_file(out)
    return np.split(found["hidden"], found["offsets"][1:-1])


@torch.inference_mode()
def there(ours: Model, theirs: Any, files: list[Path], batch: int, precision: str) -> Result:
    """By transformers, `batch` inputs of similar length at a time."""
    items = [read_input(ours.modality, file, str(file)) for file in files]
    if items[0].dtype == torch.uint8:
        local: Any = ours.encoder.local_encoder
        items = [(item - local.mean) / local.std for item in items]
    order = sorted(range(len(items)), key=lambda i: items[i].shape[0])
    found = dict[int, np.ndarray]()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for part in (order[start : start + batch] for start in range(0, len(order), batch)):
            found |= zip(part, _features(theirs, [items[i] for i in part]), strict=True)
    return [found[i] for i in range(len(files))]


def _features(model: Any, items: list[torch.Tensor]) -> Iterator[np.ndarray]:
    if items[0].ndim == 3:
        yield from model(torch.stack(items)).last_hidden_state[:, 1:].float().numpy()  # without the class token
        return
    lengths = torch.tensor([len(item) for item in items])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    hidden = model(torch.nn.utils.rnn.pad_sequence(items, batch_first=True), mask.long()).last_hidden_state.float().numpy()
    for rows, length in zip(hidden, model._get_feat_extract_output_lengths(lengths).tolist(), strict=True):
        yield rows[:length]


def _timed(way: Callable[[], Result], cpu_time: bool) -> tuple[Result, float]:
    """Seconds; or those of the processor, workers included."""
    clock = (lambda: sum(os.times()[:4])) if cpu_time else time.perf_counter
    start = clock()
    found = way()
    return found, clock() - start


def main() -> None:
    """Print inputs per second of each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with audio files or images")
    parser.add_argument("--kind", choices=tuple(RECIPES), default="clips")
    parser.add_argument("--number", type=int, default=1000, help="of inputs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, where other programs run, too")
    arguments = parser.parse_args()
    kind, precision, cpu_time = arguments.kind, arguments.precision, arguments.cpu_time
    files = sorted(path for path in arguments.data.rglob("*") if path.suffix in ENDINGS[kind])
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: arguments.number]]
    ours, theirs = pair(RECIPES[kind])
    few = files[:40] if kind == "clips" else files[:8]
    here(ours, few[:8], precision)
    sizes = (4, 8, 16, 32) if kind == "clips" else (2, 4, 8)
    best = min(sizes, key=lambda batch: _timed(lambda: there(ours, theirs, few, batch, precision), cpu_time)[1])
    ways: dict[str, Callable[[], Result]] = {
        "data2vec features": lambda: here(ours, files, precision),
        "transformers, one by one": lambda: there(ours, theirs, files, 1, precision),
        f"transformers, {best} at a time": lambda: there(ours, theirs, files, best, precision),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Result] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            results[name], spent = _timed(way, cpu_time)
            seconds[name].append(spent)
            print(f"  {name}: {spent:.1f} s", flush=True)
    mine, one, _ = results.values()
    print(f"{len(files)} {kind}, {sum(map(len, mine))} positions, {torch.get_num_threads()} threads")
    for name, spents in seconds.items():
        far = max(float(np.abs(a - b).max()) for a, b in zip(results[name], one, strict=True))
        ratio = median(theirs / ours for theirs, ours in zip(spents, seconds["data2vec features"], strict=True))
        print(
            f"{name:28} {len(files) / median(spents):7.2f} {kind}/s, {ratio:.2f} times the seconds of data2vec "
            f"(largest difference from one by one: {far:.1e})"
        )
    if precision == "fp32" and max(float(np.abs(a - b).max()) for a, b in zip(mine, one, strict=True)) > 1e-4:
        raise SystemExit("the numbers differ by more than 1e-4")


if __name__ == "__main__":
    main()
