"""Limits on every value of a recipe or a config, before its type is looked at."""

from collections.abc import Iterator, Mapping

from data2vec.data.sources.formats import is_utf8
from data2vec.errors import quoted

MAX_INTEGER = 2**63 - 1
MAX_CHARACTERS = 4096
"""Of a text, which may be a path."""
MAX_NESTING = 20


def impossible_values(raw: object) -> Iterator[tuple[str, str]]:
    """(dotted key, problem) of each value of a raw mapping that no setting can have, whatever its type: integers beyond 64
    bits, texts that no file can hold, keys that are no text, and values that are nested too deeply."""
    left: list[tuple[tuple[str, ...], object]] = [((), raw)]
    while left:
        path, value = left.pop()
        parts: list[tuple[str, object]] = []
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or len(key) > MAX_CHARACTERS:
                    yield ".".join((*path, quoted(key))), "is no name of a setting"
            parts = [(key, part) for key, part in value.items() if isinstance(key, str)]
        elif isinstance(value, list | tuple):
            parts = [(str(index), part) for index, part in enumerate(value)]
        elif problem := _impossible(value):
            yield ".".join(path), problem
        if parts and len(path) == MAX_NESTING:
            yield ".".join(path[:3]), f"is nested more than {MAX_NESTING} times"
        else:
            left += [((*path, name), part) for name, part in reversed(parts)]


def _impossible(value: object) -> str | None:
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"should be an integer of at most 64 bits, not {quoted(value)}"
    if not isinstance(value, str):
        return None
    if len(value) > MAX_CHARACTERS:
        return f"should have at most {MAX_CHARACTERS} characters, not {len(value)}"
    if "\0" in value or not is_utf8(value):
        return f"should be text in UTF-8 without NUL, not {quoted(value)}"
    return None
