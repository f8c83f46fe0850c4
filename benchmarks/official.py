"""One step of each released fine-tuning recipe at full size, as a user runs it.

    python benchmarks/official.py OUT [RECIPE…]

The model has the pre-training recipe's architecture and fresh weights, the data is synthetic, and a step has two short inputs
instead of the recipe's batch; everything else is the recipe's, except that the encoder is not frozen at first. Prints millions
of parameters, seconds of the step, and peak memory of the process: in float32, weights, gradients and Adam's two moments take
16 bytes per parameter.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.model import blank_model
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.recipe.task_settings import SupervisedSettings

SMALL = {
    "speech": ["data.max_seconds=5", "data.batch_seconds=10", "data.micro_batch_seconds=10"],
    "vision": ["data.batch_size=2", "data.micro_batch_size=2"],
    "text": ["data.batch_size=2", "data.micro_batch_size=2"],
}

VOCABULARY = 50265
"""Vocabulary size of all released text models."""


def labelled(out: Path) -> None:
    """Two noise clips, images and sentence pairs, with every label that the recipes need."""
    rng = np.random.default_rng(0)
    (out / "speech").mkdir(parents=True)
    rows = ["file_name,transcript,label"]
    for name in ("a", "b"):
        soundfile.write(out / "speech" / f"{name}.wav", 0.1 * rng.standard_normal(80_000), 16000)
        rows.append(f"{name}.wav,SOME WORDS,{name}")
        (out / "vision" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(out / "vision" / name / "0.png")
    (out / "speech" / "metadata.csv").write_text("\n".join([*rows, ""]))
    lines = ["sentence1\tsentence2\tlabel\tscore", "a man plays\ta man is playing\t1\t5", "it rains\tthe sun shines\t0\t0"]
    (out / "text.tsv").write_text("\n".join([*lines, ""]))
    (out / "tokenizer").mkdir()
    save_tokenizer(train_tokenizer([" ".join(lines)] * 9, VOCABULARY), out / "tokenizer")


def shape_of(name: str) -> str:
    """The pre-training recipe whose model a fine-tuning recipe is for."""
    kind, _, task = name.partition("/")
    words = task.split("-")
    version = next((word for word in words if word in ("v1", "v2")), "v1")
    size = next((word for word in words if word in ("base", "large", "huge", "audioset")), "base")
    return f"{kind}/{version}-{size}"


def one(name: str, out: Path) -> dict[str, float | str]:
    """A step in a process of its own."""
    kind, shape = name.partition("/")[0], shape_of(name)
    given = out / shape.replace("/", "-")
    if not given.exists():
        tokenizer = [f"data.tokenizer={out / 'tokenizer'}"] if kind == "text" else []
        torch.manual_seed(0)
        blank_model(load_recipe(shape, tokenizer)).save_pretrained(given)
    data = out / ("text.tsv" if kind == "text" else kind)
    words = [f"data.train={data}", f"data.valid={data}", "train.steps=1", "objective.freeze_steps=0", "log.report=false"]
    words += ["data.workers=0", "train.device=cpu", *SMALL[kind]]
    if name.endswith("stsb"):
        words.append("objective.label=score")
    run = out / "run"
    command = [sys.executable, "-m", "data2vec", "finetune", name, "--model", str(given), "--out", str(run), *words]
    with (out / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: {(out / 'said').read_text()[-2000:]}")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    weights = (run / "model" / "model.safetensors").stat().st_size / 4e6
    shutil.rmtree(run)
    return {"recipe": name, "millions": weights, "seconds": line["seconds"], "GiB": usage.ru_maxrss / 2**20}


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*")
    arguments = parser.parse_args()
    chosen = arguments.recipes or [
        name for name in recipe_names() if "tiny" not in name and isinstance(load_recipe(name).objective, SupervisedSettings)
    ]
    if not arguments.out.exists():
        labelled(arguments.out)
    for name in chosen:
        found = one(name, arguments.out)
        print("{recipe:28} {millions:6.0f} M {seconds:6.1f} s {GiB:6.1f} GiB".format(**found), flush=True)


if __name__ == "__main__":
    main()
