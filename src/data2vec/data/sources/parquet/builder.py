"""Parquet files as a dataset of the `datasets` library, indexed or streamed. Imported only to read one, as the library is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.builder import Key
from datasets.table import table_cast

from data2vec.data.dataset import UNREADABLE
from data2vec.data.sources.parquet.blocks import Block, DamagedParquet, open_parquet, read_blocks
from data2vec.data.sources.signals import PLACE, ROW
from data2vec.data.sources.tables import rename_column
from data2vec.errors import UserError


@dataclass
class ParquetConfig(datasets.BuilderConfig):
    """What a dataset depends on."""

    files: tuple[tuple[str, str], ...] = ()
    """(path or URL, version) of each."""
    features: Any = None


class ParquetRows(datasets.ArrowBasedBuilder):
    """The rows of parquet files, with column `ROW`: the place of a row of which a cell is null, and why it cannot be read.

    Of rows that cannot be read all other columns are null."""

    BUILDER_CONFIG_CLASS = ParquetConfig

    def _info(self) -> Any:
        return datasets.DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: object) -> list[Any]:
        files = [file for file, _ in self.config.files]
        return [datasets.SplitGenerator("train", gen_kwargs={"files": files, "groups": [None] * len(files)})]

    def _generate_shards(self, files: Sequence[str], groups: Sequence[int | None]) -> Iterator[str]:
        yield from files

    def _generate_more_gen_kwargs(self, files: Sequence[str], groups: Sequence[int | None]) -> Iterator[dict[str, Any]]:
        """Row groups in place of files; a damaged file stays one shard."""
        for file, group in zip(files, groups, strict=True):
            parts = [group] if group is not None else range(_count_groups(file)) or [None]
            yield {"files": [file] * len(parts), "groups": [*parts]}

    def _generate_tables(self, files: Sequence[str], groups: Sequence[int | None]) -> Iterator[tuple[Any, Any]]:
        schema = self.info.features.arrow_schema
        for number, (file, group) in enumerate(zip(files, groups, strict=True)):
            for index, block in enumerate(read_blocks(file, group)):
                yield Key(number, index), _table(file, block, schema)


def parquet_features(where: str, files: Sequence[str]) -> Any:
    """The types of the columns: those of the first file that can be opened. Raises UserError if there is none."""
    problem = ""
    for file in files:
        try:
            with open_parquet(file) as opened:
                schema = opened.schema_arrow
        except DamagedParquet as error:
            problem = problem or f"{file}: {error}"
            continue
        try:
            types = datasets.Features.from_arrow_schema(rename_column(schema.empty_table(), ROW).schema)
            return datasets.Features(types | {ROW: {PLACE: datasets.Value("string"), UNREADABLE: datasets.Value("string")}})
        except Exception as error:  # whatever the library raises on hostile types
            raise UserError(
                f"{file}: its columns have types that cannot be read: {' '.join(str(error).split())[:300]}"
            ) from None
    raise UserError(f"{where} has no file that can be read: {problem}; copy or create it again")


def _count_groups(file: str) -> int:
    try:
        with open_parquet(file) as opened:
            return int(opened.num_row_groups)
    except DamagedParquet:
        return 0


def _table(file: str, block: Block, schema: Any) -> Any:
    """A block with the columns of `schema`, of which ROW is the last."""
    columns = pa.schema(list(schema)[:-1], schema.metadata)
    if block.batch is None:
        whole = [_nulls(block.rows, field.type) for field in columns]
        table = pa.Table.from_arrays(whole, schema=columns)
        is_empty = np.ones(block.rows, bool)
    else:
        found = rename_column(pa.Table.from_batches([block.batch]), ROW)
        table, is_empty = table_cast(found, columns), _is_empty(found)
    places = [block.name(file, index) if empty else None for index, empty in enumerate(is_empty)]
    about = [pa.array(places, pa.string()), pa.array([block.problem] * block.rows, pa.string())]
    return table.append_column(schema.field(ROW), pa.StructArray.from_arrays(about, fields=list(schema.field(ROW).type)))


def _nulls(rows: int, kind: Any) -> Any:
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(rows, kind.storage_type))
    return pa.nulls(rows, kind)


def _is_empty(table: Any) -> np.ndarray:
    """(n,) whether a cell of a row is null, or a signal without content and path."""
    found = np.zeros(table.num_rows, bool)
    for column in table.columns:
        found |= pc.is_null(column).to_numpy()
        if pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
            parts = [pc.is_null(pc.struct_field(column, name)).to_numpy() for name in ("bytes", "path")]
            found |= parts[0] & parts[1]
    return found
