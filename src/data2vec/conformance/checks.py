"""The checks of a modality, one function each, in the order in which a mistake is best found.

A check returns a few words on what it has seen. It raises CheckFailed with what to fix, or CheckSkipped with why it does not
apply; any other error of a modality fails it, too. Tolerances are relative to the largest value.
"""

import gc
import pickle
import random
import shutil
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.conformance.case import Case, CheckFailed, CheckSkipped
from data2vec.data.loader import Loader
from data2vec.errors import CorruptExample, UserError
from data2vec.feature_extraction import extract_features
from data2vec.interop.load import load
from data2vec.modalities.base import LocalEncoder
from data2vec.nn.encoder import padding_invariant
from data2vec.run_dir import Run
from data2vec.train.pretrain import pretrain
from data2vec.train.resume import resume

TOLERANCE = 1e-4
"""The largest difference that rounding explains."""
MAX_INPUTS = 4
"""Inputs of which features are compared."""


def check_settings(case: Case) -> str:
    """The settings of the modality travel with the weights as JSON."""
    recipe = case.recipe
    for section, value in (("modality", recipe.modality), ("data", recipe.data)):
        if type(value).model_validate_json(value.model_dump_json()) != value:
            raise CheckFailed(f"{section}: settings change when they are written as JSON and read; use plain types")
    try:
        sizes = {"batch": recipe.data.batch, "micro_batch": recipe.data.micro_batch}
    except NotImplementedError:
        raise CheckFailed("Data: define the properties batch and micro_batch, in units of `costs`") from None
    if wrong := [name for name, size in sizes.items() if not size > 0]:
        raise CheckFailed(f"Data.{wrong[0]}: {sizes[wrong[0]]} is not a number above 0; return the batch in units of `costs`")
    return f"{len(recipe.modality.flat())} settings of the modality, {len(recipe.data.flat())} of the data"


def check_data(case: Case) -> str:
    """The data set opens, and its examples have costs."""
    costs = np.asarray(case.examples.costs)
    if costs.ndim != 1 or not len(costs):
        raise CheckFailed(f"examples().costs: of shape {costs.shape}; one number for each example, and at least one example")
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise CheckFailed("examples().costs: each must be a number above 0, such as 1 or seconds")
    if not case.usable:
        raise CheckFailed(f"none of the first {min(len(costs), 64)} examples can be decoded: load() raises CorruptExample")
    return f"{len(costs)} examples, {len(case.examples.corrupt)} unreadable"


def check_load(case: Case) -> str:
    """An example depends only on its index and the random generator that `load` gets, so that a run can be resumed."""
    examples = case.examples
    for number, index in enumerate(case.usable):
        for limit, seed in ((None, None), (float(examples.costs[index]), 7)):
            loaded = []
            for call in (1, 2):
                _seed_globals(2 * number + call)
                rng = None if seed is None else np.random.default_rng((seed, index))
                loaded.append(_content(examples.load(index, limit, rng)))
            if not _equal(*loaded):
                raise CheckFailed(
                    f"load({index}) gives another example when it is called again with the same rng; draw from `rng` alone, "
                    "and keep nothing that changes between calls"
                )
    return f"{len(case.usable)} examples, with and without augmentation"


def check_workers(case: Case) -> str:
    """The modality and its examples can be copied to other processes."""
    try:
        modality, examples = pickle.loads(pickle.dumps((case.modality, case.examples)))
    except Exception as error:
        raise CheckFailed(f"cannot be copied to the loader's workers: {error}; keep no open files, locks or lambdas") from None
    index = case.usable[0]
    if not _equal(*(_content(each.load(index, None, None)) for each in (case.examples, examples))):
        raise CheckFailed(f"load({index}) gives another example in a copy of the data set; keep what it needs in attributes")
    item = case.examples.load(index, None, None)
    if not _equal(*(each.collate([item]).input for each in (case.modality, modality))):
        raise CheckFailed("collate() gives another batch in a copy of the modality; keep what it needs in settings")
    return "copied by pickle"


