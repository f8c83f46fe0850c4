"""Features of short clips, here and by transformers, with decoding. `python benchmarks/features.py --data FOLDER`

Both use the same random weights of speech/v1-base size, and their results are compared. Both decode the files with the same
code, and normalise with the epsilon of the method, which differs from that of transformers' extractor. transformers runs clips
one by one, as in its documentation; and sorted by length in padded batches of the best size of several, but padding changes
its results. The variants alternate in one process.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

import data2vec
from data2vec.data.audio import decode_audio, normalize_waveform
from data2vec.interop.key_mapping import to_foreign_keys
from data2vec.interop.transformers.key_mapping import AUDIO
from data2vec.model import Model, blank_model
from data2vec.recipe.loading import load_recipe

Result = list[np.ndarray]


def pair() -> tuple[Model, Data2VecAudioModel]:
    """The same weights in both."""
    torch.manual_seed(0)
    ours = blank_model(load_recipe("speech/v1-base"))
    theirs = Data2VecAudioModel(Data2VecAudioConfig()).eval()
    state = theirs.state_dict()
    theirs.load_state_dict(state | to_foreign_keys(dict(ours.encoder.named_parameters()), state, AUDIO))
    return ours, theirs


def here(model: Model, files: list[Path]) -> Result:
    """By data2vec.features, written to a file and read back."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.safetensors"
        data2vec.features(model, files, out)
        found = load_file(out)
    return np.split(found["hidden"], found["offsets"][1:-1])


def there(model: Data2VecAudioModel, files: list[Path], batch: int) -> Result:
    """By transformers, `batch` clips of similar length at a time."""
    extract = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
    if batch == 1:
        return [rows for file in files for _, rows in _there(model, extract, [(0, _wave(file))])]
    waves = sorted(((i, _wave(file)) for i, file in enumerate(files)), key=lambda pair: len(pair[1]))
    parts = [waves[start : start + batch] for start in range(0, len(waves), batch)]
    found = dict(row for part in parts for row in _there(model, extract, part))
    return [found[i] for i in range(len(files))]


@torch.inference_mode()
def _there(
    model: Data2VecAudioModel, extract: Wav2Vec2FeatureExtractor, waves: list[tuple[int, np.ndarray]]
) -> Iterator[tuple[int, np.ndarray]]:
    given = extract([wave for _, wave in waves], sampling_rate=16000, padding=True, return_tensors="pt")
    hidden = model(**given).last_hidden_state.numpy()
    lengths = model._get_feat_extract_output_lengths(given["attention_mask"].sum(1))
    for (i, _), rows, length in zip(waves, hidden, lengths.tolist(), strict=True):
        yield i, rows[:length]


def _wave(file: Path) -> np.ndarray:
    return normalize_waveform(decode_audio({"bytes": None, "path": str(file)}))


def _timed(way: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    found = way()
    return found, time.perf_counter() - start


def main() -> None:
    """Print clips per second of each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with audio files")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.data.rglob("*") if path.suffix in (".flac", ".wav", ".opus"))
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: arguments.clips]]
    ours, theirs = pair()
    few = files[:40]
    here(ours, few[:8])
    best = min((4, 8, 16, 32), key=lambda batch: _timed(lambda: there(theirs, few, batch))[1])
    ways: dict[str, Callable[[], Result]] = {
        "data2vec features": lambda: here(ours, files),
        "transformers, one by one": lambda: there(theirs, files, 1),
        f"transformers, {best} at a time": lambda: there(theirs, files, best),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Result] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            results[name], spent = _timed(way)
            seconds[name].append(spent)
            print(f"  {name}: {spent:.1f} s", flush=True)
    mine, one, _ = results.values()
    print(f"{len(files)} clips, {sum(map(len, mine))} positions, {torch.get_num_threads()} threads")
    for name, spents in seconds.items():
        far = max(float(np.abs(a - b).max()) for a, b in zip(results[name], one, strict=True))
        print(f"{name:28} {len(files) / median(spents):7.1f} clips/s   (largest difference from one by one: {far:.1e})")
    if max(float(np.abs(a - b).max()) for a, b in zip(mine, one, strict=True)) > 1e-4:
        raise SystemExit("the numbers differ by more than 1e-4")


if __name__ == "__main__":
    main()
