"""What the first steps of a run show: weights of a sparse run without their masks, and that nobody evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from rgplug.observers import Observer
from rgplug.policy import Policy
from rgplug.warn import warn

if TYPE_CHECKING:
    from rgplug.network import Network

ITERATIONS_WITHOUT_EVALUATION = 10_000  # published hosts measure every 1,000 to 5,000
MOST_ZEROS = 0.05  # share of exact zeros among kept weights that a network which was never pruned begins with


class FirstSteps(Observer):
    """Warns once of each. `evaluated`: whether end_epoch was called. Holds no module."""

    def __init__(self, networks: Mapping[str, Network], policy: Policy):
        self.evaluated = False
        self._networks, self._policy = networks, policy
        self._began: dict[str, int] = {}  # iteration of a network at the first step that was seen

    def before_step(self, network: str, optimizer: torch.optim.Optimizer | None) -> None:
        if network not in self._began:
            self._began[network] = self._networks[network].iteration
            self._check_loaded(network)

    def after_step(self, network: str) -> None:
        if self.evaluated or self._policy.regeneration.augmented is None:
            return
        steps = self._networks[network].iteration - self._began.get(network, 0)
        if steps >= ITERATIONS_WITHOUT_EVALUATION:
            self.evaluated = True  # said once
            warn(
                f"{steps:,} iterations of {network} without an evaluation: augmented regeneration decides in "
                "rg.end_epoch(fid), which was never called; call it after each evaluation, or set "
                "regeneration: {augmented: false}"
            )

    @torch.no_grad()
    def _check_loaded(self, label: str) -> None:
        """Say it when weights come from a sparse run and the masks do not. Reads the device, at a first step only."""
        net, masks = self._networks[label], self._policy.masks
        follows = self._policy.method == "sparse" and masks.file is None and masks.criterion != "random"
        if not net.method.prunes or not net.sparse or self._policy.start is not None or follows:
            return  # masks are drawn from the weights that were loaded, or the policy says where they come from
        if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return  # no value can be read there
        fresh = [w for w in net.weights if w.fresh]  # not those whose state was loaded
        if not fresh:
            return
        device = fresh[0].param.device
        counted = [torch.stack([(w.mask & (w.data == 0)).sum(), w.mask.sum()]).to(device) for w in fresh]
        # a layer that is 0 throughout was initialized so
        partly = [(zeros, kept) for zeros, kept in torch.stack(counted).tolist() if zeros < kept]
        zeros, kept = (sum(column) for column in zip(*partly)) if partly else (0, 0)
        if zeros > MOST_ZEROS * kept:
            warn(
                f"{zeros / kept:.0%} of the weights of {label} that are not pruned are exactly 0 at its first step: "
                "the checkpoint of a sparse run was loaded without its masks, so masks, thresholds and schedule begin "
                "anew; load the state that was saved beside it, rg.load(path) or rg.load_state_dict(state)"
            )
