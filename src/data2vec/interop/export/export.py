"""A model as a file that runs without this package: ONNX, or an exported program of PyTorch.

Shapes: B inputs, S samples or T tokens of the longest, P positions, D width, V labels.
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from data2vec.atomic_io import sync_and_rename
from data2vec.data.audio import SAMPLE_RATE
from data2vec.errors import RunStopped, UserError
from data2vec.interop.export import graph as graphs
from data2vec.interop.export.graph import Graph, Raw
from data2vec.interop.load import load
from data2vec.model import Model
from data2vec.nn.heads import CTC

FORMS = (".onnx", ".pt2")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
ROWS = (1, 3, 4)
"""Inputs in each batch of the check."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the model."""

    files: tuple[Path, ...]
    """The file asked for, and those that belong to it: the weights where ONNX keeps them apart, and a text's tokenizer."""
    inputs: dict[str, str]
    """What goes in, by name, in words."""
    outputs: dict[str, str]
    """What comes out."""
    difference: float
    """The largest difference from the model in the check; where values are larger than 1, as a share of the largest."""

    def __str__(self) -> str:
        named = [*(("in", *each) for each in self.inputs.items()), *(("out", *each) for each in self.outputs.items())]
        lines = [f"{way:3} {name:9} {words}" for way, name, words in named]
        checked = f"checked against the model: largest difference {self.difference:.1e}"
        return "\n".join([*(f"written: {file}" for file in self.files), *lines, checked])


def export(model: str | Path | Model, out: str | Path, tolerance: float = 1e-4) -> Exported:
    """Write `model`, anything that `data2vec.load` opens, as `out`: FILE.onnx, or FILE.pt2 for `torch.export.load`.

    The file takes raw input in batches of any size, normalises it, and gives the encoder's last output, and a head's. It is
    run, and compared with the model, which is given the same inputs one by one, before it takes its name.

    Raises UserError for another ending, a missing library and a modality of your own; RunStopped, with nothing written, when
    file and model differ by more than `tolerance`."""
    model, out = load(model), Path(out).expanduser()
    if out.suffix not in FORMS:
        raise UserError(f"{out}: the ending says the form, and is one of {', '.join(FORMS)}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UserError(f"{out}: ONNX needs {', '.join(missing)}: pip install data2vec[export]")
    graph, generator = graphs.build(model).eval(), torch.Generator().manual_seed(0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside, torch.no_grad():
            file = Path(aside) / out.name
            _write(graph, graph.draw(_sizes(graph, 2, generator), generator), file, _about(model))
            difference = _difference(graph, model, _opened(file), generator)
            if not difference <= tolerance:
                raise RunStopped(f"{out} is not written: it is {difference:.1e} from the model, more than {tolerance:g}")
            if (tokenizer := getattr(model.modality, "tokenizer", None)) is not None:
                tokenizer.save(str(file.with_suffix(".tokenizer.json")))
            files = sorted(file.parent.iterdir(), key=lambda each: each != file)
            for each in reversed(files):
                sync_and_rename(each, out.with_name(each.name))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(tuple(out.with_name(each.name) for each in files), graph.inputs, _outputs(model), difference)


def _outputs(model: Model) -> dict[str, str]:
    found = {
        "hidden": f"float32 (B, P, {model.recipe.encoder.width}), zero beyond an input's own positions",
        "positions": "int64 (B,), how many of them are each input's own",
    }
    if model.head is not None:
        axes = "B, P" if isinstance(model.head, CTC) else "B"
        found["logits"] = f"float32 ({axes}, {len(model.head.settings.labels)})"
    return found


def _about(model: Model) -> dict[str, str]:
    """What the file says of itself."""
    recipe, shape = model.recipe, model.recipe.encoder
    kind: Any = recipe.modality
    about = {"model": f"{recipe.objective.name} {kind.name}: {shape.layers} blocks of width {shape.width}, {shape.heads} heads"}
    if model.modality.seconds_per_position is not None:
        about |= {"sampling_rate": str(SAMPLE_RATE), "seconds_per_position": str(model.modality.seconds_per_position)}
    if model.head is not None:
        about["labels"] = json.dumps(model.head.settings.labels, ensure_ascii=False)
    return about | {key: value for key in ("source", "license") if (value := getattr(model, key)) is not None}


def _write(graph: Graph, example: Raw, file: Path, about: dict[str, str]) -> None:
    axes = graph.axes()
    shapes = {name: dict.fromkeys(each, Dim.DYNAMIC) for name, each in axes.items()}
    with _quiet():
        program = torch.export.export(graph, tuple(example.values()), dynamic_shapes=shapes)
        if file.suffix == ".pt2":
            torch.export.save(program, file, extra_files={"about.json": json.dumps(about, ensure_ascii=False)})
            return
        names = ["hidden", "positions", *(["logits"] if graph.head is not None else [])]
        made: Any = torch.onnx.export(program, dynamic_shapes=axes, output_names=names, verbose=False)
        made.model.metadata_props.update(about)
        made.save(file)


def _opened(file: Path) -> Callable[[Raw], dict[str, Tensor]]:
    """What runs the file."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()
        return lambda raw: program(*raw.values())
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(raw: Raw) -> dict[str, Tensor]:
        given = session.run(None, {name: value.numpy() for name, value in raw.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, given, strict=True)}

    return run


def _difference(graph: Graph, model: Model, run: Callable[[Raw], dict[str, Tensor]], generator: torch.Generator) -> float:
    """The largest, over all outputs, from what the model itself makes of random inputs given to it one by one."""
    device, found = next(model.encoder.parameters()).device, []
    for rows in ROWS:
        raw = graph.draw(_sizes(graph, rows, generator), generator)
        given = run(raw)
        for row in range(rows):
            hidden, _ = model.encoder(graph.alone(raw, row).to(device))
            positions, most = hidden.shape[1], given["hidden"].shape[1]
            hidden = F.pad(hidden, (0, 0, 0, most - positions))
            expected = {"hidden": hidden, "positions": torch.tensor([positions])}
            if model.head is not None:
                expected["logits"] = model.head(hidden, torch.arange(most, device=device)[None] >= positions)
            for name, value in expected.items():
                value = value[0].cpu().float()
                found.append((given[name][row] - value).abs().max() / value.abs().max().clamp(min=1))
    return float(torch.stack(found).max())  # and not a number where there is any that is none


def _sizes(graph: Graph, rows: int, generator: torch.Generator) -> list[int]:
    """Sizes of some inputs: the least of all for one alone, else the greatest that is tried, and random ones."""
    least, most = graph.sizes()
    return [least if rows == 1 else most, *torch.randint(least, most + 1, (rows - 1,), generator=generator).tolist()]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of torchvision, which is not used, and PyTorch of its own deprecated functions."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)
