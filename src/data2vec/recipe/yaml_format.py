"""YAML as recipes use it: the safe subset of YAML 1.2, read and written by ruamel.yaml.

`1e-3` is a number, only `true` and `false` are booleans, a date is text, and a key may appear once.
"""

import copy
import io
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from data2vec.errors import UserError

MAX_NODES = 100_000
"""Values in one document after its aliases are expanded."""


class _Constructor(SafeConstructor):
    """Builds mappings, lists and scalars; every other tag is an error, and a date is text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document. Raises UserError that names `where` and the line."""
    return copy.deepcopy(_parsed(text, where))


@lru_cache(maxsize=256)  # a run reads its recipe several times, a comparison dozens of times
def _parsed(text: str, where: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        root = yaml.compose(text)
        if root is None:
            return None
        _refuse_alias_bombs(root, where)
        return yaml.constructor.construct_document(root)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{where}{line}: not valid YAML: {problem}") from None
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{where}: not valid YAML for a recipe: nested too deeply") from None
    except Exception as error:  # the library raises anything, such as ValueError for !!int on text that is none
        raise UserError(f"{where}: not valid YAML: {error}") from None


def dump_yaml(value: Any) -> str:
    """`value` as YAML in block style, keys in their order: `parse_yaml` gives it back."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.allow_unicode = True
    yaml.representer.ignore_aliases = lambda _: True
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def _refuse_alias_bombs(root: Node, where: str) -> None:
    """Raises UserError where aliases contain themselves or expand to more than MAX_NODES values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def expanded_size(node: Node) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{where}, line {node.start_mark.line + 1}: not valid YAML for a recipe: an alias contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(expanded_size(child) for child in _children(node))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if (size := expanded_size(root)) > MAX_NODES:
        raise UserError(
            f"{where}: not valid YAML for a recipe: {size} values after aliases are expanded, more than {MAX_NODES}"
        )


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, SequenceNode):
        return list(node.value)
    assert isinstance(node, ScalarNode)
    return []
