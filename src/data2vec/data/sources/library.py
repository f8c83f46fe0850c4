"""Calls of the `datasets` library, with its errors as `UserError`s."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data2vec.data.dataset import Row, Rows
from data2vec.errors import UserError


def load_library_dataset(path: str, *arguments: Any, **options: Any) -> Rows:
    """`datasets.load_dataset(*arguments, **options)`; `path` is what the user asked for. Raises UserError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return load_dataset(*arguments, **options)
    except DatasetNotFoundError:
        raise UserError(f"{path}: there is no such dataset on the hub") from None
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(error_reason(path, error)) from None


def dataset_from_generator(path: str, generator: Callable[..., Iterator[Row]], streaming: bool, **arguments: Any) -> Rows:
    """The rows that `generator(**arguments)` yields, indexed in the library's cache or streamed. Raises UserError."""
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    if streaming:
        return IterableDataset.from_generator(generator, gen_kwargs=arguments)
    try:
        return Dataset.from_generator(generator, gen_kwargs=arguments)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(error_reason(path, error)) from None


def shuffled_stream(rows: Rows) -> Rows:
    """An indexed dataset as a stream of many small shards in random order, so that data sorted by class is mixed."""
    from datasets import Dataset

    shuffled = Dataset(rows.data.table.take(np.random.default_rng(0).permutation(len(rows))))
    return shuffled.to_iterable_dataset(num_shards=max(1, min(1024, len(rows) // 8)))


def error_reason(path: str, error: BaseException) -> str:
    """The root cause of one of the library's errors, in one line."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) if isinstance(cause, UserError) else f"{path} cannot be read: {' '.join(str(cause).split())[:300]}"
