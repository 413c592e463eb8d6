"""`rgplug inspect`: the attach report of networks that a Python file defines."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rgplug.attach import attach
from rgplug.check import check
from rgplug.errors import RgplugError

_TRAINS = ("backward", "step")  # methods by which a script trains
_GUARD = 'put it under `if __name__ == "__main__":`'


def inspect(file: Path, generator: str, discriminator: str, policy: Any = "rg-gan", dry_run: bool = False) -> str:
    """Import `file`, build its networks from two expressions, return the attach report (and the dry run's lines)."""
    module = import_file(file)
    G = build(module, generator)
    D = build(module, discriminator) if discriminator else None
    text = str(check(G, D)) + "\n\n" if dry_run else ""
    with attach(G, D, policy) as rg:
        return text + rg.report()


def import_file(file: Path) -> ModuleType:
    """The file as a module; its folder is importable while it loads, and the command line is the file's name alone.

    Raises RgplugError, without running anything, for a script that would train while it is imported.
    """
    if not file.is_file():
        raise RgplugError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise RgplugError(f"{file} is no Python file")
    if line := training_line(file):
        raise RgplugError(
            f"{file} trains at its top level (line {line}), so importing it would start the training; {_GUARD}, or "
            "give a file that only defines the networks"
        )
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    argv, sys.argv = sys.argv, [str(file)]
    said = io.StringIO()
    try:
        sys.modules.setdefault(file.stem, module)  # its classes can be pickled, as in a script that imports them
        with contextlib.redirect_stderr(said):
            spec.loader.exec_module(module)
    except SystemExit as error:
        why = _last_line(said.getvalue()) or f"exit status {error.code}"
        raise RgplugError(
            f"{file} ends the program while it is imported ({why}): it reads its command line at its top level; "
            f"{_GUARD}, or give a file that only defines the networks"
        ) from error
    except Exception as error:
        raise RgplugError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    else:
        sys.stderr.write(said.getvalue())
    finally:
        sys.argv = argv
        sys.path.pop(0)
    return module


def training_line(file: Path) -> int | None:
    """The line at the top level of a script, outside of its main guard, that trains: it calls `backward` or `step` in a
    loop, or a function of the file that does. None where there is none, or the file cannot be parsed."""
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError, RecursionError):
        return None  # importing it says so
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    training = {name for name, node in functions.items() if _steps(node)}
    while more := {n for n, node in functions.items() if n not in training and _names_called(node) & training}:
        training |= more
    for statement in _top_level(tree.body):
        loop = isinstance(statement, (ast.For, ast.While))
        if (loop and _steps(statement)) or _names_called(statement) & training:
            return statement.lineno
    return None


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that an import runs; not what is below a definition or a main guard."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
            continue
        if isinstance(statement, (ast.With, ast.Try, ast.If)):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, part, []))
        else:
            yield statement


def _steps(node: ast.AST) -> bool:
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return any(isinstance(f, ast.Attribute) and f.attr in _TRAINS for f in calls)


def _names_called(node: ast.AST) -> set[str]:
    return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def build(module: ModuleType, expression: str, advice: str = "give --G and --D, e.g. --G 'Generator(64)'") -> nn.Module:
    """A network from an expression in the module's own names, e.g. "Generator(64)". Raises RgplugError, with `advice`
    where the expression fails."""
    try:
        network = eval(expression, vars(module))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RgplugError(
            f"{expression!r} does not build a network in {module.__name__}.py ({reason}); {advice}"
        ) from error
    if not isinstance(network, nn.Module):
        raise RgplugError(f"{expression!r} is a {type(network).__name__} and no nn.Module")
    return network
