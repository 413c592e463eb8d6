"""Networks that divide filters by their own norms without an epsilon: found at attach, never NaN, left unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rgplug
from rgplug.errors import RgplugError

Z, SIDE = 8, 4


class Own(nn.Module):
    """A convolution whose weight goes through a function of the network's own."""

    def __init__(self, normalize: Callable[[Tensor], Tensor], *shape: int, transposed: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*(shape or (6, 8, 3, 3))))
        self.normalize, self.transposed = normalize, transposed

    def forward(self, x: Tensor) -> Tensor:
        w = self.normalize(self.weight)
        w = w[0] if w.dim() == 5 else w
        return F.conv_transpose2d(x, w, padding=1) if self.transposed else F.conv2d(x, w, padding=1)


class OwnTransposed(Own):
    """Its class says that the filters are dim 1."""


def rms(dims: tuple[int, ...], eps: float = 0.0) -> Callable[[Tensor], Tensor]:
    return lambda w: w * (w.square().mean(dims, keepdim=True) + eps).rsqrt()


def spectral(w: Tensor) -> Tensor:
    return w / torch.linalg.matrix_norm(w.flatten(1), 2)


def generator(layer: nn.Module, channels: int = 6) -> nn.Module:
    """[B, 8] -> [B, 3, 4, 4]."""
    start = [nn.Linear(Z, 8 * SIDE**2), nn.Unflatten(1, (8, SIDE, SIDE)), nn.Tanh()]
    return nn.Sequential(*start, layer, nn.LeakyReLU(0.2), nn.Conv2d(channels, 3, 3, padding=1))


def dims_of(G: nn.Module) -> dict[str, tuple[int, ...] | None]:
    with rgplug.attach(G) as rg:
        assert "not tried" not in rg.report()
        return {w.name: w.norm_dims for w in rg.weights("G") if w.name == "3.weight"}


@pytest.mark.parametrize(
    ("layer", "dims"),
    [
        (lambda: Own(rms((1, 2, 3))), (1, 2, 3)),  # StyleGAN3
        (lambda: Own(lambda w: w / w.norm(torch.inf, dim=(1, 2, 3), keepdim=True)), (1, 2, 3)),  # StyleGAN2, float16
        (lambda: Own(lambda w: w / w.norm(torch.inf, dim=(2, 3, 4), keepdim=True), 1, 6, 8, 3, 3), (0, 2, 3, 4)),
        (lambda: Own(rms((2, 3))), (2, 3)),  # each kernel by itself
        (lambda: Own(rms((0, 2, 3))), (0, 2, 3)),  # each input channel
        (lambda: OwnTransposed(rms((0, 2, 3)), 8, 6, 3, 3, transposed=True), (0, 2, 3)),
        (lambda: Own(rms((1, 2, 3), 1e-8)), None),  # StyleGAN2: an epsilon
        (lambda: Own(rms((0, 1, 2, 3))), None),  # the layer as a whole, which the guard keeps from being empty
        (lambda: Own(spectral), None),
        (lambda: nn.Conv2d(8, 6, 3, padding=1), None),
    ],
)
def test_norms_are_found_by_what_they_are_taken_over(layer: Any, dims: tuple[int, ...] | None) -> None:
    assert dims_of(generator(layer())) == {"3.weight": dims}


def test_spectral_norm_of_few_filters_is_no_such_norm() -> None:
    """One filter is the whole layer; of two, one is left."""
    assert dims_of(generator(Own(spectral, 1, 8, 3, 3), 1)) == {"3.weight": None}
    assert dims_of(generator(Own(spectral, 2, 8, 3, 3), 2)) == {"3.weight": None}


def test_a_weight_that_cannot_lose_an_entry_is_left_out_with_the_reason() -> None:
    with rgplug.attach(generator(Own(lambda w: w / w.abs()))) as rg:  # the sign
        assert "3.weight" not in {w.name for w in rg.weights("G")}
        assert "skipped: the outputs are not finite when a part of it is 0" in rg.report()


