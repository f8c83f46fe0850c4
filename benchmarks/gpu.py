"""Everything to be known about a GPU that this project was not written on, in calls of a few minutes.

    python benchmarks/gpu.py OUT [--minutes 9] [--peak TFLOPS] [--parity DIR] [--data DIR]
    python benchmarks/gpu.py OUT --device cpu --tiny      try this script without a GPU

Parts, in order: the machine; losses of the tiny recipes on the CPU and on the device, in each precision, eager and compiled;
the official fixtures (--parity); a killed run that is resumed; the speed of the base recipes, eager and compiled, at the
largest micro-batch, with the kernels that take longest; attention with a bias and convolutions, each in several ways; a run
with its loader; the comparisons of objectives on --data, as `data2vec compare` does.

Each part is a process of its own, so that a crash or a full memory costs one part. What is done is in OUT/gpu.json, and on the
page OUT/gpu.md; the same call continues with the next part, and tries one that was cut off twice at most. No network is used.
Status 0: all parts are done; 3: call again; 1: a check failed.

Share: operations of a step (all products, counted while they are made) over those the device does in the products of a base
model in the same time, measured just before. MFU: the same over --peak, the number on the data sheet of the card.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import batch, clock, matmul_rates
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.atomic_io import write_json, write_text
from data2vec.distributed import process_group, resolve_device
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.planning.flops import flop_counter
from data2vec.train.planning.measure import available_memory, peak_memory
from data2vec.train.train_step import TrainStep

KINDS = tuple(f"{kind}/{version}" for version in ("v1", "v2") for kind in ("speech", "vision", "text"))
UNITS = {"speech": "s of audio", "vision": "images", "text": "tokens"}
SPARE_SECONDS = 20.0
"""Of a call, in which no part is started."""
ATTEMPTS, ATTEMPTS_AT_COMPARISONS = 2, 20
"""Calls in which a part is started; a comparison goes on where the last call ended."""
FULL = 0.9
"""The share of the memory that a micro-batch may take."""
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2, "bf16 compiled": 5e-2}
"""The largest relative difference of a loss in the first 20 steps from the one of the CPU in fp32."""
Result = dict[str, Any]


class Skipped(Exception):
    """A part that cannot be done here, and why."""


def machine(given: argparse.Namespace) -> Result:
    """What is measured on."""
    device = resolve_device(given.device)
    found: Result = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    found["device"] = platform.processor() or platform.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_GB": properties.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"capability": f"{properties.major}.{properties.minor}", "cudnn": torch.backends.cudnn.version()}
    rows = 8 if given.tiny else None
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if name == "fp16" and device.type == "cpu":  # hundreds of times slower
            continue
        found[f"{name}_TFLOPS"] = statistics.median(matmul_rates(device, dtype, rows)) / 1e12
    values = torch.zeros((1 << 22) if given.tiny else (1 << 28), device=device)
    copy, times = torch.empty_like(values), list[float]()
    for _ in range(6):
        begin = clock(device)
        copy.copy_(values)
        times.append(clock(device) - begin)
    return found | {"copy_GB_per_s": 8 * len(values) / min(times[1:]) / 1e9}


def losses(given: argparse.Namespace, kind: str) -> Result:
    """The losses of a tiny recipe, without what is drawn on the device."""
    device, steps = resolve_device(given.device), 3 if given.tiny else 20
    torch.backends.cudnn.allow_tf32 = False  # of fp32 convolutions, which PyTorch rounds by default
    recipe = _plain(load_recipe(f"{kind}-tiny", {"train.compile": False}))
    rows = 1 if given.tiny else 4
    expected = _losses(recipe, "cpu", steps, rows)
    forms = {"fp32": {}, "bf16": {"train.precision": "bf16"}, "fp16": {"train.precision": "fp16"}}
    forms["bf16 compiled"] = {"train.precision": "bf16", "train.compile": True}
    found: Result = {"steps": steps, "cpu": expected}
    for name, changes in forms.items():
        try:
            found[name] = _losses(load_recipe(recipe, changes), str(device), steps, rows)
        except UserError as error:  # fp16 on a CPU
            found[name] = str(error)
            continue
        found[f"{name} difference"] = max(abs(a / b - 1) for a, b in zip(found[name], expected, strict=True))
    wrong = [name for name, limit in TOLERANCE.items() if not found.get(f"{name} difference", 0.0) <= limit]
    return found | {"failed": [f"losses of {kind}-tiny in {name} differ" for name in wrong]}


def _plain(recipe: Recipe) -> Recipe:
    """The recipe without dropout and noise, which a GPU draws otherwise."""
    drawn = [
        key for key, value in recipe.flat().items() if value and ("drop" in key.rpartition(".")[2] or key.endswith("noise_std"))
    ]
    return load_recipe(recipe, {**dict.fromkeys(drawn, 0.0), "train.precision": "fp32"})


def _losses(recipe: Recipe, device: str, steps: int, rows: int) -> list[float]:
    recipe = load_recipe(recipe, {"train.device": device})
    with process_group(device) as process:
        torch.manual_seed(0)
        step = TrainStep(recipe.build_objective(), recipe.train, process)
        micro_batch = batch(recipe, rows)
        outputs = [step(number, [micro_batch], measure=False, norm=False) for number in range(1, steps + 1)]
        return [float(output.loss) / float(output.counts[0]) for output in outputs]


def parity(given: argparse.Namespace) -> Result:
    """The official fixtures."""
    if given.parity is None:
        raise Skipped("no --parity DIR with the fixtures")
    files = sorted(given.parity.glob("*.safetensors"))
    script = Path(__file__).parents[1] / "tests" / "parity.py"
    done = subprocess.run([sys.executable, str(script), *map(str, files)], capture_output=True, text=True)
    lines = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    others = [line for line in lines if not line.startswith("ok ")]
    impossible = [line for line in others if line.startswith("cannot be computed")]  # of fixtures that we do not imitate
    found = {"fixtures": len(files), "comparisons": len(lines) - len(impossible), "left out": impossible}
    wrong = [line for line in others if line not in impossible]
    return found | {"failed": wrong if lines else [f"parity: {done.stderr[-300:]}"]}


def resume(given: argparse.Namespace) -> Result:
    """A run that is killed, and resumed from its checkpoint, has the weights of one that is not."""
    folder, steps = given.out / "resume", 8 if given.tiny else 40
    shutil.rmtree(folder, ignore_errors=True)
    _photos(folder / "photos", 64, 40)
    command = [sys.executable, "-m", "data2vec", "pretrain", "vision/v2-tiny", f"data.train={folder / 'photos'}"]
    command += [
        f"train.steps={steps}",
        f"train.checkpoint_every={steps // 4}",
        "train.schedule.warmup_steps=1",
        "log.report=false",
    ]
    command += ["data.batch_size=16", "data.micro_batch_size=16", "log.every=1", f"train.device={given.device}"]
    runs = {name: folder / name for name in ("whole", "again", "killed")}
    for name in ("whole", "again"):
        subprocess.run([*command, "--out", str(runs[name])], check=True, capture_output=True)
    child = subprocess.Popen([*command, "--out", str(runs["killed"])], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while child.poll() is None and not list(runs["killed"].glob(f"checkpoints/step-{steps // 2}/complete.json")):
        time.sleep(0.01)
    was_killed = child.poll() is None
    child.kill()
    child.wait()
    subprocess.run([*command, "--resume", "--out", str(runs["killed"])], check=True, capture_output=True)
    weights = {name: (run / "model" / "model.safetensors").read_bytes() for name, run in runs.items()}
    same, resumed = weights["whole"] == weights["again"], weights["whole"] == weights["killed"]
    found = {"killed before its end": was_killed, "two runs are equal": same, "the resumed run is equal": resumed}
    shutil.rmtree(folder)
    return found | {"failed": ["the resumed run differs, though runs are reproducible here"] if same and not resumed else []}


def speed(given: argparse.Namespace, kind: str) -> Result:
    """A training step in bf16 at the largest micro-batch, eager and compiled."""
    name = f"{kind}-{'tiny' if given.tiny else 'base'}"
    device = resolve_device(given.device)
    settings = {"train.precision": "bf16", "train.device": str(device), "train.compile": False, "encoder.layerdrop": 0.0}
    recipe = load_recipe(name, settings)
    rate = statistics.median(matmul_rates(device, torch.bfloat16, 8 if given.tiny else None))
    rows, tried = 1, dict[int, Result]()
    while rows <= (2 if given.tiny else 4096):
        try:
            tried[rows] = _step(recipe, rows, given.tiny)
        except torch.OutOfMemoryError:
            break
        if 2 * tried[rows]["memory_GB"] > FULL * available_memory(device) / 1e9:
            break
        rows *= 2
    if not tried:
        raise Skipped("not even one example fits into the memory")
    rows = max(tried, key=lambda each: each / tried[each]["seconds"])  # the largest may not be the fastest
    found: Result = {"recipe": name, "largest_rows": max(tried), "rows": rows, "rate_TFLOPS": rate / 1e12}
    forms = {"eager": recipe, "compiled": load_recipe(recipe, {"train.compile": True})}
    for form, each in forms.items():
        try:
            measured = tried[rows] if form == "eager" else _step(each, rows, given.tiny)
        except Exception as error:  # of the compiler, whose errors have no common class
            found[form] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            continue
        flops = tried[rows]["flops"]
        measured |= {"share": flops / measured["seconds"] / rate, "per_second": measured["amount"] / measured["seconds"]}
        measured |= {} if given.peak is None else {"mfu": flops / measured["seconds"] / (given.peak * 1e12)}
        found[form] = measured
    return found | {"kernels": _kernels(recipe, rows)}


def _step(recipe: Recipe, rows: int, tiny: bool) -> Result:
    """The median step with so many examples, and its operations if it is not compiled."""
    with process_group(recipe.train.device) as process:
        torch.manual_seed(0)
        step, micro_batch = TrainStep(recipe.build_objective(), recipe.train, process), batch(recipe, rows)
        micro_batch = micro_batch.to(process.device)
        make = partial(step, micro_batches=[micro_batch], measure=False, norm=False)
        counter = flop_counter()
        if not recipe.train.compile:
            with counter:
                make(1)
        with peak_memory(process.device) as peak:
            times = list[float]()
            for number in range(2, 5 if tiny else 14):
                begin = clock(process.device)
                make(number)
                times.append(clock(process.device) - begin)
        positions = {"speech": 10.0, "vision": 1.0, "text": float(micro_batch.input.shape[1])}
        amount = rows * positions[recipe.modality.name]
        seconds = statistics.median(times[len(times) // 3 :])
        found = {"seconds": seconds, "first_seconds": times[0], "memory_GB": peak.bytes / 1e9, "amount": amount}
        return found | {"flops": counter.get_total_flops()}


def _kernels(recipe: Recipe, rows: int) -> list[Result]:
    """The kernels of two eager steps that take longest: share of the time, calls of a step, name."""
    with process_group(recipe.train.device) as process:
        torch.manual_seed(0)
        step, micro_batch = TrainStep(recipe.build_objective(), recipe.train, process), batch(recipe, rows)
        step(1, [micro_batch], measure=False, norm=False)
        on_gpu = process.device.type == "cuda"
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
            for number in (2, 3):
                step(number, [micro_batch], measure=False, norm=False)
            clock(process.device)
        events = profile.key_averages()
        of_event = [(each.self_device_time_total if on_gpu else each.self_cpu_time_total, each) for each in events]
        total = sum(taken for taken, _ in of_event) or 1.0
        longest = sorted(of_event, key=lambda pair: -pair[0])[:15]
        return [{"share": taken / total, "calls": each.count / 2, "name": each.key[:120]} for taken, each in longest]


def attention(given: argparse.Namespace) -> Result:
    """Forward and backward of attention with ALiBi's bias: as a tensor, by a score modification, and without a bias."""
    device = resolve_device(given.device)
    rows, heads, length, width = (2, 2, 64, 16) if given.tiny else (64, 12, 512, 64)
    shape, options = (rows, heads, length, width), {"device": device, "dtype": torch.bfloat16}
    q, k, v = (torch.randn(*shape, **options, requires_grad=True) for _ in range(3))
    slopes = torch.rand(heads, device=device)
    places = torch.arange(length, device=device)
    bias = (-slopes[:, None, None] * (places[:, None] - places).abs()).to(torch.bfloat16)[None]
    ways: dict[str, Callable[[], Tensor]] = {
        "sdpa without bias": lambda: F.scaled_dot_product_attention(q, k, v),
        "sdpa with bias": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(rows, -1, -1, -1)),
    }
    if device.type == "cuda":
        from torch.nn.attention.flex_attention import flex_attention

        def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score - slopes[h] * (i - j).abs()

        flex: Any = torch.compile(flex_attention, dynamic=False)
        ways["flex with score modification"] = lambda: flex(q, k, v, score_mod=alibi)
    return {"shape": list(shape)} | {name: _milliseconds(way, device) for name, way in ways.items()}


