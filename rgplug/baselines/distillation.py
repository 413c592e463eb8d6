"""Distillation from a dense discriminator, as an addition to the loss of a ticket's D (X. Chen et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the probabilities "real" and "generated", sigmoid(score) and 1 - sigmoid(score).

    student, teacher: scores of D and of the trained dense D (in eval mode, without gradient) for the same images, of
    one shape. A scalar to add to D's loss with weight 1, for real and for generated images each. Averaged over the
    probabilities and not over the images, as in the released code (half of the mean KL per image).
    """
    target = torch.sigmoid(teacher.detach().double())
    goal = torch.stack([target, 1 - target])
    return F.kl_div(_log_both(student.double()), goal, reduction="none").mean().to(student.dtype)


def _log_both(score: Tensor) -> Tensor:
    return torch.stack([F.logsigmoid(score), F.logsigmoid(-score)])
