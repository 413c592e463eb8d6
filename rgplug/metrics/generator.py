"""Measuring a generator in the middle of its training, without a trace."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from rgplug.metrics.evaluator import Evaluator
from rgplug.metrics.isolation import (
    Weights,
    evaluation_mode,
    preserved_buffers,
    swapped_weights,
)
from rgplug.metrics.sampling import SampleFn, default_sample_fn
from rgplug.metrics.value import MetricValue
from rgplug.wrappers import unwrap


def evaluate_generator(
    generator: nn.Module,
    evaluator: Evaluator,
    sample_fn: SampleFn | None = None,  # n -> n images; None: latents of the guessed size through the generator
    ema: nn.Module | Weights | None = None,  # averaged generator: a module, a state dict, or a list of tensors
    z_dim: int | None = None,  # latent size, when it cannot be guessed
) -> MetricValue:
    """Measure a generator, or its moving average, in eval mode, with the same latents every time.

    ema: a module is evaluated in the generator's place (or, when a sample_fn is given, lends it its weights, since a
    sample_fn can only know the generator); a state dict or a list lends its values for the time of the evaluation.

    Afterwards everything is as it was, bit for bit: weights, buffers, the training flag of every sub-module, the random
    states of python, numpy and torch. The training run that is interrupted continues as if it had not been.
    """
    lent: Weights | None = None
    subject = generator
    if isinstance(ema, nn.Module):
        if sample_fn is None:
            subject = ema
        else:
            lent = unwrap(ema).state_dict()
    elif ema is not None:
        lent = ema
    modules = [generator] if not isinstance(ema, nn.Module) else [generator, ema]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(preserved_buffers(*modules))
        stack.enter_context(evaluation_mode(*modules))
        if lent is not None:
            stack.enter_context(swapped_weights(generator, lent))
        return evaluator(sample_fn or default_sample_fn(subject, z_dim, evaluator.seed))
