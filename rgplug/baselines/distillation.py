"""Distillation from a dense discriminator, as an addition to the loss of a ticket's D (X. Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rgplug.errors import RgplugError

Scores = Tensor | Sequence[Tensor]


def distillation_loss(student: Scores, teacher: Scores) -> Tensor:
    """KL(teacher || student) of the probabilities "real" and "generated", sigmoid(score) and 1 - sigmoid(score).

    student: (scores of real images, scores of generated images), of the D in training.
    teacher: the same of the trained dense D (in eval mode) for the same images; it gets no gradient.

    Returns a scalar to add to D's loss with weight 1, once per step: the mean over both probabilities of all scores,
    real and generated together, as in the released code (half of the mean KL per image). A single tensor in place of
    the pair gives the mean over that tensor's scores alone; the sum of one such call for real images and one for
    generated images is therefore twice the published term. Raises RgplugError where student and teacher do not fit.
    """
    own, target = _parts(student), _parts(teacher)
    if [s.shape for s in own] != [t.shape for t in target]:
        raise RgplugError(
            f"distillation_loss got scores of shapes {[tuple(s.shape) for s in own]} for the student and "
            f"{[tuple(t.shape) for t in target]} for the teacher; give those of the same images, "
            "distillation_loss((D(x), D(fake)), (teacher(x), teacher(fake)))"
        )
    score = torch.cat([s.reshape(-1) for s in own]).double()
    goal = torch.sigmoid(torch.cat([t.detach().reshape(-1) for t in target]).double())
    log_p = torch.stack([F.logsigmoid(score), F.logsigmoid(-score)])
    return F.kl_div(log_p, torch.stack([goal, 1 - goal]), reduction="none").mean().to(own[0].dtype)


def _parts(scores: Scores) -> list[Tensor]:
    return [scores] if isinstance(scores, Tensor) else list(scores)
