"""Distillation from the dense discriminator, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rgplug import RgplugError
from rgplug.baselines import distillation_loss


def released(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The term of the tickets' authors: columns "real" and "generated", rows of both batches, F.kl_div's own mean."""
    p = torch.cat([torch.sigmoid(s) for s in student])
    q = torch.cat([torch.sigmoid(t) for t in teacher])
    p, q = torch.cat([p, 1 - p], dim=1), torch.cat([q, 1 - q], dim=1)
    return F.kl_div(torch.log(p + 1e-10), q.detach(), reduction="mean")


@pytest.mark.parametrize("generated", [8, 5])
def test_one_mean_over_real_and_generated_as_released(generated: int) -> None:
    torch.manual_seed(0)
    student = [torch.randn(n, 1, dtype=torch.float64, requires_grad=True) for n in (8, generated)]
    teacher = [torch.randn(n, 1, dtype=torch.float64) for n in (8, generated)]
    loss, expected = distillation_loss(student, teacher), released(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)
    for mine, theirs in zip(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_two_calls_are_twice_the_term() -> None:
    """What the documentation said once; a call with one tensor keeps its meaning, the mean over that tensor alone."""
    (r, f), (tr, tf) = (torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    both = distillation_loss((r, f), (tr, tf)).item()
    assert (distillation_loss(r, tr) + distillation_loss(f, tf)).item() == pytest.approx(2 * both, rel=1e-5)


@pytest.mark.parametrize("teacher", [torch.zeros(3), (torch.zeros(3, 1), torch.zeros(3, 1))])
def test_scores_that_do_not_fit(teacher: Tensor | tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RgplugError, match=r"distillation_loss got scores of shapes \[\(3, 1\)\] for the student"):
        distillation_loss(torch.zeros(3, 1), teacher)


def test_by_hand() -> None:
    """Teacher 3 to 1 for "real", student undecided: KL = .75 log 1.5 + .25 log .5, over two probabilities."""
    student, teacher = torch.zeros(1, 1), torch.full((1, 1), math.log(3.0))
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert distillation_loss(student, teacher).item() == pytest.approx(expected)


def test_mean_over_images_and_gradient() -> None:
    student = torch.tensor([[0.0], [2.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(3.0)], [2.0]], requires_grad=True)
    loss = distillation_loss(student, teacher)
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4)
    loss.backward()
    assert teacher.grad is None
    # d KL / d score = sigmoid(student) - sigmoid(teacher), by image
    assert student.grad.flatten().tolist() == pytest.approx([(0.5 - 0.75) / 4, 0.0], abs=1e-7)


def test_scores_far_out_stay_finite() -> None:
    student = torch.tensor([300.0, -300.0], requires_grad=True)
    distillation_loss(student, torch.tensor([-300.0, 300.0])).backward()
    assert student.grad.isfinite().all()
    assert distillation_loss(student, student).item() == pytest.approx(0)
    assert distillation_loss(student.half(), student.half()).dtype == torch.half
