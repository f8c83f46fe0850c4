"""Quantities in words: bytes, durations, counts."""

import math


def format_bytes(number: float) -> str:
    """Bytes with a decimal unit, such as "7.5 MB"."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(1, number)) / 3))
    return f"{number / 1000**power:.3g} {units[power]}"


def format_duration(seconds: float) -> str:
    """A duration in the largest unit of which there are a few, such as "12 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def format_count(number: float) -> str:
    """A count in three digits, such as "6.87 million"."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"
