"""Shared by all tests: nothing that was attached in one test listens in the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rgplug.controller import attached_networks, release


@pytest.fixture(autouse=True)
def detached_at_the_end() -> Iterator[None]:
    yield
    for hooks in {id(h): h for h in list(attached_networks.values())}.values():
        release(hooks)
