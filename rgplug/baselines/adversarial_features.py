"""AdvAug: adversarial augmentation of features, for tickets trained on little data (T. Chen et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rgplug.errors import RgplugError

Direction = Literal["adversarial", "released"]


class AdversarialFeatures:
    """Losses on features that a step of gradient sign has moved, at the input of a layer of D or of G.

    D's half: features h before `layer` (its last one), h + gamma sign(gradient of the loss w.r.t. h). G's half: the
    same with a layer of G. The text poses a min-max problem: the step raises the loss that the network then lowers. The
    released code raises the score in all three places (real, generated, G), which lowers the loss of real images and of
    G. direction: "adversarial" as the text, "released" as the code.

    The whole network runs twice. The released code runs only the last layer again, so that states which a forward pass
    moves (power iterations of spectral norm, statistics of batch norm) move once there, and twice here.
    """

    def __init__(self, layer: nn.Module, gamma: float = 0.01, direction: Direction = "adversarial"):
        self.layer, self.gamma, self.direction = layer, gamma, direction

    def loss(self, forward: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Half the loss of the scores as they are, and half the loss of those of the moved features.

        forward(): scores of D, through `layer`, for one batch (real images, generated ones, or D(G(z))). loss(scores):
        a scalar. Called twice forward, the first time with a gradient w.r.t. the features.
        """
        seen: list[Tensor] = []

        def remember(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0])

        scores = self._hooked(remember, forward)
        if not seen:
            raise RgplugError(
                "forward() did not pass through the layer whose features AdvAug moves; give a layer it uses"
            )
        features = seen[0]
        if not features.requires_grad:
            raise RgplugError("the features before that layer have no gradient; give a layer behind trained ones")
        clean = loss(scores)
        raised = clean if self.direction == "adversarial" else scores.mean()
        (gradient,) = torch.autograd.grad(raised, features, retain_graph=True)
        step = self.gamma * gradient.sign()

        def move(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0] + step, *inputs[1:])

        return 0.5 * (clean + loss(self._hooked(move, forward)))

    def _hooked(self, hook: Callable[..., Any], forward: Callable[[], Tensor]) -> Tensor:
        handle = self.layer.register_forward_pre_hook(hook)
        try:
            return forward()
        finally:
            handle.remove()
