"""STU-GAN's sparse moving average (SEMA) where the repository itself updates the average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rgplug.copies import matched
from rgplug.modes import writable
from rgplug.network import Network


def corrected_(average: Tensor, weight: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    """An ordinary update of a moving average, made into that of STU-GAN's Eq. 5, in place.

    Eq. 5: 0 where the weight is inactive; the weight itself at its first active step; beta average + (1 - beta) weight
    from then on. The last case is what an ordinary update computes, with whatever beta the repository used, so only the
    other two are written here.

    average: after the ordinary update. weight: the live weight. mask (bool): where it is active. new (bool): where the
    average was 0 before the update. All of one shape; average may be of another dtype. Returns average.
    """
    return average.copy_(torch.where(mask, torch.where(new, weight.to(average), average), 0))


@contextmanager
def sparse_update(average: Any, net: Network) -> Iterator[None]:
    """Around a repository's own update of a moving average of `net`: managed weights come out as Eq. 5 has them.

    average: a module (wrapped or not), a state dict, or a list of tensors in the order of the network's parameters.
    Everything else in it stays as the repository computes it. An update that raises is left as it is.
    """
    tensors = [(copied, w) for _, copied, w in matched(average, net)]
    new = [copied == 0 for copied, _ in tensors]
    yield
    with torch.no_grad():
        for (copied, w), fresh in zip(tensors, new):
            with writable(copied):
                corrected_(copied, w.param.detach(), w.mask.to(copied.device), fresh)