def convolutions(given: argparse.Namespace) -> Result:
    """Forward and backward of the grouped convolution of speech positions, and of the second layer of its front-end."""
    device = resolve_device(given.device)
    found: Result = {}
    options: Any = {"device": device, "dtype": torch.bfloat16}
    rows, length = (2, 40) if given.tiny else (32, 500)
    for name, width, kernel, stride, groups in (("positions", 768, 19, 1, 16), ("front-end", 512, 3, 2, 1)):
        width //= 8 if given.tiny else 1
        inside = width // groups
        conv = nn.Conv1d(width, width, kernel, stride, groups=groups, bias=False, **options)
        x = torch.randn(rows, width, length, **options, requires_grad=True)
        weight = conv.weight.detach().view(groups, inside, inside * kernel).requires_grad_()

        def products(
            x: Tensor = x, weight: Tensor = weight, size: tuple[int, ...] = (groups, inside, kernel, stride)
        ) -> Tensor:
            groups, inside, kernel, stride = size
            windows = x.view(rows, groups, inside, length).unfold(3, kernel, stride)  # (B, G, C, T, K)
            columns = windows.permute(1, 2, 4, 0, 3).reshape(groups, inside * kernel, -1)
            return torch.bmm(weight, columns)

        ways: dict[str, Callable[[], Tensor]] = {"conv1d": partial(conv, x), "batched products": products}
        if device.type == "cuda":
            ways["conv1d channels last"] = partial(
                nn.Conv2d(width, width, (1, kernel), (1, stride), groups=groups, bias=False, **options).to(
                    memory_format=torch.channels_last
                ),
                x.detach()[:, :, None].contiguous(memory_format=torch.channels_last).requires_grad_(),
            )
        found[name] = {way: _milliseconds(call, device) for way, call in ways.items()}
    return found


