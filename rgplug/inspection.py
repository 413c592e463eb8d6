"""`rgplug inspect`: the attach report of networks that a Python file defines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rgplug.attach import attach
from rgplug.check import check
from rgplug.errors import RgplugError


def inspect(file: Path, generator: str, discriminator: str, policy: Any = "rg-gan", dry_run: bool = False) -> str:
    """Import `file`, build its networks from two expressions, return the attach report (and the dry run's lines)."""
    module = import_file(file)
    G = build(module, generator)
    D = build(module, discriminator) if discriminator else None
    text = str(check(G, D)) + "\n\n" if dry_run else ""
    with attach(G, D, policy) as rg:
        return text + rg.report()


def import_file(file: Path) -> ModuleType:
    """The file as a module; its folder is importable while it loads. Raises RgplugError."""
    if not file.is_file():
        raise RgplugError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise RgplugError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RgplugError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def build(module: ModuleType, expression: str, advice: str = "give --G and --D, e.g. --G 'Generator(64)'") -> nn.Module:
    """A network from an expression in the module's own names, e.g. "Generator(64)". Raises RgplugError, with `advice`
    where the expression fails."""
    try:
        network = eval(expression, vars(module))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RgplugError(
            f"{expression!r} does not build a network in {module.__name__}.py ({reason}); {advice}"
        ) from error
    if not isinstance(network, nn.Module):
        raise RgplugError(f"{expression!r} is a {type(network).__name__} and no nn.Module")
    return network
