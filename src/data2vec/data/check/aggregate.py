"""Totals over all examples, computed by SQL from a temporary table with a row for each."""

import sqlite3
from collections.abc import Iterable
from math import frexp
from typing import Any

import numpy as np

from data2vec.data.bucketing import bucket_by_length
from data2vec.data.check.inspect import CATEGORIES, MEASURES, Finding
from data2vec.data.check.report import FLAGS, RECIPE_NEEDS, Distribution, KindReport, RecipeNeeds, Usable
from data2vec.data.masked_batches import micro_batches_per_step
from data2vec.data.sources.formats import SignalKind


class Aggregate:
    """Aggregates what `inspect_example` finds in the examples of one kind, in constant memory."""

    def __init__(self, kind: SignalKind):
        self.kind = kind
        self.columns = ("name", "label", "problem", "damaged", "digest", "bytes", *MEASURES[kind], *CATEGORIES[kind])
        # An empty name is a temporary database, kept in memory until it grows too large, and deleted when it is closed.
        self.table = sqlite3.connect("")
        self.table.execute(f"create table examples ({', '.join(map(_quoted, self.columns))})")
        self.table.execute("create view readable as select rowid as number, * from examples where problem is null")
        self.table.create_function("octave", 1, _octave, deterministic=True)

    def add(self, found: Iterable[Finding]) -> None:
        """Add examples: their names, labels, and what `inspect_example` returned."""
        values = ([each.get(column) for column in self.columns] for each in found)
        self.table.executemany(f"insert into examples values ({', '.join('?' * len(self.columns))})", values)

    def report(self, token_counter: str | None, first: list[str], splits: dict[str, int]) -> KindReport:
        """The report of all examples. The arguments are those of `KindReport`."""
        number, size = self.table.execute("select count(*), total(bytes) from examples").fetchone()
        octave = f"octave({_quoted(MEASURES[self.kind][0])})"
        labels = self._counted("label")
        return KindReport(
            self.kind,
            number,
            int(size),
            self._column("select name || ': ' || problem from examples where problem is not null"),
            self._column("select name || ': ' || problem from examples where damaged"),
            self._duplicates(),
            {str(label): n for label, n in labels.items()},
            self._column("select count(*) from readable where label is null")[0] if labels else 0,
            {name: distribution for name in MEASURES[self.kind] if (distribution := self._distribution(_quoted(name)))},
            dict(self._rows(f"select {octave}, count(*) from readable where {octave} is not null group by 1 order by 1")),
            {name: self._counted(name) for name in CATEGORIES[self.kind]},
            {title: self._column(f"select name from readable where {how}") for title, (how, _) in FLAGS[self.kind].items()},
            {needs.recipe: self._usable(needs) for needs in RECIPE_NEEDS[self.kind]},
            token_counter,
            first,
            splits,
        )

    def _usable(self, needs: RecipeNeeds) -> Usable:
        """What training by a recipe would use, cut into steps as by its loader."""
        if self.kind == "text":
            tokens = self._column("select total(tokens) from readable")[0]
            costs = np.ones(int(tokens) // needs.unit_size)
        elif self.kind == "image":
            costs = np.ones(self._column("select count(*) from readable")[0])
        else:
            seconds = self.table.execute(
                f"select min(seconds, {needs.longest}) from readable where seconds >= {needs.shortest}"
            )
            costs = np.fromiter((cost for (cost,) in seconds), np.float64)
        batches = bucket_by_length(costs, needs.micro_batch, np.random.default_rng(0))
        steps = len(batches) // micro_batches_per_step(needs.batch, needs.micro_batch)
        return Usable(len(costs), float(costs.sum()) * needs.unit_size, steps)

    def close(self) -> None:
        """Delete the table."""
        self.table.close()

    def _rows(self, query: str) -> list[Any]:
        return self.table.execute(query).fetchall()

    def _column(self, query: str) -> list[Any]:
        return [value for (value,) in self._rows(query)]

    def _duplicates(self) -> list[list[str]]:
        several = "select digest from readable where bytes > 0 group by 1 having count(*) > 1"
        groups: dict[bytes, list[str]] = {}
        for digest, name in self._rows(f"select digest, name from readable where digest in ({several}) order by number"):
            groups.setdefault(digest, []).append(name)
        return list(groups.values())

    def _counted(self, name: str) -> dict[Any, int]:
        column = _quoted(name)
        query = f"select {column}, count(*) from readable where {column} is not null group by 1 order by 2 desc, 1"
        return dict(self._rows(query))

    def _distribution(self, column: str) -> Distribution | None:
        """None when no example can be read."""
        number = self._column("select count(*) from readable")[0]
        if not number:
            return None
        ends = f"select min({column}), avg({column}), max({column}), total({column}) from readable"
        ((smallest, mean, largest, total),) = self._rows(ends)
        middle = f"select {column} as value from readable order by 1 limit {2 - number % 2} offset {(number - 1) // 2}"
        return Distribution(smallest, self._column(f"select avg(value) from ({middle})")[0], mean, largest, total)


def _octave(value: float) -> float | None:
    """The power of two at or below a value."""
    return 2.0 ** (frexp(value)[1] - 1) if value > 0 else None


def _quoted(name: str) -> str:
    return f'"{name}"'