def check_memory(case: Case) -> str:
    """Loading does not keep what it has loaded."""
    examples, indices = case.examples, case.usable
    gc.collect()
    tracemalloc.start()
    try:
        size = 0
        for epoch in range(3):
            if epoch == 1:  # what is cached in the first epoch is as large as the data at most
                gc.collect()
                before = _held_bytes()
            for index in indices:
                item = examples.load(index, float(examples.costs[index]), np.random.default_rng((epoch, index)))
                size += _nbytes(_content(item)) if epoch else 0
                del item
        gc.collect()
        grown = _held_bytes() - before
    finally:
        tracemalloc.stop()
    if grown > size / 4 + 2**16:
        raise CheckFailed(f"load() keeps memory: {grown:,} bytes more after loading {size:,} bytes again; drop what is loaded")
    return f"{size:,} bytes loaded again, {max(grown, 0):,} kept"


def check_collate(case: Case) -> str:
    """Examples become a batch with a row each, in order, which is the same each time."""
    items = [case.examples.load(index, float(case.examples.costs[index]), None) for index in case.usable[:MAX_INPUTS]]
    before = [pickle.dumps(item) for item in items]
    batch = case.modality.collate(items)
    if not isinstance(batch, Batch) or not isinstance(batch.input, Tensor) or len(batch.input) != len(items):
        raise CheckFailed(f"collate() must return a Batch whose input has a row for each of {len(items)} examples")
    padding = batch.padding
    if padding is not None and (padding.dtype != torch.bool or padding.shape != batch.input.shape[: padding.ndim]):
        raise CheckFailed(f"collate(): padding of {padding.dtype} {tuple(padding.shape)}; bool, at the resolution of input")
    if not _equal(batch.input, case.modality.collate(items).input) or [pickle.dumps(item) for item in items] != before:
        raise CheckFailed("collate() gives another batch when it is called again, or changes the examples; it must not")
    for row, item in enumerate(items):
        alone = case.modality.collate([item]).input[0]
        if not _equal(_corner(batch.input[row], alone), alone):
            raise CheckFailed(f"collate(): row {row} is not example {row}; keep the order, and pad at the end")
    return f"input {_shape(batch.input)}{'' if padding is None else ', padded'}"


def check_batches(case: Case) -> str:
    """Pre-training has a batch, whose grid of positions can be masked."""
    grid = case.modality.grid(case.batch)
    if not grid or not all(isinstance(side, int) and side > 0 for side in grid):
        raise CheckFailed(f"grid() returned {grid!r}; a tuple of integers above 0, such as (T,) or (rows, columns)")
    padded = case.modality.padded_positions(case.batch)
    wanted = len(case.batch), prod(grid)
    if padded is not None and (padded.dtype != bool or padded.shape != wanted):
        raise CheckFailed(f"padded_positions() returned {padded.dtype} {padded.shape}; bool {wanted}")
    return f"{len(case.batch)} examples a micro-batch, grid {' x '.join(map(str, grid))}"


def check_shapes(case: Case) -> str:
    """The local encoder gives a vector for each position of the grid."""
    x, padding = case.local_features(case.batch)
    wanted = len(case.batch), prod(case.modality.grid(case.batch)), case.recipe.encoder.width
    if tuple(x.shape) != wanted:
        raise CheckFailed(f"the local encoder returned {_shape(x)}, not (B, T, D) = {wanted}, with T positions of grid()")
    if padding is not None and (padding.dtype != torch.bool or tuple(padding.shape) != wanted[:2]):
        raise CheckFailed(f"the local encoder returned a padding of {padding.dtype} {_shape(padding)}; bool {wanted[:2]}")
    if not torch.isfinite(x).all():
        raise CheckFailed("the local encoder returned NaN or inf; normalise the input, and fill in what is missing")
    return f"vectors {_shape(x)}"


def check_rows(case: Case) -> str:
    """In evaluation, the vectors of an input do not depend on the rest of its batch."""
    if len(case.batch) < 2:
        raise CheckSkipped("the micro-batch has one example; make it larger")
    x, _ = case.local_features(case.batch)
    for row in (0, len(case.batch) - 1):
        alone, _ = case.local_features(case.batch.rows(row, row + 1))
        if (difference := _difference(alone[0], x[row])) > TOLERANCE:
            raise CheckFailed(
                f"the local encoder's vectors of an input change by {difference:.1e} with the rest of its batch; compute each "
                "row by itself, without statistics over the batch"
            )
    return f"{len(case.batch)} rows"


