"""Classes like those of the libraries in official checkpoints, and a fixture that installs them under their names."""

import dataclasses
import enum
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest

ELEMENTS = typing.Optional[typing.List[int]]  # noqa: UP006, UP045 - in the form of the official code


class Node:
    def __init__(self, value: Any = None):
        self._metadata, self._parent, self._val = None, None, value


class DictConfig:
    def __init__(self, content: Any):
        self._metadata = {"ref_type": typing.Any, "key_type": str, "element_type": ELEMENTS, "object_type": dict}
        self._content, self._parent = content, None
        for node in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            node._parent = self  # a cycle, as in OmegaConf

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


class ListConfig(DictConfig): ...


class Choice(enum.Enum):
    LAYER = "layer_norm"

    def __reduce_ex__(self, protocol: Any) -> Any:  # as Python did until 3.10, and does from 3.12 on
        return self.__class__, (self._value_,)


@dataclasses.dataclass
class Config:
    depth: int = 2
    mode: Choice = Choice.LAYER
    rates: list[float] = dataclasses.field(default_factory=lambda: [0.5])


class Dictionary:
    def __init__(self, symbols: list[str]):
        self.symbols, self.count = symbols, [1] * len(symbols)
        self.indices = {symbol: number for number, symbol in enumerate(symbols)}


class Meters(OrderedDict): ...  # type: ignore[type-arg]


HOMES = {
    Node: "omegaconf.nodes",
    DictConfig: "omegaconf.dictconfig",
    ListConfig: "omegaconf.listconfig",
    Choice: "fairseq.dataclass.constants",
    Config: "examples.data2vec.models.data2vec2",
    Dictionary: "fairseq.data.dictionary",
    Meters: "fairseq.meters",
}


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The libraries of the official code, while a file is written."""
    with monkeypatch.context() as patch:
        for kind, home in HOMES.items():
            patch.setattr(kind, "__module__", home)
            parts = home.split(".")
            for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
                if name not in sys.modules:
                    patch.setitem(sys.modules, name, types.ModuleType(name))
            setattr(sys.modules[home], kind.__name__, kind)
        yield
