"""Reading dataclasses from YAML and dicts: every wrong key or value is answered with its path and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from rgplug.errors import RgplugError


def resolve(
    source: Mapping[str, Any] | str | Path, presets: Mapping[str, dict[str, Any]], seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The plain dict behind a source, with `base` (and a preset named as `method`) merged under it."""
    if isinstance(source, Mapping):
        data = _nest(source)
    elif isinstance(source, (str, Path)):
        if str(source) in presets:
            return dict(presets[str(source)])
        data = _read_yaml(Path(source), presets)
    else:
        raise RgplugError(
            f"policy is a {type(source).__name__}; give a path to YAML, a dict, a Policy or a preset's name"
        )
    base = data.pop("base", None)
    if base is not None and str(base) in seen:
        raise RgplugError(
            f"policy.base: {base} is its own base; a chain of bases has to end at a preset or a file without"
        )
    if base is None and isinstance(data.get("method"), str) and data["method"] in presets:
        base = data.pop("method")
    return merge(resolve(base, presets, (*seen, str(base))), data) if base is not None else data


def _nest(data: Mapping[str, Any]) -> dict[str, Any]:
    """{"metric.real": x} as {"metric": {"real": x}}: a short way to change one key of a base."""
    nested: dict[str, Any] = {}
    for key, value in data.items():
        head, dot, rest = str(key).partition(".")
        nested = merge(nested, {head: _nest({rest: value})} if dot else {key: value})
    return nested


def _read_yaml(path: Path, presets: Mapping[str, Any]) -> dict[str, Any]:
    if path.suffix.lower() not in (".yaml", ".yml"):
        near = difflib.get_close_matches(str(path), presets, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RgplugError(f"policy {str(path)!r} is no preset ({', '.join(presets)}) and no .yaml file{hint}")
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        hint = f"; the preset of that name is {path.stem!r}, without {path.suffix}" if path.stem in presets else ""
        raise RgplugError(f"policy file {path} cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise RgplugError(f"policy file {path} is no text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise RgplugError(f"policy file {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RgplugError(
            f"policy file {path} holds a {type(data).__name__}; it has to hold keys such as 'method: rg-gan'"
        )
    return data


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, group by group."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def build(cls: Any, data: Any, path: str) -> Any:
    """A dataclass from a mapping. Raises RgplugError with the path of the wrong key and the nearest valid one."""
    if not isinstance(data, Mapping):
        raise RgplugError(f"{path} is {data!r}; it has to be a group of keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
            raise RgplugError(f"{path}.{key} is not a key of the policy; {hint}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or one sentence that names the path and what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (value is False and bool not in args and type(None) in args):
            if type(None) in args:
                return None
            raise RgplugError(f"{path} is empty; {_allowed(hint)}")
        errors = []
        for arg in (a for a in args if a is not type(None)):
            try:
                return _convert(arg, value, path)
            except RgplugError as error:
                errors.append(error)
        deepest = max(errors, key=lambda e: (str(e).split(" ")[0] != path, len(errors) == 1))
        raise deepest if str(deepest).split(" ")[0] != path else RgplugError(f"{path} is {value!r}; {_allowed(hint)}")
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
        hint_text = f" (did you mean {near[0]!r}?)" if near else ""
        raise RgplugError(f"{path} is {value!r}; {_allowed(hint)}{hint_text}")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return build(hint, {} if value is True else value, path)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise RgplugError(f"{path} is {value!r}; it has to be a list")
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin in (Mapping, dict) or hint is Mapping:
        if not isinstance(value, Mapping):
            raise RgplugError(f"{path} is {value!r}; it has to be a group of keys")
        return {str(k): _convert(args[1], v, f"{path}.{k}") for k, v in value.items()} if args else dict(value)
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 5e-12 as text
        try:
            value = float(value)
        except ValueError:
            raise RgplugError(f"{path} is {value!r}; it has to be a number") from None
    if hint is str and isinstance(value, Path):
        value = str(value)
    good = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, (int, float)) and not isinstance(value, bool) and value == value,
        str: isinstance(value, str),
    }
    if not good[hint]:
        raise RgplugError(f"{path} is {value!r}; {_allowed(hint)}")
    return float(value) if hint is float else value


def _allowed(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}

    def describe(h: Any) -> str:
        origin, args = typing.get_origin(h), typing.get_args(h)
        if origin in (Union, types.UnionType):
            return ", or ".join(describe(a) for a in args)
        if origin is Literal:
            return " | ".join(map(str, args))
        if origin is tuple:
            return "a list"
        if origin is not None or dataclasses.is_dataclass(h):
            return "a group of keys"
        return names.get(h, str(h))

    return f"allowed: {describe(hint)}"


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value
