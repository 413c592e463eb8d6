"""Distillation from the dense discriminator, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rgplug.baselines import distillation_loss


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
