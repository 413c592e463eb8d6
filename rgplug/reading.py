"""YAML as policies are written in it: numbers as YAML 1.2 has them, and nothing that grows when it is read.

PyYAML follows YAML 1.1, in which `1e-3` is text and `2:4` the number 124. Its `yes`, `no`, `on` and `off` stay true and
false, as policies have always had them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rgplug.errors import RgplugError

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 10_000  # with every alias written out
MAX_DEPTH = 30  # of groups in groups

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_WHOLE = re.compile(r"^(?:[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)$")
_NUMBER = re.compile(
    r"^(?:[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_FIRST = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers of YAML 1.2 (and `_` between digits), which stops at the bounds above."""

    label = ""  # what messages call the text
    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > MAX_DEPTH:
            raise RgplugError(f"{self.label} is no policy: it is nested more than {MAX_DEPTH} levels deep")
        _check_count(self.nodes, self.label)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes the text that `_Loader` would take for a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (_INT, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in ((_INT, _WHOLE), (_FLOAT, _NUMBER)):
    _Loader.add_implicit_resolver(_tag, _pattern, _FIRST)
    _Dumper.add_implicit_resolver(_tag, _pattern, _FIRST)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    """Text that Python makes no int of (thousands of digits, `!!int x`) stays text: its key then says what it needs."""
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError:
        return text


def _number(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return float(re.sub(r"^([-+]?)\.(?=[iInN])", r"\1", text))  # .inf, .nan
    except ValueError:
        return text


_Loader.add_constructor(_INT, _whole)
_Loader.add_constructor(_FLOAT, _number)


def parse(text: str, name: str) -> Any:
    """The value that YAML text holds. Raises RgplugError, with `name` in it: no YAML, too large, a key twice."""
    if len(text) > MAX_CHARACTERS:
        raise RgplugError(f"{name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    loader = None
    try:
        loader = _Loader(text)  # which refuses characters that YAML does not allow
        loader.label = name
        node = loader.get_single_node()
        if node is None:
            return None
        _check_count(_values(node, name, {}), name)
        return loader.construct_document(node)
    except RgplugError:
        raise
    except yaml.YAMLError as error:
        raise RgplugError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:  # PyYAML's own, of dates such as 2020-13-45
        raise RgplugError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    finally:
        if loader is not None:
            loader.dispose()


def dump(value: Any) -> str:
    """YAML text of plain dicts, lists, numbers and text, which `parse` reads back as it was."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False)
    return text


def _check_count(values: int, name: str) -> None:
    if values > MAX_VALUES:
        raise RgplugError(
            f"{name} holds more than {MAX_VALUES:,} values, counted with its aliases written out; leave some out"
        )


def _values(node: yaml.Node, name: str, known: dict[int, int]) -> int:
    """How many nodes there are below and with `node`, aliases counted as often as they stand.

    known: id of a node -> its count; 0 while it is being counted, so that a node inside itself is noticed.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] == 0:
            raise RgplugError(f"{name} holds an alias of a group that contains the alias; leave it out")
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.tag != "tag:yaml.org,2002:merge"]
        twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None) if len(keys) > len(set(keys)) else None
        if twice is not None:
            raise RgplugError(f"{name} has the key {twice[:60]!r} twice in one group; leave one of them")
        children = [part for pair in node.value for part in pair]
    else:
        children = node.value
    known[id(node)] = 1 + sum(_values(child, name, known) for child in children)
    return known[id(node)]
