"""Measuring the balance ratio (ADAPT) while a host trains, and adjusting D by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rgplug import expected, kernels
from rgplug.errors import RgplugError
from rgplug.methods.balance import BalanceRatio, balance_ratio
from rgplug.methods.sparse import Sparse
from rgplug.metrics import default_sample_fn, open_source, pick_images
from rgplug.metrics.isolation import preserved_buffers, preserved_rng
from rgplug.observers import Observer
from rgplug.policy import BalancePolicy, Policy
from rgplug.weak import WeakModules

if TYPE_CHECKING:
    from rgplug.network import Network


class BalanceMeter(Observer):
    """Measures the balance ratio around every n-th step of G, unnoticed by the networks; adjusts D after G's step.

    The ratio is that of the optimizer's step alone: it is measured before G's masks change (`stepped`). After that G
    explores, and then D is adjusted (`after_step`), by the gradients of its last step before G's: the published order.
    """

    def __init__(
        self, policy: Policy, ratio: BalanceRatio, modules: Mapping[str, nn.Module], networks: Mapping[str, Network]
    ):
        assert policy.balance is not None
        if not {"G", "D"} <= set(networks):
            raise RgplugError("policy.balance needs both networks; attach G and D")
        self.policy: BalancePolicy = policy.balance
        self.ratio = ratio
        self._modules = WeakModules(modules)
        self._generator, self._discriminator = networks["G"], networks["D"]
        self._given: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
        where = policy.balance.real or (policy.metric.real if policy.metric is not None else None)
        self._source = None if where is None else open_source(where)
        self._sampler: Any = None
        self._random = torch.Generator().manual_seed(0)
        self._under_way: tuple[Any, tuple[Any, ...], Tensor] | None = None

    def observe(self, real: Any, z: Any) -> None:
        """The host's batch: arguments of D and of G, kept until the next one."""
        self._given = (real if isinstance(real, tuple) else (real,), z if isinstance(z, tuple) else (z,))

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        G = self._generator
        if network != "G" or G.auxiliary or (G.iteration + 1) % self.policy.measure or self._under_way is not None:
            return
        with self._unnoticed():
            z = self._latents()
            images = self._images(z)
            self._under_way = (self._real(images), z, self._score((images, *z[1:])))

    def stepped(self, network: str) -> None:
        if network != "G" or self._under_way is None:
            return
        (real, z, before), self._under_way = self._under_way, None
        with self._unnoticed():
            self._mask_generator()
            after = self._score((self._images(z), *z[1:]))
            self.ratio.add(balance_ratio(self._score(real), before, after))

    def after_step(self, network: str) -> None:
        G, D = self._generator, self._discriminator
        if network != "G" or G.auxiliary:
            return
        self.ratio.iteration = G.iteration
        assert isinstance(D.method, Sparse)
        if not self.ratio.due or not D.method.has_gradients:
            return
        self.ratio.adjusted = G.iteration // self.policy.every
        mean = self.ratio.mean()
        if mean is not None:
            D.method.adjust_by(mean)
            D.refresh_all()
        D.method.forget_gradients()

    def _mask_generator(self) -> None:
        """The optimizer's momentum has moved pruned weights; they are 0 when G is called, as in any other forward."""
        if self._generator.sparse:
            for w in self._generator.weights:
                kernels.keep_(w.data, w.bits())

    def _images(self, z: tuple[Any, ...]) -> Tensor:
        return pick_images(self._modules["G"](*z))

    def _score(self, arguments: tuple[Any, ...]) -> Tensor:
        try:
            scores = self._modules["D"](*arguments)
        except Exception as error:
            raise RgplugError(
                f"the balance ratio cannot be measured: D does not take images alone ({error}); call "
                "rg.observe(real=(images, labels), z=(z, labels)) in each iteration"
            ) from error
        scores = scores[0] if isinstance(scores, (tuple, list)) else scores
        return scores.detach()

    def _latents(self) -> tuple[Any, ...]:
        """Arguments of G: the host's, else drawn as for an evaluation."""
        if self._given is not None:
            return self._given[1]
        if self._sampler is None:
            self._sampler = default_sample_fn(self._modules["G"]).weakened()
        latents: tuple[Any, ...] = self._sampler.arguments(self.policy.batch)
        return latents

    def _real(self, like: Tensor) -> tuple[Any, ...]:
        """Arguments of D: the host's, else real images that the policy names, of the size of those of G."""
        if self._given is not None:
            return self._given[0]
        source = self._source
        if source is None:
            raise RgplugError(
                "the balance ratio needs real images: name them (balance: {real: FOLDER}, or metric: {real: ...}), or "
                "call rg.observe(real=..., z=...) in each iteration"
            )
        rows = torch.randint(source.count, (self.policy.batch,), generator=self._random).tolist()
        size = (like.shape[2], like.shape[3])
        pictures = torch.cat(
            list(replace(source, count=len(rows), read=lambda i: source.read(rows[i])).batches(len(rows), size))
        )
        return (pictures.to(like.device, like.dtype) / 127.5 - 1,)

    @contextmanager
    def _unnoticed(self) -> Iterator[None]:
        """No gradients; buffers and random states as they were, since the networks stay in training mode."""
        with torch.no_grad(), preserved_rng(), preserved_buffers(*self._modules.values()):
            yield

    def state_dict(self) -> dict[str, Any]:
        sampler = None if self._sampler is None else self._sampler.get_state()
        return {**self.ratio.state_dict(), "random": self._random.get_state(), "sampler": sampler}

    def misfit(self, state: Any) -> str:
        """What is wrong with a state, as half a sentence; "" if nothing is."""
        checks = {"values": self.ratio.misfit, "random": expected.generator}
        # states from before adjustments were counted have no "adjusted"
        checks["sampler"] = expected.optional(expected.generator)
        wrong = expected.keys(state, checks, {"adjusted": expected.whole()})
        if wrong or state["sampler"] is None:
            return wrong
        try:
            self._sampler = self._sampler or default_sample_fn(self._modules["G"]).weakened()
        except RgplugError as error:
            return f"has a 'sampler' of latents, and here {error}"
        return ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `misfit` finds nothing wrong with."""
        self.ratio.load_state_dict(dict(state), self._generator.iteration)
        self._random.set_state(state["random"].cpu())
        if state["sampler"] is None:
            self._sampler = None
        else:
            self._sampler.set_state(state["sampler"].cpu())
