"""Dense: weights are counted and measured, and nothing is pruned."""

from __future__ import annotations

from rgplug.methods import Method


class Dense(Method):
    prunes = False
