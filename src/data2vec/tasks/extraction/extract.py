"""Feature extraction of many inputs into one file, in bounded memory, resumable."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.data.sources.library import data_path
from data2vec.distributed import local_rank, resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import (
    MANY_LAYERS,
    Layers,
    LayerWeights,
    autocast,
    check_computation,
    extract_features,
    inference_encoder,
    layer_weights,
    max_positions,
)
from data2vec.interop.load import load
from data2vec.local_path import local_path, output_file
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.nn.encoder import Encoder
from data2vec.recipe.loading import list_overrides
from data2vec.settings import JsonMapping
from data2vec.tasks.digests import content_digest, model_digest
from data2vec.tasks.extraction.columns import metadata_columns
from data2vec.tasks.extraction.decode import WINDOW, DecodedInput, decode_in_order, list_unreadable, open_inputs, reasons
from data2vec.tasks.extraction.shard_writer import Shard, ShardWriter
from data2vec.tasks.extraction.writers import WRITERS, FeatureTable, write_features
from data2vec.tasks.shares import share_of


@dataclass(frozen=True)
class FeatureFile:
    """A written feature file; `str()` of it is a summary."""

    path: Path
    inputs: int
    """Number of inputs, including unreadable ones."""
    positions: int
    """Number of positions of all inputs together."""
    unreadable: list[str]
    """ "name: reason" of the first thousand inputs without features."""
    num_unreadable: int
    """The number of all of them."""
    status: str | None = None
    """Of a share whose process is not the one to write the file: what is missing, or that another one writes it."""

    def __str__(self) -> str:
        if self.status is not None:
            return f"{self.path}: {self.status}"
        lines = [f"{self.path}: {self.inputs - self.num_unreadable} inputs, {self.positions} positions"]
        return "\n".join([*lines, *list_unreadable(self.unreadable, self.num_unreadable, "have length 0")])


def features(
    model: Model | str | Path,
    inputs: Any,
    out: str | Path,
    layers: Layers = "last",
    pool: bool = False,
    device: str = "auto",
    split: str = "train",
    batch: int | None = None,
    column: str | None = None,
    modality: CustomClass | None = None,
    follow_links: bool = False,
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
    overrides: Iterable[str] | JsonMapping = (),
) -> FeatureFile:
    """Extract the features of many inputs into one file; the same features as `Model.features` returns.

    `model`: a Model, or anything that `data2vec.load` opens. `inputs`: a dataset in any form that `data.train` accepts, or a
    `datasets.Dataset` or `DatasetDict`, of which `split` is used; or a list of inputs as for `Model.features`. `out`: a
    .safetensors, .npy or .parquet file (docs/features.md). `layers`, `pool`, `batch`: see `Model.features`. `column`: the
    column of a dataset's signal, as `data.column`. `device`: auto, cpu, cuda or cuda:N. `modality`: see `data2vec.load`.
    `follow_links`: as `data.follow_links`. `shard`: "i/n" computes share i of n only; the last one to finish writes the file.
    Processes of torchrun share the work by themselves. `precision`: bf16 computes matrix products in bfloat16. `compile`:
    compile the Transformer blocks (torch.compile). `overrides`: settings by which the inputs are read, such as
    {"data.rate": 50}.

    Finished shards are kept in the folder `out`.parts: the same call, with any number of shares, computes only what is missing.
    Inputs that cannot be decoded are skipped and listed.

    Raises UserError if there are no inputs, if none can be decoded, for an unknown layer or file extension, and if
    `out`.parts was started with other settings, or another process works in it."""
    out = local_path(out)
    if out.suffix not in WRITERS:
        raise UserError(f"{out}: unknown file extension; use {', '.join(WRITERS)}")
    output_file(out, "--out", inputs)
    share = share_of(shard)
    model, torch_device = load(model, modality), resolve_device(device, local_rank())
    check_computation(torch_device, precision, compile)
    batch_positions = max_positions(torch_device, batch)
    weights = layer_weights(layers, len(model.encoder.transformer.blocks))
    inputs = data_path(inputs) if hasattr(inputs, "save_to_disk") else inputs
    reading = list_overrides(overrides)
    reader, rows = open_inputs(model.recipe, inputs, split, column, follow_links, overrides=reading)
    settings = {
        "layers": layers if isinstance(layers, str | int) else [float(weight) for weight in layers],
        "pool": pool,
        "precision": precision,
        "compile": compile,
        "seconds_per_position": reader.seconds_per_position,
        "data": inputs if isinstance(inputs, str) else str(inputs) if isinstance(inputs, Path) else f"{len(rows)} inputs",
        "model": model_digest(model),
    }
    internal = {
        "content": content_digest(reader, rows),
        "split": split,
        "device": torch_device.type,
        "batch": batch_positions,
        "reading": reading,
    }
    shards = ShardWriter(out.with_name(f"{out.name}.parts"), len(rows), share)
    if not shards.blocks:
        return FeatureFile(out, 0, 0, [], 0, f"{share} of {len(rows)} inputs is empty")
    shards.refuse_complete(out)
    with shards.opened(settings | internal, "extracts features"):
        encoder = model.encoder if torch_device.type == "cpu" else copy.deepcopy(model.encoder).to(torch_device)
        encoder = inference_encoder(encoder, compile)

        def compute(ranges: list[range]) -> Iterator[tuple[int, Shard]]:
            for first, window in decode_in_order(reader, rows, ranges, WINDOW * batch_positions):
                yield first, _compute_shard(encoder, reader, window, weights, pool, batch_positions)

        with autocast(torch_device, precision):
            shards.fill("features", compute)
        if not shards.is_last():
            return FeatureFile(out, sum(map(len, shards.blocks)), 0, [], 0, shards.status())

        lengths, names, unreadable, num_unreadable = shards.index()
        if not lengths.any():
            shards.remove()
            raise UserError(f"none of the {len(rows)} inputs can be decoded: {'; '.join(reasons(unreadable)[:3])}")
        layer_axis = () if weights is None or layers not in MANY_LAYERS else (len(weights),)
        shape = (len(lengths) if pool else int(lengths.sum()), *layer_axis, model.recipe.encoder.width)
        columns = metadata_columns(rows, getattr(reader, "kind", ""))
        metadata = settings | {"unreadable": unreadable, "num_unreadable": num_unreadable}
        write_features(out, FeatureTable(shards.features(), shape, pool, lengths, names, metadata, columns))
        shards.remove()
        return FeatureFile(out, len(lengths), int(lengths.sum()), unreadable, num_unreadable)


def _compute_shard(
    encoder: Encoder, modality: Modality, window: list[DecodedInput], weights: LayerWeights, pool: bool, batch_positions: int
) -> Shard:
    items = [item for _, item in window if not isinstance(item, str)]
    extracted = iter(extract_features(encoder, modality, items, weights, pool, batch_positions))
    width, layers = encoder.transformer.settings.width, len(weights or [[]])
    empty = np.zeros((layers, width) if pool else (layers, 0, width), np.float32)
    results = [(empty, 0) if isinstance(item, str) else _array(*next(extracted)) for _, item in window]
    rows = [vectors for vectors, _ in results]
    hidden = np.stack(rows) if pool else np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 0, 2))
    if not np.isfinite(hidden).all():
        raise UserError("this encoder's features are NaN or inf: its training diverged, see metrics.jsonl")
    unreadable = [item for _, item in window if isinstance(item, str)]
    return Shard(hidden, np.array([length for _, length in results]), [name for name, _ in window], unreadable)


def _array(vectors: torch.Tensor, length: int) -> tuple[np.ndarray, int]:
    return vectors.float().cpu().numpy(), length
