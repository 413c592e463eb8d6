"""Reading dataclasses from YAML and dicts: every wrong key or value is answered with its path and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from rgplug import reading
from rgplug.errors import RgplugError

LARGEST = 2**53  # whole numbers beyond it are no counts of anything, and no float holds them exactly
DISTANCES = ("frechet", "fid", "kid", "is")  # as people write them
_DEEPEST = 8  # dots in a key
_OTHER_NAMES = {  # what people call the networks
    **dict.fromkeys(("generator", "gen", "g", "netg", "g_ema"), "G"),
    **dict.fromkeys(("discriminator", "disc", "critic", "d", "netd"), "D"),
}
_YES, _NO = ("yes", "on", "true", "y"), ("no", "off", "false", "n")


class _Short(reprlib.Repr):
    """repr of a bounded length, of numbers too that Python itself does not print."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) <= LARGEST else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


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
    if base is not None and not isinstance(base, (str, Path)):
        raise RgplugError(f"policy.base is {shown(base)}; it has to be a preset's name or a path to YAML")
    if base is not None and str(base) in seen:
        raise RgplugError(
            f"policy.base: {shown(base)} is its own base; a chain of bases has to end at a preset or a file without"
        )
    if base is None and isinstance(data.get("method"), str) and data["method"] in presets:
        base = data.pop("method")
    return merge(resolve(base, presets, (*seen, str(base))), data) if base is not None else data


def _nest(data: Mapping[str, Any]) -> dict[str, Any]:
    """{"metric.real": x} as {"metric": {"real": x}}: a short way to change one key of a base."""
    nested: dict[str, Any] = {}
    for key, value in data.items():
        head, *parts = key.split(".") if isinstance(key, str) else [key]
        if len(parts) > _DEEPEST:
            raise RgplugError(f"policy.{name_of(key)} is not a key of the policy; it has too many dots")
        for part in reversed(parts):
            value = {part: value}
        nested = merge(nested, spelled_out({head: value}))
    return nested


