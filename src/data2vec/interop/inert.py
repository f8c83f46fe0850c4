"""Stand-ins for the objects of other libraries, and the plain containers that they stand for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data2vec.errors import UserError

DEEPEST = 100
"""How many objects may lie in one another in a configuration, so that code that walks through it may recurse."""


@dataclass(eq=False, repr=False)
class Stub:
    """What a file has in place of an object of another library. Nothing of that library was imported or called."""

    name: str
    """Its class or function, such as "omegaconf.dictconfig.DictConfig"."""
    arguments: tuple[Any, ...] | None = None
    """What it was made with; None for the class or function itself."""
    state: Any = None
    """What its attributes were to be set from."""
    items: dict[Any, Any] | list[Any] | set[Any] | None = None
    """What it was filled with, if it was like a dictionary, a list or a set."""

    def __repr__(self) -> str:
        return f"Stub({self.name!r})"

    @property
    def meaning(self) -> Any:
        """What it stands for, as far as that can be told without its library."""
        if self.arguments is None:
            return self.name
        if self.items is not None:
            return self.items
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # attributes and slots
            state = {key: value for half in state if isinstance(half, dict) for key, value in half.items()}
        if state is None:
            return self.arguments[0] if len(self.arguments) == 1 else None
        if isinstance(state, dict) and self.name.startswith("omegaconf."):  # a container, or a node with one value
            return state.get("_content", state.get("_val", state))
        return state


def is_key(value: Any) -> bool:
    """Whether `value` may be a key or in a set. The hash of a nested tuple can take for ever, or all of C's stack."""
    return value is None or type(value) in (str, bytes, bool, int, float)


def to_plain(value: Any) -> Any:
    """A configuration as plain containers; tensors, arrays, numbers and strings stay as they are.

    Namespaces, dataclasses and other objects become the dictionary of their attributes, members of an Enum their value,
    OmegaConf's nodes what they hold ("???" is kept), classes their names. What was shared is shared in the result.
    Raises UserError for what contains itself or is nested deeper than `DEEPEST`, and for keys that are not plain."""
    known: dict[int, tuple[Any, Any, int]] = {}  # by identity: the object (kept, lest its id be another's), plain, height

    def convert(value: Any, depth: int) -> tuple[Any, int]:
        if not isinstance(value, Stub | dict | list | tuple | set | frozenset):
            return value, 0
        if id(value) not in known and depth <= DEEPEST:
            known[id(value)] = value, None, DEEPEST + 1  # until it is made
            inner = [value.meaning] if isinstance(value, Stub) else value.values() if isinstance(value, dict) else value
            parts = [convert(part, depth + 1) for part in inner]
            made: Any = [part for part, _ in parts]
            if isinstance(value, Stub):
                (made,) = made
            elif isinstance(value, dict):
                made = dict(zip(_keys(convert(key, depth + 1)[0] for key in value), made, strict=True))
            elif isinstance(value, set | frozenset):
                made = type(value)(_keys(made))
            elif isinstance(value, tuple):
                made = tuple(made)
            known[id(value)] = value, made, 1 + max((height for _, height in parts), default=0)
        _, made, height = known.get(id(value), (None, None, DEEPEST + 1))
        if depth + height > DEEPEST:
            raise UserError(f"a configuration that contains itself, or is nested deeper than {DEEPEST}, cannot be read")
        return made, height

    return convert(value, 0)[0]


def _keys(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if not is_key(value):
            raise UserError(f"a configuration with a {type(value).__name__} for a key cannot be read: only strings and numbers")
        yield value