def check_masks(case: Case) -> str:
    """Masked positions tell nothing of what is masked, and others are left alone (version 1)."""
    encoder, batch, mask = case.encoder.local_encoder, case.batch, case.mask
    x, _ = case.local_features(batch)
    others = batch.input.flip(0)
    with torch.no_grad():
        try:
            masked = encoder.apply_mask(x, mask, batch.input)
        except UserError as error:
            raise CheckSkipped(f"version 2 only: {error}") from None
        again = encoder.apply_mask(x.flip(0) + 1, mask, others)
    if masked.shape != x.shape:
        raise CheckFailed(f"apply_mask() returned {_shape(masked)}, not {_shape(x)}")
    if _difference(masked[mask], again[mask]) > 0:
        raise CheckFailed("apply_mask(): vectors of masked positions depend on the input there, which is to be predicted")
    if _difference(masked[~mask], x[~mask]) > TOLERANCE:
        raise CheckFailed("apply_mask() changes vectors of positions that are not masked")
    return f"{int(mask[0].sum())} of {mask.shape[1]} positions masked"


def check_visible(case: Case) -> str:
    """Visible positions tell nothing of masked ones (version 2, which encodes only the visible)."""
    x, _ = case.local_features(case.batch)
    mask = case.mask
    visible = (~mask).nonzero()[:, 1].view(len(x), -1)
    changed = torch.where(mask[..., None], x.flip(0) + 1, x)
    with torch.no_grad():
        first, second = (case.encoder.position_encoder.encode_visible_positions(y, None, mask, visible) for y in (x, changed))
    if tuple(first.shape) != (*visible.shape, x.shape[2]):
        raise CheckFailed(f"encode_visible_positions() returned {_shape(first)}, not {(*visible.shape, x.shape[2])}")
    if _difference(first, second) > 0:
        raise CheckFailed("encode_visible_positions(): vectors of visible positions depend on masked ones")
    return f"{visible.shape[1]} visible positions"


