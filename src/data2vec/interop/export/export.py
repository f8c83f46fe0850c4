"""Exporting a model to a file that runs without this package: ONNX or a program of `torch.export`.

Shapes: B inputs, S samples or T tokens of the longest, P positions, D width, V labels.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from data2vec.atomic_io import merge_dir
from data2vec.data.audio import SAMPLE_RATE
from data2vec.errors import RunStopped, UserError, only_errors
from data2vec.feature_extraction import head_logits
from data2vec.interop.export.graph import Graph, RawInputs, build_graph
from data2vec.interop.load import load
from data2vec.local_path import local_path, output_file
from data2vec.modalities.custom_classes import CustomClass
from data2vec.modalities.signal import Signals
from data2vec.model import Model
from data2vec.nn.heads import CTC

SUFFIXES = (".onnx", ".pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ROWS = (1, 3, 4)
"""Batch sizes of the check."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how much its outputs differ from those of the model."""

    files: tuple[Path, ...]
    """The exported file, and those that belong to it: weights of a large ONNX model, the tokenizer of a text model."""
    inputs: Mapping[str, str]
    """A description of each input, by name."""
    outputs: dict[str, str]
    """A description of each output, by name."""
    difference: float
    """The largest difference from the model in the check: absolute, or relative to the largest value if that exceeds 1."""

    def __str__(self) -> str:
        named = [*(("in", *each) for each in self.inputs.items()), *(("out", *each) for each in self.outputs.items())]
        lines = [f"{way:3} {name:9} {words}" for way, name, words in named]
        checked = f"checked against the model: largest difference {self.difference:.1e}"
        return "\n".join([*(f"written: {file}" for file in self.files), *lines, checked])


def export(
    model: str | Path | Model, out: str | Path, tolerance: float = 1e-4, modality: CustomClass | None = None
) -> Exported:
    """Write `model`, anything that `data2vec.load` opens, as `out`: FILE.onnx, or FILE.pt2 for `torch.export.load`.

    The file takes raw input in batches of any size, normalizes it, and returns the outputs of encoder and head. Before it gets
    its name it is run and compared with the model, which computes the same inputs one by one. `modality`: see `data2vec.load`.

    Raises UserError for another suffix, a missing library or a modality without `example_input`; RunStopped, with nothing
    written, when file and model differ by more than `tolerance`."""
    model, out = load(model, modality), local_path(out)
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: unknown format; the suffix must be {' or '.join(SUFFIXES)}")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UserError(f"{out}: ONNX needs {', '.join(missing)}: pip install data2vec[export]")
    out.parent.mkdir(parents=True, exist_ok=True)
    output_file(out, "--out")
    graph, generator = build_graph(model).eval(), torch.Generator().manual_seed(0)
    try:
        with merge_dir(out.parent, last=out.name) as tmp, torch.no_grad():
            file = tmp / out.name
            _write_exported(graph, graph.random_inputs(_sizes(graph, 2, generator), generator), file, _metadata(model))
            difference = _difference(graph, model, _open_exported(file), generator)
            if not difference <= tolerance:
                raise RunStopped(
                    f"{out} was not written: it differs from the model by {difference:.1e}, more than --tolerance {tolerance:g}"
                )
            if (tokenizer := getattr(model.modality, "tokenizer", None)) is not None:
                tokenizer.save(str(file.with_suffix(".tokenizer.json")))
            files = sorted(file.parent.iterdir(), key=lambda each: each != file)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(tuple(out.with_name(each.name) for each in files), graph.inputs, _outputs(model), difference)


def _outputs(model: Model) -> dict[str, str]:
    outputs = {
        "hidden": f"float32 (B, P, {model.recipe.encoder.width}), zero beyond an input's own positions",
        "positions": "int64 (B,), number of positions of each input",
    }
    if model.head is not None:
        axes = "B, P" if isinstance(model.head, CTC) else "B"
        outputs["logits"] = f"float32 ({axes}, {len(model.head.settings.labels)})"
    return outputs


