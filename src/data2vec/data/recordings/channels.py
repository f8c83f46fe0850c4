"""Names and units of channels: one name for each, whatever a file calls it, and the factor between two units.

Electrodes of the 10-20 and 10-10 systems are written in many ways: `EEG FP1-REF`, `Fp1.`, `fp1-le`; T3 is T7. Axes of an
inertial sensor are ax, acc_x or accelerometer_x."""

import re
from collections.abc import Mapping, Sequence

from data2vec.errors import UserError

_PREFIX = re.compile(r"^(eeg|ecg|ekg|emg|eog|lead)[ _:]+(?=\S)")
_REFERENCE = re.compile(r"[-_ ](ref|le|avg|ar|cle|linked[ _]?ears|a1a2|a1\+a2|m1m2)$")
_UNIT = re.compile(r"^(.*\S)\s*[\[(]\s*([^\[\]()]+?)\s*[\])]$")
ALIASES = {
    **{"t3": "t7", "t4": "t8", "t5": "p7", "t6": "p8"},
    **{"mlii": "ii", "avr": "avr", "lead_i": "i", "lead_ii": "ii"},
    **{
        f"{word}{mark}{axis}": f"{kind}_{axis}"
        for kind, words in {
            "acc": ("a", "acc", "accel", "accelerometer", "total_acc"),
            "gyr": ("w", "g", "gyr", "gyro", "gyroscope", "body_gyro"),
            "mag": ("m", "mag", "magnetometer"),
        }.items()
        for word in words
        for mark in ("", "_", "-", " ")
        for axis in "xyz"
    },
}
"""Other names of channels, by name in lower case."""
_UNITS = {
    **dict.fromkeys(("v", "volt", "volts"), ("V", 1.0)),
    **dict.fromkeys(("mv", "millivolt", "millivolts"), ("V", 0.001)),
    **dict.fromkeys(("uv", "µv", "μv", "microvolt", "microvolts"), ("V", 1e-06)),
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), ("V", 1e-09)),
    **dict.fromkeys(("m/s²", "m/s2", "m/s^2", "ms-2", "m s-2"), ("m/s²", 1.0)),
    **dict.fromkeys(("g", "gn", "g0"), ("m/s²", 9.80665)),
    **dict.fromkeys(("mg",), ("m/s²", 0.00980665)),
    **dict.fromkeys(("rad/s", "rad s-1", "rps"), ("rad/s", 1.0)),
    **dict.fromkeys(("deg/s", "dps", "°/s", "degrees/s"), ("rad/s", 0.017453292519943295)),
}
"""(base unit, factor) of units in lower case."""


def split_unit(name: str) -> tuple[str, str]:
    """The name of a channel without a known unit in brackets, and that unit or "": `ax [g]` is ax and g."""
    match = _UNIT.match(name.strip())
    return (match[1], match[2]) if match and match[2].lower() in _UNITS else (name, "")


def canonical(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """The name of a channel by which it is matched: in lower case, without the kind of signal, the reference and a unit in
    brackets, by alias.

    `aliases`: more names, which come first, by the name as written or by the matched one."""
    given = {**(aliases or {})}
    if name in given:
        return canonical(given[name])
    text = " ".join(split_unit(name)[0].replace(".", " ").lower().split())
    text = _REFERENCE.sub("", _PREFIX.sub("", text)).strip()
    for written, other in given.items():
        if written.lower() == text:
            return canonical(other)
    return ALIASES.get(text, text)


def named_twice(names: Sequence[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """The canonical name of the first of several channels that have the same; None if all differ."""
    found = [canonical(name, aliases) for name in names]
    return next((name for name in found if found.count(name) > 1), None)


def match_channels(found: Sequence[str], wanted: Sequence[str], aliases: Mapping[str, str] | None = None) -> list[int | None]:
    """The index in `found` of each of `wanted`, by canonical name; None for a missing one.

    Raises UserError if two channels of a recording have the same canonical name, and it is wanted."""
    names = [canonical(name, aliases) for name in found]
    indices: list[int | None] = []
    for name in wanted:
        matching = [index for index, each in enumerate(names) if each == canonical(name, aliases)]
        if len(matching) > 1:
            both = " and ".join(repr(found[index]) for index in matching)
            raise UserError(f"channels {both} are both {canonical(name)!r}; rename one, or name them apart by modality.aliases")
        indices.append(matching[0] if matching else None)
    return indices


def unit_factor(unit: str, wanted: str) -> float | None:
    """What values in `unit` are multiplied by to be in `wanted`; 1 if one is unknown or they are the same; None if they measure
    something else."""
    one, other = unit.strip(), wanted.strip()
    if not one or not other or one == other:
        return 1.0
    known, target = _UNITS.get(one.lower()), _UNITS.get(other.lower())
    if known is None or target is None:
        return 1.0 if one.lower() == other.lower() else None
    return known[1] / target[1] if known[0] == target[0] else None
