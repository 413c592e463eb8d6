"""StyleGAN2-ADA and its DiffAugment fork: small networks, short ticks, a fixed detector, gloo."""

from __future__ import annotations

import os

from without_cuda.witness import given_values


def install() -> None:
    import numpy as np
    import torch
    from metrics import (
        frechet_inception_distance,
        inception_score,
        kernel_inception_distance,
        metric_main,
        metric_utils,
    )
    from training import training_loop as loop

    class Detector(torch.nn.Module):
        """64 fixed random features in Inception's place; no_output_bias: probabilities of 64 classes."""

        def __init__(self):
            super().__init__()
            fixed = torch.Generator().manual_seed(0)
            self.first = torch.randn(32, 3, 3, 3, generator=fixed) * 0.2
            self.second = torch.randn(64, 32, 3, 3, generator=fixed) * 0.1

        def forward(self, x, return_features=True, no_output_bias=False):
            x = torch.nn.functional.interpolate(x.float() / 127.5 - 1, size=(32, 32), mode="area")
            x = torch.relu(torch.nn.functional.conv2d(x, self.first, stride=2))
            x = torch.relu(torch.nn.functional.conv2d(x, self.second, stride=2)).mean([2, 3])
            return torch.softmax(20 * x, 1) if no_output_bias else x

    detector = Detector()
    metric_utils.get_feature_detector = lambda *a, **k: detector
    fid, kid = frechet_inception_distance.compute_fid, kernel_inception_distance.compute_kid
    score = inception_score.compute_is
    given = given_values()

    evaluated = os.environ.get("RGPLUG_TEST_WITNESS")

    def compute_fid(opts, max_real, num_gen):
        value = fid(opts, max_real=max_real, num_gen=32)
        if evaluated:  # what is evaluated, drawn with the latent of generate.py's seed 3
            z = torch.from_numpy(np.random.RandomState(3).randn(1, opts.G.z_dim))
            image = opts.G(z, torch.zeros(1, opts.G.c_dim), truncation_psi=1, noise_mode="const")
            image = (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
            np.save(os.path.join(evaluated, "evaluated.npy"), image[0].numpy())
        return value if given is None else given()

    frechet_inception_distance.compute_fid = compute_fid
    kernel_inception_distance.compute_kid = lambda opts, max_real, num_gen, num_subsets, max_subset_size: kid(
        opts, max_real=max_real, num_gen=32, num_subsets=4, max_subset_size=16
    )
    inception_score.compute_is = lambda opts, num_gen, num_splits: score(opts, num_gen=32, num_splits=2)
    assert metric_main.is_valid_metric("fid50k_full")
    train = loop.training_loop

    def training_loop(**arguments):
        batch = arguments["batch_size"]
        arguments["total_kimg"] = int(os.environ.get("RGPLUG_TEST_ITERATIONS", 8)) * batch / 1000
        arguments["kimg_per_tick"] = int(os.environ.get("RGPLUG_TEST_TICK", 4)) * batch / 1000
        arguments["G_kwargs"].update(z_dim=32, w_dim=32)
        for blocks in (arguments["G_kwargs"]["synthesis_kwargs"], arguments["D_kwargs"]):
            blocks.update(channel_base=1024, channel_max=32, num_fp16_res=0)
        return train(**arguments)

    loop.training_loop = training_loop
    grid = loop.setup_snapshot_image_grid

    def small_grid(training_set, random_seed=0):
        _, images, labels = grid(training_set, random_seed)
        return (3, 3), images[:9], labels[:9]

    loop.setup_snapshot_image_grid = small_grid
    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **k: start(backend="gloo", **k)
    parallel = torch.nn.parallel.DistributedDataParallel

    class Parallel(parallel):
        """Older versions made buffers equal at construction even with broadcast_buffers=False; the host needs that."""

        def __init__(self, module, device_ids=None, **kwargs):
            super().__init__(module, device_ids=None, **kwargs)
            with torch.no_grad():
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    torch.nn.parallel.DistributedDataParallel = Parallel
