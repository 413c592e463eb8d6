"""Whole comparisons: every method that RG-GAN is compared with, on a host of the user's, under the same evaluation.

    from rgplug.baselines import compare
    compare(["dense", "rg-gan", "stu-gan", "tickets"], train, build, out="runs", seeds=3, policy=common)

or `rgplug compare` from the shell. `rgplug report runs` makes the tables and figures.
"""

from rgplug.baselines.adversarial_features import AdversarialFeatures
from rgplug.baselines.compare import compare
from rgplug.baselines.distillation import distillation_loss
from rgplug.baselines.driven import drive_tickets
from rgplug.baselines.methods import METHODS, Baseline
from rgplug.baselines.results import Result, read_results
from rgplug.baselines.tickets import next_masks

__all__ = [
    "METHODS",
    "AdversarialFeatures",
    "Baseline",
    "Result",
    "compare",
    "distillation_loss",
    "drive_tickets",
    "next_masks",
    "read_results",
]