@torch.no_grad()
def check_positions(case: Case) -> str:
    """The order of positions matters to the encoder."""
    encoder = case.encoder
    x, padding = case.local_features(case.batch)
    if x.shape[1] < 3:
        raise CheckSkipped(f"the inputs have {x.shape[1]} positions; 3 are needed")
    weights = {name: weight.clone() for name, weight in encoder.position_encoder.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for weight in encoder.position_encoder.parameters():  # some start at zero
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    order = torch.randperm(x.shape[1], generator=generator)
    moved = encoder.encode(x[:, order], None if padding is None else padding[:, order])
    difference = _difference(moved, encoder.encode(x, padding)[:, order])
    encoder.position_encoder.load_state_dict(weights)
    if difference < 1e-5:
        raise CheckFailed("build_position_encoder(): the order of positions changes nothing; add positions or a bias")
    return f"vectors change by {difference:.1e} when positions are exchanged"


def check_padding(case: Case) -> str:
    """Features of an input do not depend on how far its batch is padded."""
    if not case.modality.supports_padding:
        raise CheckSkipped("supports_padding is False: inputs of different lengths are not batched")
    items = sorted(case.complete, key=lambda item: _positions(case, item))
    short, long = items[0], items[-1]
    if _positions(case, short) == _positions(case, long):
        raise CheckSkipped("all inputs that were read have the same length")
    if case.modality.chunks(case.modality.collate([long])):
        raise CheckSkipped("the longest input is encoded in chunks; use shorter data")
    batch = case.modality.collate([short, long])
    encoder = padding_invariant(case.encoder)
    with torch.no_grad():
        together, padding = encoder(batch)
        alone, _ = encoder(case.modality.collate([short]))
    if padding is None or int((~padding[0]).sum()) != alone.shape[1]:
        raise CheckFailed(
            f"an input of {alone.shape[1]} positions beside one of {together.shape[1]}: the local encoder must return its "
            "padding (B, T), from batch.padding, which collate() must set; or set supports_padding to False"
        )
    if (difference := _difference(together[0, : alone.shape[1]], alone[0])) > TOLERANCE:
        raise CheckFailed(
            f"features change by {difference:.1e} with padding; keep padding out of norms, convolutions and positions, or set "
            "supports_padding to False"
        )
    return f"{alone.shape[1]} positions beside {together.shape[1]}, largest difference {difference:.1e}"


def check_chunks(case: Case) -> str:
    """Chunks of a long input cover each of its positions once."""
    item = max(case.complete, key=lambda each: _positions(case, each))
    batch = case.modality.collate([item])
    chunks = case.modality.chunks(batch)
    if not chunks:
        raise CheckSkipped("no input that was read is long enough for chunks")
    kept = 0
    for chunk in chunks:
        padding = None if batch.padding is None else batch.padding[:, chunk.samples]
        x, _ = case.local_features(Batch(batch.input[:, chunk.samples], padding))
        kept += len(range(x.shape[1])[chunk.kept])
    if kept != (positions := prod(case.modality.grid(batch))):
        raise CheckFailed(f"chunks(): {len(chunks)} chunks keep {kept} positions of an input of {positions}")
    return f"{len(chunks)} chunks, {kept} positions"


def check_input_features(case: Case) -> str:
    """Features of the raw input, which other objectives predict, have a row for each position."""
    try:
        features = case.modality.input_features()
    except UserError as error:
        raise CheckSkipped(f"there are none: {error}") from None
    if not features:
        raise CheckSkipped("input_features() is empty")
    positions = prod(case.modality.grid(case.batch))
    for name, each in features.items():
        found = each.compute(case.batch)
        wanted = len(case.batch), positions, each.width
        if tuple(found.shape) != wanted or not torch.isfinite(found.float()).all():
            raise CheckFailed(f"input_features(): {name} is {_shape(found)}; finite numbers of shape {wanted}")
    return ", ".join(features)


def check_labels(case: Case) -> str:
    """Labels for probing and fine-tuning can be read."""
    column = case.recipe.data.label
    if column is None:
        raise CheckSkipped("no label column is named; name it by data.label=COLUMN")
    examples = case.modality.labelled(case.rows)
    labels = [examples.label(index, column) for index in range(min(len(examples), 64))]
    if not [label for label in labels if label is not None]:
        raise CheckFailed(f"label({column!r}) is None for all examples that were read")
    return f"{len(set(map(str, labels)))} different ones"


def check_step(case: Case) -> str:
    """Versions 1 and 2 of the method make a step: finite, the same each time, with a gradient for each weight."""
    made = []
    for name in ("data2vec", "data2vec2"):
        recipe = case.with_objective(name)
        if name == "data2vec" and _lacks_mask_vector(case):
            continue
        batch = case.first_batch(recipe)
        losses = []
        for _ in range(2):
            objective = case.build_objective(recipe).train()
            torch.manual_seed(1)
            output = objective(batch)
            output.loss.backward()
            losses.append(float(output.loss.detach()))
        if not np.isfinite(losses[0]):
            raise CheckFailed(f"{name}: the loss is NaN or inf")
        if losses[0] != losses[1]:
            raise CheckFailed(f"{name}: the loss differs, {losses[0]!r} and {losses[1]!r}, for one batch and the same weights")
        unused = [
            key
            for key, weight in objective.student.named_parameters()
            if weight.requires_grad and weight.grad is None and not key.endswith("mask_vector")
        ]
        if unused:
            raise CheckFailed(f"{name}: no gradient reaches {', '.join(unused[:3])}; use it in forward(), or remove it")
        made.append(f"{name}: loss {losses[0]:.3g}")
    return ", ".join(made)


def check_streams(case: Case) -> str:
    """Streamed data gives the same batches each time."""
    streamed = {"streaming": True, **case.saved_files}
    values = case.recipe.model_copy(update={"data": case.recipe.data.model_copy(update=streamed)})
    modality = values.build_modality()
    try:
        rows = modality.rows(str(values.data.train))
    except UserError as error:
        raise CheckSkipped(f"the data cannot be streamed: {error}") from None
    if hasattr(rows, "__len__"):
        raise CheckSkipped("rows() opens the data as a whole, also with data.streaming=true")
    first = []
    for _ in range(2):
        objective = values.objective
        loader = Loader(modality, objective.mask, rows, values.train.seed, masks=objective.masks_per_sample)
        steps = loader.steps()
        first.append(next(steps)[0].input)
        steps.close()
    if not _equal(*first):
        raise CheckFailed(
            "streamed batches differ when they are read again; examples() of a list of rows must keep their order"
        )
    return f"batches {_shape(first[0])}"


def check_resume(case: Case) -> str:
    """A run that is interrupted and resumed has the same weights, to the bit, as one that is not."""
    steps = {"train.steps": 4, "train.checkpoint_every": 2, "train.keep_checkpoints": 3, "log.report": False, "log.every": 1}
    overrides = steps | {"data.workers": 0, "health.grace_steps": 1000}
    run = pretrain(case.recipe, overrides=overrides, out=case.folder / "run")
    again = Run(shutil.copytree(run.folder, case.folder / "again"))
    shutil.rmtree(again.folder / "checkpoints" / "step-4")
    shutil.rmtree(again.model)
    resume(again.folder, verb="pretrain")
    before, after = (load(each.model).encoder.state_dict() for each in (run, again))
    if different := [name for name, weight in before.items() if not torch.equal(weight, after[name])]:
        raise CheckFailed(
            f"weights of a resumed run differ, such as {different[0]}; keep no state between batches outside of parameters and "
            "buffers"
        )
    return "4 steps, resumed after 2: bit-identical"


def check_saved_model(case: Case) -> str:
    """A model folder gives the same features anywhere else, without the run that made it."""
    run = Run(case.folder / "run")
    if not (run.model / "config.json").is_file():
        raise CheckSkipped("no run was finished, see resume")
    before = _features(case, run.model)
    elsewhere = Path(shutil.move(run.model, case.folder / "elsewhere"))
    shutil.rmtree(run.folder)
    after = _features(case, elsewhere)
    if paths := [f"{key}={value}" for key, value in load(elsewhere).recipe.flat().items() if _is_elsewhere(value, elsewhere)]:
        raise CheckFailed(f"the model needs a file outside of its folder, {paths[0]}: save() must write it and return its key")
    if not all(_difference(a, b) == 0 for a, b in zip(before, after, strict=True)):
        raise CheckFailed(
            "features of the model change when its folder is moved; save() must write each file that the settings name, and "
            "return the keys of `data` that name them"
        )
    return f"features of {len(before)} inputs are bit-identical"


CHECKS: dict[str, Callable[[Case], str]] = {
    "settings": check_settings,
    "data": check_data,
    "load": check_load,
    "workers": check_workers,
    "memory": check_memory,
    "collate": check_collate,
    "batches": check_batches,
    "shapes": check_shapes,
    "rows": check_rows,
    "masks": check_masks,
    "visible": check_visible,
    "positions": check_positions,
    "padding": check_padding,
    "chunks": check_chunks,
    "input features": check_input_features,
    "labels": check_labels,
    "step": check_step,
    "streams": check_streams,
    "resume": check_resume,
    "saved model": check_saved_model,
}
"""By name, in order."""


def _features(case: Case, model: Any) -> list[Tensor]:
    loaded = load(model)
    examples = loaded.modality.labelled(case.rows)
    items = []
    for index in range(min(len(examples), MAX_INPUTS)):
        try:
            items.append(examples.load(index, None, None))
        except CorruptExample:
            continue
    return [x for x, _ in extract_features(padding_invariant(loaded.encoder), loaded.modality, items, None, False)]


def _is_elsewhere(value: Any, folder: Path) -> bool:
    """Whether this setting is the path of a file outside of `folder`."""
    path = Path(value) if isinstance(value, str) and "/" in value else None
    return path is not None and path.is_absolute() and path.exists() and not path.resolve().is_relative_to(folder.resolve())


def _lacks_mask_vector(case: Case) -> bool:
    encoder = case.encoder.local_encoder
    own = type(encoder).apply_mask is not LocalEncoder.apply_mask
    return getattr(encoder, "mask_vector", None) is None and not own


def _positions(case: Case, item: Any) -> int:
    return prod(case.modality.grid(case.modality.collate([item])))


def _seed_globals(seed: int) -> None:
    """Put the random generators of the process into another state, on which nothing may depend."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _content(value: Any) -> Any:
    """A decoded example with its arrays and tensors as arrays."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: _content(each) for key, each in value.items()}
    return tuple(map(_content, value)) if isinstance(value, list | tuple) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return _equal(_content(a), _content(b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b) or pickle.dumps(a) == pickle.dumps(b)


def _nbytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    return sum(map(_nbytes, value)) if isinstance(value, tuple) else int(getattr(value, "nbytes", 64))


def _held_bytes() -> int:
    """Memory of Python and NumPy as `tracemalloc` counts it, and of the tensors that are alive."""
    storages = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, nn.Parameter):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return tracemalloc.get_traced_memory()[0] + sum(storages.values())


def _corner(padded: Tensor, like: Tensor) -> Tensor:
    """The beginning of `padded`, of the shape of `like`."""
    if padded.ndim != like.ndim:
        return padded
    return padded[tuple(slice(0, size) for size in like.shape)]


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if a.shape != b.shape:
        return float("inf")
    difference = (
        (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12) if a.numel() else torch.zeros(())
    )
    return float(difference.nan_to_num(float("inf")))


def _shape(x: Tensor) -> str:
    return "(" + ", ".join(map(str, x.shape)) + ("," if x.ndim == 1 else "") + ")"
