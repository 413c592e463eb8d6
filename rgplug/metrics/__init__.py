"""Measuring generators while they train: features x distance, and what training costs.

A value carries its own name. `fid` is the Frechet distance on Inception's features as clean-fid computes them, and
nothing else is called so; on other features the same distance is `fd_<features>`, and likewise `kid`, `kid_<features>`,
`is`, `is_<features>`. Two values with different names are not comparable, and neither are values with different
numbers of samples, which is why both are printed with every value: `fd_efficientnet_lite0 43.21 (5000 samples)`.

An evaluation leaves no trace in the run that it interrupts, and with several processes all of them get one value.
"""

from rgplug.metrics.accounting import LayerMacs, TrainingFlops, layer_macs, training_flops_per_step
from rgplug.metrics.distances import Estimate, frechet_distance, inception_score, kernel_distance
from rgplug.metrics.evaluator import Evaluator
from rgplug.metrics.features import CallableFeatures, Extractor, Features, get_features, register_features
from rgplug.metrics.generator import evaluate_generator
from rgplug.metrics.isolation import evaluation_mode, preserved_buffers, preserved_rng, swapped_weights
from rgplug.metrics.sampling import Latent, LatentSampler, default_sample_fn, guess_latent, pick_images
from rgplug.metrics.sources import ImageSource, open_source
from rgplug.metrics.statistics import Accumulator, Statistics
from rgplug.metrics.value import MetricValue, metric_name

__all__ = [
    "Accumulator",
    "CallableFeatures",
    "Estimate",
    "Evaluator",
    "Extractor",
    "Features",
    "ImageSource",
    "Latent",
    "LatentSampler",
    "LayerMacs",
    "MetricValue",
    "Statistics",
    "TrainingFlops",
    "default_sample_fn",
    "evaluate_generator",
    "evaluation_mode",
    "frechet_distance",
    "get_features",
    "guess_latent",
    "inception_score",
    "kernel_distance",
    "layer_macs",
    "metric_name",
    "open_source",
    "pick_images",
    "preserved_buffers",
    "preserved_rng",
    "register_features",
    "swapped_weights",
    "training_flops_per_step",
]