def _metadata(model: Model) -> dict[str, str]:
    """Metadata of the file."""
    encoder = model.recipe.encoder
    architecture = f"{encoder.layers} blocks of width {encoder.width}, {encoder.heads} heads"
    metadata = {"model": f"{model.recipe.objective.name} {model.recipe.modality.name}: {architecture}"}
    if model.modality.seconds_per_position is not None:
        metadata |= {"sampling_rate": str(SAMPLE_RATE)} if getattr(model.modality, "kind", None) == "audio" else {}
        metadata |= {"seconds_per_position": str(model.modality.seconds_per_position)}
    if isinstance(model.modality, Signals):
        s = model.modality.settings
        described = {"channels": s.names, "units": s.units, "filter": s.filter.model_dump(), "scale": s.scale.model_dump()}
        metadata |= {"sampling_rate": str(s.hertz)} | {key: json.dumps(value) for key, value in described.items()}
    if model.head is not None:
        metadata["labels"] = json.dumps(model.head.settings.labels, ensure_ascii=False)
    return metadata | {key: value for key in ("source", "license") if (value := getattr(model, key)) is not None}


def _write_exported(graph: Graph, example: RawInputs, file: Path, metadata: dict[str, str]) -> None:
    dynamic_axes = graph.dynamic_axes()
    shapes = {name: dict.fromkeys(each, Dim.DYNAMIC) for name, each in dynamic_axes.items()}
    with _quiet():
        program = torch.export.export(graph, tuple(example.values()), dynamic_shapes=shapes)
        if file.suffix == ".pt2":
            torch.export.save(program, file, extra_files={"about.json": json.dumps(metadata, ensure_ascii=False)})
            return
        names = ["hidden", "positions", *(["logits"] if graph.head is not None else [])]
        made: Any = torch.onnx.export(program, dynamic_shapes=dynamic_axes, output_names=names, verbose=False)
        made.model.metadata_props.update(metadata)
        made.save(file)


def _open_exported(file: Path) -> Callable[[RawInputs], dict[str, Tensor]]:
    """A function that runs the file."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()
        return lambda raw: program(*raw.values())
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(raw: RawInputs) -> dict[str, Tensor]:
        outputs = session.run(None, {name: value.numpy() for name, value in raw.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}

    return run


def _difference(graph: Graph, model: Model, run: Callable[[RawInputs], dict[str, Tensor]], generator: torch.Generator) -> float:
    """The largest difference, over all outputs, from what the model computes for the same random inputs one by one."""
    device, differences = next(model.encoder.parameters()).device, []
    for rows in ROWS:
        raw = graph.random_inputs(_sizes(graph, rows, generator), generator)
        exported = run(raw)
        for row in range(rows):
            single = graph.single_batch(raw, row).to(device)
            hidden, _ = model.encoder(single)
            positions, most = hidden.shape[1], exported["hidden"].shape[1]
            hidden = F.pad(hidden, (0, 0, 0, most - positions))
            expected = {"hidden": hidden, "positions": torch.tensor([positions])}
            if model.head is not None:
                if isinstance(model.head, CTC):
                    expected["logits"] = model.head(hidden)
                else:
                    expected["logits"], _ = head_logits(model.encoder, model.head, single)
            for name, value in expected.items():
                value = value[0].cpu().float()
                differences.append((exported[name][row] - value).abs().max() / value.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())  # NaN if any difference is NaN


def _sizes(graph: Graph, rows: int, generator: torch.Generator) -> list[int]:
    """Sizes of the inputs of a batch: the smallest for a single input, else the largest that is tried, and random ones."""
    least, most = graph.size_range()
    return [least if rows == 1 else most, *torch.randint(least, most + 1, (rows - 1,), generator=generator).tolist()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about torchvision, which is not used, and about deprecated functions inside PyTorch."""
    with only_errors("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
        yield
