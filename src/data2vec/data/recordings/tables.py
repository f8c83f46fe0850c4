"""Recordings in csv and tsv files: a row a sample, a column a channel, and maybe a column of times."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data2vec.data.recordings.recording import ArrayRecording, Description, Recording, name_channels, require_rate
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular

TIMES = re.compile(
    r"(?:time|timestamp|datetime|t)(?:[ _\[(]+(?P<unit>s|sec|seconds|ms|milliseconds|us|µs|ns)[\])]*)?"
    r"|(?P<word>(?:milli)?seconds)"
)
"""Names of the column of times, in lower case, such as time, seconds, time_ms or t [s]."""
NO_SIGNAL = re.compile(r"(?:time|timestamp|datetime)(?:[ _\[(].*)?|(?:milli)?seconds")
"""Names of other columns of times, in any unit, which are no channels either, in lower case."""
UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
"""In seconds, of the numbers in it."""
UNCLEAR_STEP = 0.2
"""Numbers with at least this step are seconds at 5 Hz or less, or milliseconds at 5 kHz or less: nobody can see which."""
NOT_CHANNELS = ("label", "labels", "class", "target", "y", "subject", "activity", "split", "index", "id", "sample", "")
"""Names of columns that are no channels, in lower case; but `y` is one beside a channel `x`, as of an accelerometer."""
JITTER = 0.1
"""How far the time between two samples may be from the usual one, relative to it; farther is a gap or an error."""
MAX_IRREGULAR = 0.01
"""Of the samples whose time may be irregular."""
MAX_TABLE_BYTES = 2**31
MAX_GAP_SAMPLES = 10**8
"""Samples of all gaps together."""


def table_recording(path: str, description: Description) -> Recording:
    """The recording of a csv or tsv file. Raises CorruptExample."""
    import os

    from pyarrow import ArrowException, csv

    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_TABLE_BYTES:
            raise CorruptExample(f"more than {MAX_TABLE_BYTES} bytes; save it as npy or parquet, which are read in parts")
        line = file.readline(2**20).decode("utf-8-sig", "replace").strip()
        file.seek(0)
        delimiter = "\t" if path.lower().endswith(".tsv") else max(",;\t", key=line.count)
        has_header = _has_header(line.split(delimiter))
        names = None if has_header else [f"ch{index + 1}" for index in range(len(line.split(delimiter)))]
        try:
            table = csv.read_csv(
                file,
                read_options=csv.ReadOptions(column_names=names),
                parse_options=csv.ParseOptions(delimiter=delimiter),
                convert_options=csv.ConvertOptions(
                    null_values=["", "NaN", "nan", "NA", "null", "None"], strings_can_be_null=True
                ),
            )
        except (ArrowException, UnicodeDecodeError) as error:
            raise CorruptExample(" ".join(str(error).split())[:200]) from None
    if description.channels is not None and not has_header:
        table = table.rename_columns(list(name_channels(table.num_columns, description.channels)))
    return frame_recording(table, description)


def frame_recording(table: Any, description: Description) -> Recording:
    """The recording of a table (`pyarrow.Table`) of samples. Raises CorruptExample."""
    import pyarrow as pa

    time = _time_column(table.column_names, description.time_column)
    lower_names = [name.strip().lower() for name in table.column_names]
    left_out = [name for name in NOT_CHANNELS if name != "y" or "x" not in lower_names]
    chosen = [
        index
        for index, lower in enumerate(lower_names)
        if index != time
        and lower not in left_out
        and not NO_SIGNAL.fullmatch(lower)
        and (pa.types.is_integer(kind := table.schema.field(index).type) or pa.types.is_floating(kind))
    ]
    if not chosen or not table.num_rows:
        raise CorruptExample(f"no column of numbers among {', '.join(table.column_names[:10]) or 'none'}, or no rows")
    array = np.stack([_numbers(table.column(index)) for index in chosen], axis=1)
    rate = description.rate
    if time is not None:
        array, measured = regular(
            array, _seconds(table.column(time), _unit(table.column_names[time], description)), table.column_names[time]
        )
        if rate is not None and abs(rate - measured) > 0.02 * rate:
            raise CorruptExample(
                f"by its column of times {measured:g} samples per second, but {rate:g} by data.rate or the index"
            )
        rate = rate or measured
    return ArrayRecording(array, [table.column_names[i] for i in chosen], [""] * len(chosen), require_rate(rate))


def regular(array: np.ndarray, times: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """Samples (T, C) at a regular rate, with rows of NaN for gaps, and the rate in Hz. Raises CorruptExample if `times` (T,),
    in seconds, are not increasing, or irregular."""
    if len(times) < 2:
        raise CorruptExample(f"a single row; its rate cannot be seen from column {name}: remove the column, and set data.rate")
    steps = np.diff(times)
    if not (steps > 0).all():
        row = int(np.flatnonzero(~(steps > 0))[0]) + 2
        raise CorruptExample(f"column {name} does not increase, as in row {row}")
    step = float(np.median(steps))
    near = np.abs(steps / step - 1) <= JITTER
    counts = np.maximum(1, np.rint(steps / step)).astype(np.int64)
    irregular = ~near & (np.abs(steps / step - counts) > 2 * JITTER)
    if irregular.mean() > MAX_IRREGULAR:
        raise CorruptExample(
            f"column {name} is irregular: {irregular.mean():.0%} of the steps are no multiple of {step:g} s; resample it first"
        )
    step = float(steps[near].mean()) if near.any() else step
    rate = 1 / step
    rate = round(rate) if abs(rate - round(rate)) < 2e-3 * rate else rate
    counts = np.maximum(1, np.rint(steps * rate)).astype(np.int64)
    counts[near] = 1
    if (total := int(counts.sum())) - len(counts) > MAX_GAP_SAMPLES:
        raise CorruptExample(f"by column {name} its gaps are {total} samples long; split it at the gaps")
    if total == len(counts):
        return array, rate
    filled = np.full((total + 1, array.shape[1]), np.nan)
    filled[np.concatenate([[0], np.cumsum(counts)])] = array
    return filled, rate


def _has_header(cells: Sequence[str]) -> bool:
    """Whether the first line names columns: unless all cells are numbers, and they do not just count."""
    try:
        numbers = [float(cell.strip().strip('"')) for cell in cells]
    except ValueError:
        return True
    return numbers in ([*range(len(cells))], [*range(1, len(cells) + 1)]) and len(cells) > 1


def _time_column(names: Sequence[str], wanted: str | None) -> int | None:
    if wanted is not None:
        if wanted not in names:
            raise CorruptExample(f"no column {wanted!r} (data.time_column), only {', '.join(names[:10])}")
        return list(names).index(wanted)
    return next((index for index, name in enumerate(names) if TIMES.fullmatch(name.strip().lower())), None)


def _unit(name: str, description: Description) -> float | None:
    """The unit of numbers in the column of times, in seconds; None if nobody says it."""
    match = TIMES.fullmatch(name.strip().lower())
    unit = description.time_unit or (match["unit"] or match["word"] if match else None)
    return None if unit is None else UNITS[unit]


def _numbers(column: Any) -> np.ndarray:
    return column.combine_chunks().to_numpy(zero_copy_only=False).astype(np.float64)


def _seconds(column: Any, unit: float | None) -> np.ndarray:
    """Times in seconds from the first one, of numbers in `unit`, or of dates. Raises CorruptExample if the unit is unclear."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        values = column.cast(pa.timestamp("ns")).combine_chunks().to_numpy(zero_copy_only=False).astype("datetime64[ns]")
        return (values - values[0]).astype(np.float64) / 1e9
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise CorruptExample(f"its column of times holds {column.type}; write seconds, or dates such as 2024-01-31T12:00:00")
    values = _numbers(column)
    values = values - values[0]
    step = float(np.median(np.diff(values))) if len(values) > 1 else 1.0
    if unit is None and step >= UNCLEAR_STEP:
        raise CorruptExample(
            f"its column of times increases by {step:g}: {1 / step:g} Hz if these are seconds, {1000 / step:g} Hz if they are "
            "milliseconds; set data.time_unit to s, ms, us or ns, or name the column so, such as time_ms"
        )
    return values * (unit or 1.0) if math.isfinite(step) else np.full(len(values), np.nan)
