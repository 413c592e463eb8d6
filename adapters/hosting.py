"""Hooking a host: patches that can be undone, the seams of a repository, install() and uninstall()."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rgplug.adapters.run import say
from rgplug.errors import RgplugError
from rgplug.policy import Policy, from_environment

_ABSENT = object()


class Instead:
    """A module with some of its names replaced, to be put in its place in one importer's namespace only."""

    def __init__(self, module: Any, **names: Any):
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Patches:
    """Replacements of names in a host's modules, classes and namespaces, in the order in which they were made."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """owner.name (or owner[name], for a namespace) becomes make(original)."""
        original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
        self._set(owner, name, make(original))
        self._made.append((owner, name, original))

    def shadow(self, namespace: dict[str, Any], name: str, make: Callable[[Any], Any]) -> None:
        """A built-in function becomes make(original) for the code of one module, whose globals `namespace` is."""
        if name in namespace:
            self.wrap(namespace, name, make)
            return
        self._set(namespace, name, make(getattr(builtins, name)))
        self._made.append((namespace, name, _ABSENT))

    def undo(self) -> None:
        while self._made:
            self._set(*self._made.pop())

    @staticmethod
    def _set(owner: Any, name: str, value: Any) -> None:
        if value is _ABSENT:
            owner.pop(name, None)
        elif isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)


@dataclasses.dataclass(frozen=True)
class Host:
    """A repository that an adapter knows."""

    name: str
    version: str  # the commit that the adapter was written and tested against
    script: str = "train.py"

    def seam(self, module: str, *path: str) -> Any:
        """The object `path` in a module of the host. Raises RgplugError where it is missing."""
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
                raise  # the host is there, and something that it needs is not
            raise self.unknown(f"there is no module {module}") from error
        for i, name in enumerate(path):
            if not hasattr(found, name):
                raise self.unknown(f"{'.'.join((module, *path[:i]))} has no {name}")
            found = getattr(found, name)
        return found

    def unknown(self, missing: str) -> RgplugError:
        return RgplugError(
            f"this is not {self.name} as rgplug knows it (version {self.version}): {missing}; call install() at the "
            f"top level of its {self.script}, after the imports, in that repository or a fork that keeps its structure"
        )


class Adapter:
    """install() and uninstall() of one host. `hook` makes the patches; it may raise, and leaves nothing behind then."""

    def __init__(self, host: Host):
        self.host = host
        self.patches: Patches | None = None
        self._given: Any = None

    def install(self, policy: Any, hook: Callable[[Patches, Policy], str], **options: Any) -> None:
        """Patch the host once in this process; `hook` returns what it hooked, for the one line that is printed."""
        loaded = from_environment(Policy.load(policy))
        if self.patches is not None:
            if (loaded, options) != self._given:
                raise RgplugError(
                    f"the adapter for {self.host.name} is installed already, with another policy or other options; "
                    "call uninstall() first"
                )
            return
        patches = Patches()
        try:
            hooked = hook(patches, loaded)
        except BaseException:
            patches.undo()
            raise
        self.patches, self._given = patches, (loaded, options)
        if multiprocessing.current_process().name == "MainProcess":  # data loaders' workers import train.py too
            name = policy if isinstance(policy, (str, Path)) else loaded.method
            say(f"{self.host.name} {self.host.version}: hooked {hooked}; policy {name}")

    def uninstall(self) -> None:
        if self.patches is not None:
            self.patches.undo()
            self.patches = None


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
