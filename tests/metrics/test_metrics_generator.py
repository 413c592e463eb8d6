"""Evaluating a generator in the middle of its training, on real layers, without a trace."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from rgplug.metrics.evaluator import Evaluator
from rgplug.metrics.generator import evaluate_generator
from rgplug.metrics.sampling import default_sample_fn


def coarse(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z_dim = 6
        self.first = nn.utils.spectral_norm(nn.Linear(6, 48))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(z).reshape(-1, 3, 4, 4))
        h = nn.functional.interpolate(self.drop(h.relu()), scale_factor=2)
        return self.last(h).tanh()


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(192, 8)), nn.LeakyReLU(0.2), nn.Linear(8, 1))


@pytest.fixture(scope="module")
def evaluator():
    real = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Evaluator(real, features=coarse, samples=24, batch=10, cache=False, progress=False, device="cpu")


def everything(*modules: nn.Module) -> list[torch.Tensor]:
    return [v.clone() for m in modules for v in m.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def train(steps: int, interrupt=None) -> list[torch.Tensor]:
    """A tiny GAN run that draws from all three global random states; `interrupt` is called before each step."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    G, D = Generator(), discriminator()
    ema = copy.deepcopy(G)
    adam_g, adam_d = (torch.optim.Adam(m.parameters(), 1e-2, betas=(0.5, 0.9)) for m in (G, D))
    for _ in range(steps):
        if interrupt is not None:
            interrupt(G, ema)
        real = torch.rand(8, 3, 8, 8) * random.random() + float(np.random.rand()) - 1  # noqa: NPY002
        adam_d.zero_grad()
        (D(G(torch.randn(8, 6)).detach()).relu().mean() - D(real).mean()).backward()
        adam_d.step()
        adam_g.zero_grad()
        (-D(G(torch.randn(8, 6))).mean()).backward()
        adam_g.step()
        with torch.no_grad():
            for p, q in zip(ema.parameters(), G.parameters()):
                p.lerp_(q, 0.5)
    return [*everything(G, D, ema), torch.rand(2), torch.tensor([random.random(), np.random.rand()])]  # noqa: NPY002


@pytest.mark.parametrize("kind", ["none", "module", "state dict", "list", "sample_fn", "sample_fn and module"])
def test_a_run_that_is_measured_ends_with_the_same_bits_as_one_that_is_not(evaluator, kind):
    values = []

    def interrupt(G, ema):
        G.norm.eval()  # a host's own mixture of modes
        given = {
            "none": {},
            "module": {"ema": ema},
            "state dict": {"ema": ema.state_dict()},
            "list": {"ema": list(ema.parameters())},
            "sample_fn": {"sample_fn": lambda n: G(torch.randn(n, 6))},
            "sample_fn and module": {"sample_fn": lambda n: G(torch.randn(n, 6)), "ema": ema},
        }[kind]
        values.append(evaluate_generator(G, evaluator, **given).value)
        assert not G.norm.training
        assert G.drop.training
        assert ema.training

    assert equal(train(4, interrupt), train(4, lambda G, ema: G.norm.eval()))
    assert len(set(values)) == 4  # the generator did change, and every change was measured


def test_the_average_is_what_is_measured_however_it_is_given(evaluator):
    torch.manual_seed(0)
    G, ema = Generator(), Generator()
    with torch.no_grad():
        G(torch.randn(8, 6)), ema(torch.randn(8, 6))  # initialises what spectral norm leaves behind
    of_g, of_ema = evaluate_generator(G, evaluator).value, evaluate_generator(ema, evaluator).value
    assert of_g != of_ema
    assert evaluate_generator(G, evaluator, ema=ema).value == of_ema
    assert evaluate_generator(G, evaluator, ema=ema.state_dict()).value == of_ema
    lent = evaluate_generator(G, evaluator, ema=ema, sample_fn=default_sample_fn(G)).value
    assert lent == of_ema
    assert evaluate_generator(G, evaluator).value == of_g


def test_the_same_latents_every_time_whatever_the_training_drew(evaluator):
    G = Generator()
    first = evaluate_generator(G, evaluator).value
    torch.randn(17)
    assert evaluate_generator(G, evaluator).value == first


def test_eval_mode_is_used(evaluator):
    G = Generator()
    modes = []
    hook = G.norm.register_forward_hook(lambda m, *_: modes.append(m.training))
    evaluate_generator(G.train(), evaluator)
    hook.remove()
    assert modes
    assert not any(modes)


def test_buffers_that_a_generator_updates_even_in_eval_mode_come_back(evaluator):
    class Restless(Generator):
        def forward(self, z):
            self.norm.running_mean += 1
            return super().forward(z)

    G = Restless()
    before = everything(G)
    evaluate_generator(G, evaluator)
    assert equal(everything(G), before)


def test_a_graph_that_the_host_still_holds_can_be_differentiated_afterwards(evaluator):
    G = Generator()
    loss = G(torch.randn(4, 6)).sum()
    evaluate_generator(G, evaluator, ema={n: v * 0.5 for n, v in G.named_parameters()})
    loss.backward()
    assert G.last.weight.grad is not None


def test_everything_is_restored_after_an_error(evaluator):
    G = Generator().train()
    before, state = everything(G), torch.get_rng_state()

    def broken(n):
        torch.rand(2)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        evaluate_generator(G, evaluator, sample_fn=broken, ema={n: v * 0 for n, v in G.state_dict().items()})
    assert equal(everything(G), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in G.modules())
