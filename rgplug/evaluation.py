"""Measuring from inside a run: `end_epoch()` without a value, and `rg.evaluate()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rgplug.copies import masked_copy, masked_for_now
from rgplug.metrics import Evaluator, MetricValue, evaluate_generator
from rgplug.metrics.isolation import preserved_rng
from rgplug.policy import MetricPolicy
from rgplug.wrappers import tensors_of

if TYPE_CHECKING:
    from rgplug.network import Network


class Evaluation:
    """The policy's metric; the evaluator and its real statistics are made at the first measurement."""

    def __init__(self, policy: MetricPolicy):
        self.policy = policy
        self._evaluator: Evaluator | None = None

    @property
    def images(self) -> Tensor | None:
        """The first images of the last measurement, uint8 [N, 3, H, W] on the CPU; None where none are kept."""
        return None if self._evaluator is None else self._evaluator.images

    def measure(
        self, generator: nn.Module, net: Network, ema: Any = None, sample_fn: Callable[[int], Tensor] | None = None
    ) -> MetricValue:
        """The metric of G, or of its moving average under G's live mask; the run goes on as if nothing had happened.

        All distances of the policy are taken of one set of images: the first is the value, the others are its
        `further`."""
        p = self.policy
        if self._evaluator is None:
            device = next((w.param.device for w in net.weights), None)
            with preserved_rng():  # a feature network is initialized before its weights are loaded
                self._evaluator = Evaluator(
                    p.real, p.features, p.distances, p.samples, p.batch, device=device, seed=p.seed, sheet=p.sheet
                )
        if isinstance(ema, nn.Module):
            with masked_for_now(ema, net):
                return evaluate_generator(generator, self._evaluator, sample_fn, ema, p.z_dim)
        return evaluate_generator(generator, self._evaluator, sample_fn, masked_values(ema, generator, net), p.z_dim)


def masked_values(ema: Any, generator: nn.Module, net: Network) -> Any:
    """A state dict, or a list aligned with G.parameters(), with G's live mask applied to copies of its tensors."""
    if ema is None:
        return None
    return masked_copy(ema, net) if net.sparse else tensors_of(ema, generator)