FEW = {"masks.density": 0.03, "masks.distribution": "uniform"}
METHODS: dict[str, dict[str, Any]] = {
    "thresholds": {"sparsity_weight": 1.0, "threshold.init": 2.0},
    "target": {"target": {"G": 0.03, "by": 2}},
    "static": {"base": "sparse", **FEW},
    "kernels": {"base": "sparse", "granularity": "kernel", **FEW},
    "set": {"base": "set", **FEW, "exploration": {"every": 2, "end": 30, "fraction": 0.9}},
    "rigl": {"base": "rigl", **FEW, "exploration": {"every": 2, "end": 30, "fraction": 0.9}},
    "re-gan": {"base": "re-gan", "cycle": {"networks": ["G"], "sparsity": 0.97, "warm_up": 1, "period": 2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_leaves_such_a_filter_empty(method: str) -> None:
    torch.manual_seed(0)
    G = generator(Own(rms((1, 2, 3)), 24, 8, 3, 3), 24)
    with torch.no_grad():
        G[3].weight[:4] *= 1e-3  # filters that go first
    optimizer = torch.optim.Adam(G.parameters(), 1e-2)
    rg = rgplug.attach(G, None, METHODS[method])
    (own,) = [w for w in rg.weights("G") if w.name == "3.weight"]
    least = 1.0
    for step in range(12):
        optimizer.zero_grad()
        images = G(torch.randn(4, Z))
        assert images.isfinite().all(), step
        images.square().mean().backward()
        optimizer.step()
        assert own.mask.flatten(1).any(1).all()
        least = min(least, own.density)
    assert least < 0.3


def test_masks_of_a_file_leave_no_such_filter_empty(tmp_path: Any) -> None:
    from rgplug.snapshot import save_masks

    G = generator(Own(rms((1, 2, 3))))
    names = {n: p for n, p in G.named_parameters() if p.dim() > 1}
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in names.items()}
    masks["3.weight"][2] = False
    save_masks(tmp_path / "masks", {"G": masks})
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.file": str(tmp_path / "masks")})
    (own,) = [w for w in rg.weights("G") if w.name == "3.weight"]
    assert own.mask[2].sum() == 1
    assert own.mask[2].flatten()[own.param[2].abs().argmax()]
    assert G(torch.randn(2, Z)).isfinite().all()


def test_whole_filters_leave_them_out_with_a_reason() -> None:
    G = generator(Own(rms((1, 2, 3))))
    rg = rgplug.attach(G, None, {"base": "sparse", "masks.density": 0.5, "granularity": "filter"})
    assert [w.name for w in rg.weights("G")] == ["0.weight"]
    assert "skipped: each of its filters is divided by the filter's own norm, so none can be empty" in rg.report()
    assert G(torch.randn(2, Z)).isfinite().all()


class Judge(nn.Module):
    """A discriminator with such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.head = Own(rms((1, 2, 3)), 6, 3, 3, 3), nn.Linear(6 * SIDE**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.own(x).flatten(1))


def test_the_discriminator_is_run_on_the_generators_images() -> None:
    with rgplug.attach(generator(nn.Conv2d(8, 6, 3, padding=1)), Judge()) as rg:
        assert {w.name: w.norm_dims for w in rg.weights("D")} == {"own.weight": (1, 2, 3), "head.weight": None}


class Restless(nn.Module):
    """Does in a forward what networks do: hand-written spectral norm, averages, counters, noise, caches."""

    z_dim = Z

    def __init__(self) -> None:
        super().__init__()
        self.own, self.last = Own(rms((1, 2, 3))), nn.Conv2d(6, 3, 3, padding=1)
        self.start = nn.Linear(Z, 8 * SIDE**2)
        self.u = nn.Parameter(torch.randn(8), requires_grad=False)
        self.register_buffer("mean", torch.zeros(()))
        self.norm = nn.BatchNorm2d(8)
        self.calls, self.seen, self.cache, self.average = 0, [], {"x": 1}, torch.zeros(2)
        self.random = torch.Generator().manual_seed(3)
        self.own.train(False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.start(z).view(-1, 8, SIDE, SIDE))
        self.u.data = F.normalize(self.u.data + x.mean((0, 2, 3)), dim=0)
        self.mean = self.mean + 1
        self.average.add_(1)
        self.calls, self.kept = self.calls + 1, x
        self.seen.append(x)
        self.cache["y"] = self.cache.pop("x", 2)
        x = x + torch.randn(x.shape, generator=self.random) + torch.randn_like(x) + float(np.random.rand())  # noqa: NPY002
        return self.last(self.own(x))


def test_attach_leaves_everything_as_it_was() -> None:
    G, D = Restless(), Judge()
    optimizer = torch.optim.Adam(G.parameters())
    D(G(torch.randn(2, Z))).sum().backward()  # a graph is open over the attach
    values = {(m, k): v.clone() for m in (G, D) for k, v in m.state_dict().items()}
    memory = {n: p.data_ptr() for n, p in G.named_parameters()}
    objects = {k: v for k, v in vars(G).items() if not k.startswith("_")}
    flags = [m.training for m in G.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in G.parameters()]
    held = G.calls, list(G.seen), dict(G.cache), G.average.clone(), G.random.get_state(), dict(G._buffers)
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    loss = G.own(torch.ones(1, 8, SIDE, SIDE)).sum()
    rg = rgplug.attach(G, D)
    loss.backward()  # no tensor that the graph needs was changed
    G.own.weight.grad = grads[[n for n, _ in G.named_parameters()].index("own.weight")]
    assert rg.weights("G")[0].norm_dims == (1, 2, 3)
    assert [k for m in (G, D) for k, v in m.state_dict().items() if not torch.equal(v, values[m, k])] == []
    assert memory == {n: p.data_ptr() for n, p in G.named_parameters()}
    assert {k: v for k, v in vars(G).items() if not k.startswith("_")}.keys() == objects.keys()
    assert all(vars(G)[k] is v for k, v in objects.items())
    assert flags == [m.training for m in G.modules()]
    calls, seen, cache, average, state, buffers = held
    assert (G.calls, list(map(id, G.seen)), G.cache) == (calls, list(map(id, seen)), cache)
    assert torch.equal(G.average, average)
    assert torch.equal(G.random.get_state(), state)
    assert all(G._buffers[k] is v for k, v in buffers.items())
    assert torch.equal(random[0], torch.get_rng_state())
    assert random[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert all(g is None or torch.equal(g, p.grad) for g, p in zip(grads, G.parameters()))
    optimizer.step()


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(Z, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("not to be run")


def test_what_cannot_be_run_is_said_in_the_report() -> None:
    with rgplug.attach(Conditional(), Judge()) as rg:
        lines = [line for line in rg.report().splitlines() if line.startswith("not tried")]
    why = "Conditional needs 'labels' besides its first argument (classes?)"
    assert lines == [f"not tried whether {label} can do with an empty filter: {why}" for label in "GD"]


def test_networks_are_not_run_where_there_is_nothing_to_find() -> None:
    """torch's own layers, and networks that are not pruned."""
    ran: list[int] = []
    for G, policy in ((generator(nn.Conv2d(8, 6, 3, padding=1)), "rg-gan"), (generator(Own(rms((1, 2, 3)))), "dense")):
        G.register_forward_hook(lambda *_: ran.append(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rgplug.attach(G, None, policy)
    assert not ran


def test_compact_names_the_layer_that_has_an_empty_filter() -> None:
    from rgplug.export import compact

    G = generator(Own(rms((1, 2, 3)))).eval().requires_grad_(False)
    G[3].weight[2] = 0
    with pytest.raises(RgplugError, match=r"not finite \(an empty filter of 3\.weight is divided by its own norm"):
        compact(G)
    with torch.no_grad():
        G[3].weight[2] = torch.inf
    with pytest.raises(RgplugError, match=r"its outputs are not finite$"):
        compact(G)