def spelled_out(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The short form `metric: [fid, is]` as `metric: {distance: [fid, is]}`, so that keys of a base, or those on top of
    it (metric.real), are merged with it."""
    metric = keys.get("metric")
    if isinstance(metric, (list, tuple)) or (isinstance(metric, str) and metric in DISTANCES):
        return {**keys, "metric": {"distance": metric}}
    return dict(keys)


def _read_yaml(path: Path, presets: Mapping[str, Any]) -> dict[str, Any]:
    name = shown(path).strip("'\"")
    if path.suffix.lower() not in (".yaml", ".yml"):
        near = difflib.get_close_matches(str(path), presets, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RgplugError(f"policy {shown(path)} is no preset ({', '.join(presets)}) and no .yaml file{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RgplugError(f"policy file {name} is no text: {error.reason}") from error
    except OSError as error:
        hint = f"; the preset of that name is {path.stem!r}, without {path.suffix}" if path.stem in presets else ""
        raise RgplugError(f"policy file {name} cannot be read: {error.strerror}{hint}") from error
    except ValueError as error:  # a NUL in the name
        raise RgplugError(f"policy file {name} cannot be read: {error}") from error
    data = reading.parse(text, f"policy file {name}")
    if not isinstance(data, dict):
        raise RgplugError(
            f"policy file {name} holds a {type(data).__name__}; it has to hold keys such as 'method: rg-gan'"
        )
    return _nest(data)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, group by group."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def leaves(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": 2} as {"a.b": 1, "c": 2}; an empty group is a leaf."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        own = f"{path}.{key}" if path else str(key)
        found |= leaves(value, own) if isinstance(value, Mapping) and value else {own: value}
    return found


def build(cls: Any, data: Any, path: str) -> Any:
    """A dataclass from a mapping. Raises RgplugError with the path of the wrong key and the nearest valid one."""
    if not isinstance(data, Mapping):
        raise RgplugError(f"{path} is {shown(data)}; it has to be a group of keys")
    fields = {f.name: f for f in dataclasses.fields(cls) if not f.name.startswith("_")}
    hints = typing.get_type_hints(cls)
    for key in data:
        if not isinstance(key, str) or key not in fields:
            near = nearest(name_of(key), fields)
            hint = f"did you mean {near!r}?" if near else f"valid keys: {', '.join(fields)}"
            raise RgplugError(f"{path}.{name_of(key)} is not a key of the policy; {hint}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in data.items()})


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is meant, by its spelling, or by what people call networks."""
    known = list(known)
    other = _OTHER_NAMES.get(word.lower())
    if other in known:
        return other
    near = difflib.get_close_matches(word[:80], known, 1)
    return near[0] if near else None


def shown(value: Any) -> str:
    """repr of a value on one line of reasonable length, whatever the value is."""
    if isinstance(value, Path):
        value = str(value)
    return " ".join(_SHORT.repr(value).split())


def name_of(key: Any) -> str:
    """A key as it stands in a message."""
    return key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else shown(key)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, or one sentence that names the path and what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(hint, args, value, path)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        near = nearest(value, [str(a) for a in args]) if isinstance(value, str) else None
        hint_text = f" (did you mean {near!r}?)" if near else ""
        raise RgplugError(f"{path} is {shown(value)}; {_allowed(hint)}{hint_text}")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            value = plain(value)
        return build(hint, {} if value is True else value, path)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise RgplugError(f"{path} is {shown(value)}; it has to be a list")
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin in (Mapping, dict) or hint is Mapping:
        if not isinstance(value, Mapping):
            raise RgplugError(f"{path} is {shown(value)}; it has to be a group of keys")
        for key in value:
            if not isinstance(key, str):
                raise RgplugError(f"{path} has the key {shown(key)}; keys have to be text")
        return {k: _convert(args[1], v, f"{path}.{name_of(k)}") for k, v in value.items()} if args else dict(value)
    return _scalar(hint, value, path)


def _one_of(hint: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    """`value` as the first of the types that takes it."""
    if value is None or (value is False and bool not in args and type(None) in args):
        if type(None) in args:
            return None
        raise RgplugError(f"{path} is empty; {_allowed(hint)}")
    if bool in args:
        _no_word(value, path)
    errors = []
    for arg in (a for a in args if a is not type(None)):
        try:
            return _convert(arg, value, path)
        except RgplugError as error:
            errors.append(error)
    kinds = [a for a in args if a is not type(None)]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    of_numbers = [e for kind, e in zip(kinds, errors) if number and kind in (int, float)]
    if of_numbers or len(kinds) == 1:
        raise (of_numbers or errors)[-1]
    if isinstance(value, str):  # no group and no list: the sentence about the value itself
        deeper = next((e for e in errors if "did you mean" in str(e)), None)
    else:
        deeper = next((e for e in errors if str(e).split(" ")[0] != path), None)
    raise deeper or RgplugError(f"{path} is {shown(value)}; {_allowed(hint)}")


def _no_word(value: Any, path: str) -> None:
    """Text that means true or false where it would be taken for something else."""
    if isinstance(value, str) and value.lower() in (*_YES, *_NO):
        meant = "true" if value.lower() in _YES else "false"
        raise RgplugError(
            f"{path} is the text {value!r}; it has to be true or false: write {meant}, without quotation marks"
        )


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is bool:
        _no_word(value, path)
    if hint is float and isinstance(value, str):  # a number that a dict holds as text
        try:
            value = float(value)
        except ValueError:
            raise RgplugError(f"{path} is {shown(value)}; it has to be a number") from None
    if hint is str and isinstance(value, Path):
        value = str(value)
    if hint is int and isinstance(value, float) and value.is_integer():  # 2e4
        value = int(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, float) and number and isinstance(value, int) and abs(value) > LARGEST:
        raise RgplugError(f"{path} is {shown(value)}; it has to be at most {LARGEST:,} in size")
    if hint is float and number and not math.isfinite(value):
        raise RgplugError(f"{path} is {value}; it has to be a finite number")
    good = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: number,
        str: isinstance(value, str),
    }
    if not good[hint]:
        raise RgplugError(f"{path} is {shown(value)}; {_allowed(hint)}")
    if hint is str and "\0" in value:
        raise RgplugError(f"{path} is {shown(value)}; it holds a character (NUL) that no name of a file can have")
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
        names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value
