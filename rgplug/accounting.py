"""What a run has cost so far: real images shown to D (#RI) and training FLOPs, by the formula of rgplug.metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rgplug import expected
from rgplug.errors import RgplugError
from rgplug.metrics import LayerMacs, layer_macs, training_flops_per_step
from rgplug.metrics.sampling import example_inputs
from rgplug.policy import Policy

if TYPE_CHECKING:
    from rgplug.network import Network


class Accounting:
    """Counts for one run.

    Images are counted as policy.batch_size times the iterations of D, or by the host through `shown(n)`. MACs are
    traced once, from a latent guessed from G and G's own output for D, or from inputs given to `trace`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], networks: Mapping[str, Network], policy: Policy):
        self._modules, self._networks = modules, networks
        self.batch: dict[str, int | None] = {n: policy.of(policy.batch_size, n) for n in ("G", "D")}
        self.macs: dict[str, LayerMacs] = {}
        self.unknown = ""  # why FLOPs are not known, as a sentence
        self._shown: int | None = None

    def shown(self, images: int) -> None:
        """The host shows D `images` more real images; from the first call on, only these are counted."""
        self._shown = (self._shown or 0) + images

    @property
    def real_images(self) -> int | None:
        """#RI: real images shown to D, each showing counted. None where neither batch_size nor `shown` says it."""
        if self._shown is not None:
            return self._shown
        d = self._networks.get("D")
        return None if d is None or self.batch["D"] is None else d.iteration * self.batch["D"]

    def trace(self, G: tuple[Any, ...] | Tensor | None = None, D: tuple[Any, ...] | Tensor | None = None) -> None:
        """Count MACs, with inputs for forward where they cannot be guessed (a batch of one or more).

        Raises RgplugError when a network cannot be run.
        """
        images = None
        if G is None:
            G, images = example_inputs(self._modules["G"])
        macs = {"G": layer_macs(self._modules["G"], G)}
        if "D" in self._modules:
            if D is None and images is None:
                raise RgplugError("give D's inputs too: rg.accounting.trace(G=..., D=...)")
            inputs = images if D is None else D
            assert inputs is not None
            macs["D"] = layer_macs(self._modules["D"], inputs)
        self.macs, self.unknown = macs, ""

    def flops(self) -> float | None:
        """Training FLOPs so far; None where batch_size or a trace is missing (`unknown` says which).

        Each layer counts with its density, integrated over the iterations of its network: with n_D and n_G iterations
        and mean densities, sum over D steps of (3 F_D 2 B + F_G B) plus sum over G steps of (3 F_G + 3 F_D) B_g.
        """
        if self.batch["G"] is None or self.batch["D"] is None or "D" not in self._networks:
            attached = "" if "D" in self._networks else "attach D, and do not leave it out of the policy"
            batch = "" if None not in self.batch.values() else "set batch_size in the policy"
            self.unknown = f"{' and '.join(s for s in (batch, attached) if s)}, to have FLOPs counted"
            return None
        if not self.macs:
            if self.unknown:
                return None
            try:
                self.trace()
            except RgplugError as error:
                self.unknown = f"{error}; call rg.accounting.trace(G=..., D=...) with inputs of their forward"
                return None
        steps = training_flops_per_step(
            self.macs["G"],
            self.macs["D"],
            batch=self.batch["D"],
            batch_g=self.batch["G"],
            density_g=self._mean_density("G"),
            density_d=self._mean_density("D"),
        )
        iterations = {n: net.iteration for n, net in self._networks.items()}
        return steps.d_step * iterations["D"] + steps.g_step * iterations.get("G", 0)

    def _mean_density(self, network: str) -> dict[str, float]:
        """Density of each layer, by module name, averaged over the iterations so far."""
        net = self._networks.get(network)
        if net is None or net.iteration == 0:
            return {}
        means = [
            total / w.steps if w.steps else 1.0 for total, w in zip(net.counts.density_steps.tolist(), net.weights)
        ]
        return self.macs[network].of_weights(dict(zip((w.name for w in net.weights), means)))

    def state_dict(self) -> dict[str, Any]:
        return {"shown": self._shown}

    def misfit(self, state: Any) -> str:
        """What is wrong with a state, as half a sentence; "" if nothing is."""
        return expected.keys(state, {"shown": expected.optional(expected.whole())})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shown = state["shown"]

    def __str__(self) -> str:
        flops, images = self.flops(), self.real_images
        cost = f"training FLOPs {flops:.4g}" if flops is not None else f"training FLOPs unknown ({self.unknown})"
        if "D" not in self._networks:  # nobody counts its steps
            absent = "left dense (networks: {D: null})" if "D" in self._modules else "not attached"
            missing = f"D is {absent}: say it with rg.accounting.shown(images)"
        else:
            missing = "set batch_size in the policy"
        shown = f"{images:,}" if images is not None else f"unknown ({missing})"
        return f"real images shown to D {shown}, {cost}"