def _milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    for _ in range(13):
        begin = clock(device)
        output = call()
        output.backward(torch.ones_like(output))
        times.append(1000 * (clock(device) - begin))
    return statistics.median(times[3:])


def run(given: argparse.Namespace) -> Result:
    """A run of pre-training on pictures in files: what a step takes in the loop, and how long it waits for data."""
    folder, steps = given.out / "run", 6 if given.tiny else 60
    shutil.rmtree(folder, ignore_errors=True)
    count, size = (64, 40) if given.tiny else (2048, 500)
    _photos(folder / "photos", count, size)
    name = "vision/v2-tiny" if given.tiny else "vision/v2-base"
    rows = 16 if given.tiny else 128
    changes = [
        f"train.steps={steps}",
        "log.every=2",
        f"train.device={given.device}",
        "log.report=false",
        "train.precision=bf16",
    ]
    changes += [f"data.batch_size={rows}", f"data.micro_batch_size={rows}", "train.schedule.warmup_steps=1"]
    command = [sys.executable, "-m", "data2vec", "pretrain", name, "--out", str(folder / "run")]
    command += [f"data.train={folder / 'photos'}"]
    done = subprocess.run([*command, *changes], capture_output=True, text=True)
    if done.returncode:
        return {"failed": [done.stderr[-1000:]]}
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    later = lines[len(lines) // 2 :]
    first, last = later[0], later[-1]
    taken = (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
    shutil.rmtree(folder)
    return {"recipe": name, "seconds_per_step": taken, "data_wait": statistics.mean(line["data_wait"] for line in later[1:])}


def comparison(given: argparse.Namespace, name: str) -> Result:
    """Objectives at an equal budget, on real data; it goes on where the last call ended."""
    if given.data is None:
        raise Skipped("no --data DIR with the data of the comparisons")
    out = given.out / "compare" / name
    flops = "4e10" if given.tiny else "1e14"
    command = [sys.executable, "-m", "data2vec", "compare", name, "--data", str(given.data), "--out", str(out), "--seeds", "2"]
    if status := subprocess.run([*command, "--flops", flops], stdout=subprocess.DEVNULL).returncode:
        sys.exit(status)  # its last line on stderr says why
    return {"flops": flops, "results": json.loads((out / "results.json").read_text(encoding="utf-8"))}


def _photos(folder: Path, count: int, size: int) -> None:
    """Pictures of noise in files."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(folder / f"{number}.jpg")


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "machine": machine,
    **{f"losses {kind}-tiny": partial(losses, kind=kind) for kind in KINDS},
    "parity": parity,
    "resume": resume,
    **{f"speed {kind}": partial(speed, kind=kind) for kind in KINDS},
    "attention": attention,
    "convolutions": convolutions,
    "run": run,
    **{f"comparison {name}": partial(comparison, name=name) for name in ("vision", "speech", "text")},
}
"""In the order in which they are done: what is wrong first, then what is slow, then what is long."""


def call_parts(given: argparse.Namespace, words: list[str]) -> int:
    """Do the parts that are missing, for as long as there is time. Returns the exit status."""
    end = time.monotonic() + 60 * given.minutes
    file = given.out / "gpu.json"
    state: dict[str, Result] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in given.only or PARTS:
        entry = state.setdefault(name, {"attempts": 0})
        most = ATTEMPTS_AT_COMPARISONS if name.startswith("comparison") else ATTEMPTS
        if "result" in entry or "skipped" in entry or entry["attempts"] >= most:
            continue
        if (left := end - time.monotonic()) < given.spare:
            print(f"time is up before {name!r}; call again", flush=True)
            return 3
        entry["attempts"] += 1
        entry["error"] = "cut off"
        _write(given.out, state)  # before it starts: it may take the machine with it
        print(f"{name} …", flush=True)
        begin = time.monotonic()
        entry |= _call(given.out, name, words, left)
        entry["seconds"] = time.monotonic() - begin
        if "result" in entry or "skipped" in entry:
            del entry["error"]
        _write(given.out, state)
        if entry.get("error") == "cut off":
            print(f"time is up in {name!r}; call again", flush=True)
            return 3
    failed = [line for entry in state.values() for line in _failures(entry)]
    for line in failed:
        print(f"failed: {line}")
    print(given.out / "gpu.md")
    return 1 if failed else 0


def _call(out: Path, name: str, words: list[str], seconds: float) -> Result:
    """What a part in a process of its own gives: its result, why it was skipped, or its error."""
    file = out / "part.json"
    file.unlink(missing_ok=True)
    child = subprocess.Popen([sys.executable, __file__, *words, "--part", name], stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, printed = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return {"error": "cut off"}
    if file.exists():
        found: Result = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return found
    lines = printed.decode(errors="replace").strip().splitlines()
    return {"error": f"status {child.returncode}: {' / '.join(lines[-3:])}"}


def _failures(entry: Result) -> list[str]:
    return [entry["error"]] if "error" in entry else entry.get("result", {}).get("failed", [])


def _write(out: Path, state: dict[str, Result]) -> None:
    write_json(out / "gpu.json", state)
    write_text(out / "gpu.md", "\n".join(page(state)) + "\n")


def page(state: dict[str, Result]) -> Iterator[str]:
    """The lines of the page."""
    results = {name: entry["result"] for name, entry in state.items() if "result" in entry}
    about = results.get("machine", {})
    yield f"# {about.get('device', 'Measurements')}"
    yield ""
    yield ", ".join(f"{name} {_short(value)}" for name, value in about.items() if name != "device")
    others = {name: entry for name, entry in state.items() if "result" not in entry}
    if others:
        yield from ("", "## Not done", "")
        yield from (f"- {name}: {entry.get('skipped') or entry.get('error')}" for name, entry in others.items())
    failed = [f"- {name}: {line}" for name, result in results.items() for line in result.get("failed", ())]
    yield from ("", "## Checks", "", *(failed or ["All checks that were made passed."]), "")
    yield from (
        "| losses: largest relative difference from the CPU in fp32 | " + " | ".join(TOLERANCE) + " |",
        "|---" * 5 + "|",
    )
    for name, result in results.items():
        if name.startswith("losses"):
            yield f"| {name} | " + " | ".join(_short(result.get(f"{form} difference", "–")) for form in TOLERANCE) + " |"
    for name in ("resume", "parity"):
        if name in results:
            checks = {key: value for key, value in results[name].items() if key != "failed"}
            yield from ("", f"{name}: {_short(checks)}")
    yield from ("", "## Speed", "", "Steps of training in bf16 on random input; see the head of benchmarks/gpu.py.", "")
    yield "| recipe | | rows | s/step | per second | share | MFU | peak GB | first step s |"
    yield "|---" * 9 + "|"
    for result in (result for name, result in results.items() if name.startswith("speed")):
        unit = UNITS[result["recipe"].partition("/")[0]]
        for form in ("eager", "compiled"):
            found = result[form]
            head = f"| {result['recipe']} | {form} | {result['rows']} | "
            if "error" in found:
                yield f"{head}{found['error']} | | | | | |"
                continue
            cells = [found["seconds"], f"{_short(found['per_second'])} {unit}", found["share"], found.get("mfu", "–")]
            yield head + " | ".join(map(_short, [*cells, found["memory_GB"], found["first_seconds"]])) + " |"
    for name in ("attention", "convolutions", "run"):
        if name in results:
            yield from (
                "",
                f"## {name.capitalize()}",
                "",
                *(f"- {key}: {_short(value)}" for key, value in results[name].items()),
            )
    for name, result in results.items():
        if name.startswith("speed"):
            yield from ("", f"## Kernels of {result['recipe']}", "", "| share | calls a step | kernel |", "|---|---|---|")
            yield from (f"| {each['share']:.1%} | {each['calls']:g} | `{each['name']}` |" for each in result["kernels"])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def _one_call(out: Path) -> Iterator[None]:
    """Only one call at a time works in a folder."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another call works in {out}")
        yield


def main(words: list[str]) -> int:
    """Do one part, or call those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder of the results; the same call continues in it")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long a call may take (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to try this script")
    parser.add_argument("--peak", metavar="TFLOPS", type=float, help="dense bf16 rate on the card's data sheet, for the MFU")
    parser.add_argument("--parity", metavar="DIR", type=Path, help="the folder of the fixtures of the official code")
    parser.add_argument("--data", metavar="DIR", type=Path, help="the data of the comparisons (docs/compare.md)")
    parser.add_argument("--only", metavar="PART", action="append", choices=[*PARTS], help="this part only; may be repeated")
    parser.add_argument("--spare", type=float, default=SPARE_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=[*PARTS], help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.part is None:
        resolve_device(given.device)
        with _one_call(given.out):
            return call_parts(given, words)
    try:
        found: Result = {"result": PARTS[given.part](given)}
    except Skipped as reason:
        found = {"skipped": str(reason)}
    write_json(given.out / "part.json", found)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"{error}; without a GPU, '--device cpu --tiny' tries this script")
