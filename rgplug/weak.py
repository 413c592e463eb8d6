"""WeakModules: networks by label, for what is attached to them and must not keep them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

from torch import nn

from rgplug.wrappers import unwrap


class WeakModules(Mapping[str, nn.Module]):
    """A mapping of labels to networks (without wrappers) that does not keep them alive; those that are gone are left
    out."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self._held = {label: weakref.ref(unwrap(module)) for label, module in modules.items()}

    def __getitem__(self, label: str) -> nn.Module:
        module = self._held[label]()
        if module is None:
            raise KeyError(label)
        return module

    def __iter__(self) -> Iterator[str]:
        return iter([label for label, held in self._held.items() if held() is not None])

    def __len__(self) -> int:
        return sum(held() is not None for held in self._held.values())
