"""One network around one step, by hand: thresholds, dormant values, moments, the guard, units, counts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import ADAM, RAMP, Host, adam, linear, pruned_at, set_grad, sgd
from torch import Tensor, nn

import rgplug

FIXED = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}}


def test_one_step_by_hand() -> None:
    """SGD, lr 1, lambda 0.5. theta = [1, .25, -.5], t = .3, A = [.1, .2, -.4].

    H'(|theta| - t): |1 - .3| = .7 -> .4; |-.05| -> 1.8; |.2| -> 1.2
    dL/dt = -(.1 * 1 * .4 + .2 * .25 * 1.8 + .4 * .5 * 1.2) - .5 exp(-.3) = -.37 - .3704 = -.7404
    """
    G = linear([[1.0, 0.25, -0.5]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.5, "threshold": {"init": 0.3}})
    assert G.weight.tolist() == [[1, 0, -0.5]]
    set_grad(G, [[0.1, 0.2, -0.4]])
    opt.step()
    (w,) = rg.weights("G")
    torch.testing.assert_close(w.theta, torch.tensor([[0.9, 0.25, -0.1]], dtype=torch.float64))
    expected = 0.3 + 0.37 + 0.5 * torch.exp(torch.tensor(-0.3, dtype=torch.float64)).item()
    assert expected > 0.9  # prunes everything: the guard
    assert w.threshold.tolist() == [0]
    assert w.mask.all()


def test_the_threshold_of_a_step_by_hand() -> None:
    """The same with a fourth, large weight that H' does not see: the layer is not empty."""
    G = linear([[1.0, 0.25, -0.5, 9.0]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.5, "threshold": {"init": 0.3}})
    set_grad(G, [[0.1, 0.2, -0.4, 5.0]])
    opt.step()
    (w,) = rg.weights("G")
    assert w.threshold.item() == pytest.approx(0.3 + 0.37 + 0.5 * 2.718281828459045**-0.3)
    assert w.mask.tolist() == [[False, False, False, True]]
    torch.testing.assert_close(w.theta, torch.tensor([[0.9, 0.25, -0.1, 4.0]], dtype=torch.float64))


def test_weight_gradient_full_by_hand() -> None:
    """A (1 + |theta| H'): .1 (1 + .4), masked, -.4 (1 + .5 * 1.2), 5 (1 + 0)."""
    G = linear([[1.0, 0.25, -0.5, 9.0]], torch.float64)
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.3, "weight_gradient": "full"}})
    set_grad(G, [[0.1, 0.2, -0.4, 5.0]])
    opt.step()
    expected = torch.tensor([[1 - 0.14, 0.25, -0.5 + 0.64, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(rg.weights("G")[0].theta, expected)


def test_units_layer_std_by_hand() -> None:
    """std of [3, -3, 1, -1] is sqrt(5); kept above 1 std: |3| yes, |1| no."""
    G = linear([[3.0, -3.0, 1.0, -1.0]])
    rg = rgplug.attach(G, policy={"threshold": {"units": "layer_std", "init": 1.0}})
    (w,) = rg.weights("G")
    assert w.scale.item() == pytest.approx(5**0.5)
    assert w.mask.tolist() == [[True, True, False, False]]
    # dL/dt = -sum A theta H'(|theta| / s - 1): with A = [1, 0, 1, 0]: 3/2.236 - 1 = .3416, 1/2.236 - 1 = -.5528
    policy = {"sparsity_weight": 0.0, "threshold": {"units": "layer_std", "init": 1.0}}
    other = linear([[3.0, -3.0, 1.0, -1.0]])
    opt = sgd(other, lr=0.01)
    rg = rgplug.attach(other, policy=policy)
    set_grad(other, [[1.0, 0.0, 1.0, 0.0]])
    opt.step()
    moved = 0.01 * (3 * (2 - 4 * (3 / 5**0.5 - 1)) + 1 * 0.4)
    assert rg.weights("G")[0].threshold.item() == pytest.approx(1 + moved, abs=1e-5)


def test_units_spectral_is_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(7, 5), nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2))
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": "spectral", "init": 0.05}})
    opt = sgd(G, 0.0)
    for _ in range(60):
        for m in G:
            set_grad(m, 0.0)
        opt.step()
    theta = [w.theta for w in rg.weights("G")]
    matrices = [theta[0], theta[1].transpose(0, 1).flatten(1), theta[2].flatten(1)]
    for w, matrix in zip(rg.weights("G"), matrices):
        sigma = torch.linalg.matrix_norm(matrix, 2)
        assert w.scale.item() == pytest.approx(sigma.item(), rel=1e-3)
        torch.testing.assert_close(w.mask, w.theta.abs() / w.scale > 0.05)


def test_units_are_those_of_the_present_weight_when_a_dense_phase_ends() -> None:
    G = linear([[3.0, -3.0, 1.0, -1.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": "layer_std", "init": 1.0}})
    net = rg.networks["G"]
    net.go_dense()
    set_grad(G, [[0.0, 0.0, -19.0, 19.0]])  # the dense phase makes [3, -3, 20, -20] of it
    opt.step()
    assert G.weight.tolist() == [[3, -3, 20, -20]]
    net.go_sparse()
    assert rg.weights("G")[0].mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("units", ["layer_std", "spectral"])
def test_a_zero_initialised_layer_learns_and_gets_units(units: str) -> None:
    G = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
    nn.init.zeros_(G[2].weight)
    opt = adam(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"units": units, "task_gradient": False}})
    torch.manual_seed(0)
    for _ in range(40):
        opt.zero_grad()
        (G(torch.randn(16, 4)) - torch.randn(16, 8)).square().mean().backward()
        opt.step()
    w = rg.weights("G")[1]
    assert w.param.abs().max() > 0.01
    sigma = w.theta.std(correction=0) if units == "layer_std" else torch.linalg.matrix_norm(w.theta, 2)
    assert w.scale.item() == pytest.approx(sigma.item(), rel=0.1)


def test_a_zero_initialised_layer_learns_under_absolute_thresholds() -> None:
    G = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    nn.init.zeros_(G[1].weight)
    opt = adam(G)
    rgplug.attach(G)
    for _ in range(3):
        opt.zero_grad()
        (G(torch.ones(2, 4)) - 1).square().sum().backward()
        opt.step()
    assert G[1].weight.abs().max() > 0.01


def test_the_minimum_of_thresholds() -> None:
    G = linear([[100.0, 0.5, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"min": -0.25}})
    set_grad(G, [[0.0, -1.0, -1.0]])  # pushes t down by 2 * 0.5 * 0.4
    opt.step()
    assert rg.weights("G")[0].threshold.item() == -0.25
    free = linear([[100.0, 0.5, 0.5]])
    opt = sgd(free)
    rg = rgplug.attach(free, policy={"sparsity_weight": 0.0})
    set_grad(free, [[0.0, -1.0, -1.0]])
    opt.step()
    assert rg.weights("G")[0].threshold.item() == pytest.approx(-0.4)


# ---- dormant values ----------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": adam,
    "amsgrad": lambda m: adam(m, amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.5),
    "sgd": lambda m: sgd(m, 1e-2, momentum=0.9, weight_decay=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_pruned_weights_are_exactly_0_and_their_dormant_values_do_not_move(name: str, optimizer_state: str) -> None:
    torch.manual_seed(0)
    G = nn.Linear(16, 16)
    opt = OPTIMIZERS[name](G)
    policy = {"sparsity_weight": 0.0, "threshold": {"task_gradient": False}, "optimizer_state": optimizer_state}
    rg = rgplug.attach(G, policy=policy)
    (w,) = rg.weights("G")
    for _ in range(5):  # momentum before anything is pruned
        set_grad(G, torch.randn(16, 16))
        opt.step()
    w.threshold.copy_(torch.linspace(0, 0.3, 16))
    rg.networks["G"].refresh_all()
    assert 0.1 < w.density < 0.9
    waited = torch.zeros_like(w.mask)
    for _ in range(20):
        mask, dormant = w.mask.clone(), w.dormant.clone()
        set_grad(G, torch.randn(16, 16))
        opt.step()
        assert not G.weight[~w.mask].any()
        still = ~mask & ~w.mask
        assert torch.equal(w.dormant[still], dormant[still])
        assert torch.equal(G.weight[~mask & w.mask], dormant[~mask & w.mask])
        waited |= still
    assert waited.any()


MOMENTS = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
@pytest.mark.parametrize("change", ["pruned", "regrown", "dense phase"])
def test_moments_of_what_was_pruned_or_regrown(name: str, optimizer_state: str, change: str) -> None:
    G = linear([[1.0, 0.5, 2.0]])
    make = {**OPTIMIZERS, "sgd": lambda m: sgd(m, 1e-4, momentum=0.9), "adam": lambda m: adam(m, lr=1e-4)}[name]
    opt = make(G)
    rg = rgplug.attach(
        G, policy={"sparsity_weight": 0.0, "threshold": {"task_gradient": False}, "optimizer_state": optimizer_state}
    )
    (w,) = rg.weights("G")
    set_grad(G, 1.0)
    opt.step()
    if change != "pruned":
        w.threshold.fill_(0.7)
        rg.networks["G"].refresh_all()  # 0.5 falls
        for key in MOMENTS[name]:
            opt.state[G.weight][key].fill_(1.0)
    before = {key: opt.state[G.weight][key].clone() for key in MOMENTS[name]}
    if change == "pruned":
        w.threshold.fill_(0.7)
        rg.networks["G"].refresh_all()
    elif change == "regrown":
        w.threshold.fill_(0.1)
        rg.networks["G"].refresh_all()
    else:
        rg.networks["G"].go_dense()
    for key in MOMENTS[name]:
        moment = opt.state[G.weight][key]
        assert torch.equal(moment[:, [0, 2]], before[key][:, [0, 2]])
        assert before[key][0, 1] != 0
        assert moment[0, 1] == (0 if optimizer_state == "reset" else before[key][0, 1])


# ---- the guard ---------------------------------------------------------------------------------------------------


def test_the_guard_by_hand() -> None:
    """A layer that keeps 1 of 100 is reset, one that keeps 2 is not; other layers are left alone."""
    for kept, reset in ((1, True), (2, False)):
        rows = [[9.0] * kept + [0.5] * (100 - kept)]
        G = nn.Sequential(linear(rows), linear([[9.0, 0.5]]))
        rg = rgplug.attach(G, policy=FIXED)
        pruned_at(rg, "G", 1.0)
        assert rg.weights("G")[0].density == pytest.approx(1.0 if reset else 0.02)
        assert rg.weights("G")[0].threshold.item() == (0 if reset else 1)
        assert rg.weights("G")[1].density == 0.5
        rg.detach()


def filters(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))


def old(norm: Any, **options: Any) -> Callable[[nn.Module], nn.Module]:
    def wrap(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return norm(layer, **options)

    return wrap


NORMED: dict[str, Callable[[], nn.Module]] = {
    "old spectral": lambda: old(nn.utils.spectral_norm)(nn.Conv2d(3, 6, 3)),
    "new spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)),
    "old spectral, transposed": lambda: old(nn.utils.spectral_norm)(nn.ConvTranspose2d(3, 6, 3)),
    "old weight norm": lambda: old(nn.utils.weight_norm)(nn.Conv2d(3, 6, 3)),
    "new weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
    "new weight norm, grouped": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, groups=3)),
    "weight norm of all": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3), dim=None),
    # weight norm takes dim 0, which is the input of a transposed convolution (HiFi-GAN's up-sampling)
    "old weight norm, transposed": lambda: old(nn.utils.weight_norm)(nn.ConvTranspose2d(3, 6, 3)),
    "new weight norm, transposed": lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(3, 6, 3)),
    "new weight norm, transposed, dim 1": lambda: nn.utils.parametrizations.weight_norm(
        nn.ConvTranspose2d(3, 6, 3), dim=1
    ),
    "new weight norm, transposed, grouped": lambda: nn.utils.parametrizations.weight_norm(
        nn.ConvTranspose2d(3, 6, 3, groups=3)
    ),
}


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("method", ["regularizer", "target"])
def test_an_empty_layer_never_reaches_a_forward(name: str, method: str) -> None:
    torch.manual_seed(0)
    G = filters(NORMED[name]())
    x = torch.randn(4, 3, 6, 6)
    G(x)
    if name.endswith("transposed"):
        with torch.no_grad():  # one row of much smaller weights than the others
            for p in G[0].parameters():
                if p.dim() == 4 and p.shape[1] == 6 and p.shape[2] == 3:
                    p[1] *= 1e-3
    opt = adam(G, lr=0.02)
    policy: dict[str, Any] = {"sparsity_weight": 1e6}
    if method == "target":
        policy = {"target": {"G": 0.05, "by": 3}}
    rg = rgplug.attach(G, policy=policy)
    least = 1.0
    for step in range(30):
        opt.zero_grad()
        out = G(x)
        assert torch.isfinite(out).all(), f"step {step}"
        out.square().mean().backward()
        opt.step()
        for w in rg.weights("G"):
            assert w.mask.any()
            assert torch.isfinite(w.param).all()
        least = min(least, rg.density("G"))
    assert least < 0.9


def test_a_hand_written_spectral_norm_is_safe_too() -> None:
    class SN(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            sigma = torch.linalg.matrix_norm(self.weight.flatten(1), 2)
            return F.conv2d(x, self.weight / sigma, self.bias)

    G = filters(SN(3, 6, 3))
    x = torch.randn(4, 3, 6, 6)
    G(x)
    opt = adam(G, lr=0.05)
    rgplug.attach(G, policy={"sparsity_weight": 1e6})
    for _ in range(30):
        opt.zero_grad()
        G(x).square().mean().backward()
        opt.step()
        assert torch.isfinite(G(x)).all()


def test_sigma_is_that_of_the_sparse_matrix() -> None:
    torch.manual_seed(0)
    D = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16), n_power_iterations=50)
    rg = rgplug.attach(D)
    pruned_at(rg, "G", 0.15)
    assert rg.density("G") < 0.6
    D(torch.ones(1, 16))
    assert torch.linalg.matrix_norm(D.weight, 2).item() == pytest.approx(1, abs=1e-3)


# ---- recurrent regeneration, phases ------------------------------------------------------------------------------


def regrowth(policy: dict[str, Any], steps: int = 12) -> dict[str, int]:
    """Entries that came back, per network."""
    host = Host()
    with rgplug.attach(host.G, host.D, policy) as rg:
        back = {"G": 0, "D": 0}
        before = {n: [w.mask.clone() for w in rg.weights(n)] for n in back}
        for _ in range(steps):
            host.run(1)
            for n in back:
                masks = [w.mask.clone() for w in rg.weights(n)]
                back[n] += sum(int((new & ~old).sum()) for new, old in zip(masks, before[n]))
                before[n] = masks
        counted = {n: int(net.regrown.sum()) for n, net in rg.networks.items()}
        assert counted == back
        for n, net in rg.networks.items():
            assert [int(w.mask.sum()) for w in net.weights] == net.kept.long().tolist()
            assert int(net.pruned.sum()) - counted[n] == sum(int((~w.mask).sum()) for w in net.weights)
        assert min(rg.density().values()) < 1
        return back


def test_recurrent_regeneration_per_network() -> None:
    policy = {"sparsity_weight": 1e-2, "threshold": {"init": 0.03}}
    both = regrowth(policy)
    assert min(both.values()) > 0
    assert regrowth({**policy, "regeneration": {"recurrent": False}}) == {"G": 0, "D": 0}
    only_g = regrowth({**policy, "regeneration": {"recurrent": ["G"]}})
    assert only_g["G"] > 0
    assert only_g["D"] == 0


def test_regrown_weights_come_back_with_their_old_values() -> None:
    G = linear([[1.0, 0.5]])
    rg = rgplug.attach(G)
    pruned_at(rg, "G", 0.7)
    assert G.weight.tolist() == [[1, 0]]
    pruned_at(rg, "G", 0.1)
    assert G.weight.tolist() == [[1, 0.5]]


def test_in_a_dense_phase_thresholds_stand_still_and_gradients_are_not_masked() -> None:
    G = linear([[1.0, 0.5]])
    opt = sgd(G, 0.125)
    rg = rgplug.attach(G, policy={"sparsity_weight": 1.0, "threshold": {"init": 0.7}})
    net = rg.networks["G"]
    assert G.weight.tolist() == [[1, 0]]
    net.go_dense()
    assert G.weight.tolist() == [[1, 0.5]]
    set_grad(G, [[1.0, 1.0]])
    opt.step()
    assert G.weight.grad.tolist() == [[1, 1]]
    assert G.weight.tolist() == [[0.875, 0.375]]
    assert rg.weights("G")[0].threshold.item() == pytest.approx(0.7)
    assert net.density() == 1
    assert net.iteration == 1
    net.go_sparse()
    assert G.weight.tolist() == [[0.875, 0]]
    assert rg.weights("G")[0].theta.tolist() == [[0.875, 0.375]]
    assert int(net.regrown.sum()) == 1


# ---- what the host writes ----------------------------------------------------------------------------------------


def test_values_the_host_writes_at_live_positions_are_adopted() -> None:
    G = linear([[1.0, 0.05]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    G.weight.data.copy_(torch.tensor([[3.0, 0.0]]))
    set_grad(G, [[0.5, 0.5]])
    opt.step()
    assert G.weight.tolist() == [[2.5, 0]]
    assert rg.weights("G")[0].theta.tolist() == [[2.5, pytest.approx(0.05)]]


WRITES: dict[str, Callable[[nn.Linear, Tensor], Any]] = {
    "load_state_dict": lambda G, x: G.load_state_dict({"weight": x}),
    "data.copy_": lambda G, x: G.weight.data.copy_(x),
    "data =": lambda G, x: setattr(G.weight, "data", x.clone()),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "then",
    ["step", "end_epoch", "end_epoch with a target", "go_dense", "refresh", "detach dense", "detach sparse", "state"],
)
def test_a_dense_checkpoint_after_attach_loses_nothing(write: str, then: str) -> None:
    """[1, .05 | dormant] becomes [3, .07, 4 ...]: live values are taken, the others wait as dormant ones."""
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    policy: dict[str, Any] = dict(FIXED)
    if then == "end_epoch with a target":
        policy["target"] = {"G": 0.5, "by": 0, "shape": "constant"}
    rg = rgplug.attach(G, policy=policy)
    (w,) = rg.weights("G")
    WRITES[write](G, torch.tensor([[3.0, 0.0625, 4.0, 0.03125]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if then == "step":
            set_grad(G, 0.0)
            opt.step()
        elif then == "end_epoch":
            rg.end_epoch(1.0)
            set_grad(G, 0.0)
            opt.step()
        elif then == "end_epoch with a target":
            rg.end_epoch(1.0)
        elif then == "go_dense":
            rg.networks["G"].go_dense()
        elif then == "refresh":
            rg.networks["G"].refresh_all()
        elif then == "state":
            state = copy.deepcopy(rg.state_dict())
            rg.load_state_dict(state)
            set_grad(G, 0.0)
            opt.step()
        else:
            rg.detach(finish="dense" if then == "detach dense" else "sparse")
    assert w.theta.tolist() == [[3.0, 0.0625, 4.0, 0.03125]]
    dense = then in ("go_dense", "detach dense")
    assert G.weight.tolist() == ([[3.0, 0.0625, 4.0, 0.03125]] if dense else [[3, 0, 4, 0]])


def test_a_dense_checkpoint_is_noticed_and_said_at_the_end_of_the_epoch() -> None:
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    G.load_state_dict({"weight": torch.tensor([[3.0, 0.0625, 4.0, 0.0]])})
    set_grad(G, 0.0)
    opt.step()
    with pytest.warns(UserWarning, match="wrote 1 non-zero value.* of G"):
        record = rg.end_epoch(1.0)
    assert record.written == {"G": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rg.end_epoch(1.0).written == {}


def test_a_dense_checkpoint_is_noticed_at_the_end_of_the_epoch_without_a_step() -> None:
    G = linear([[1.0, 0.05, 2.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={**FIXED, "target": {"G": 0.5, "by": 0, "shape": "constant"}})
    set_grad(G, 0.0)
    opt.step()
    G.load_state_dict({"weight": torch.tensor([[3.0, 0.0625, 4.0, 0.03125]])})
    with pytest.warns(UserWarning, match="wrote 2 non-zero value.* of G"):
        rg.end_epoch(1.0)


def test_weights_that_the_host_clamps_after_each_step() -> None:
    """WGAN: live values are clamped, dormant ones are not touched, nobody is warned."""
    G = linear([[1.0, 0.05, -2.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=FIXED)
    for _ in range(3):
        set_grad(G, [[-0.5, 1.0, 0.5]])
        opt.step()
        for p in G.parameters():
            p.data.clamp_(-0.75, 0.75)
    assert G.weight.tolist() == [[0.75, 0, -0.75]]
    assert rg.weights("G")[0].theta.tolist() == [[0.75, pytest.approx(0.05), -0.75]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.end_epoch(1.0)


def test_an_average_swapped_in_and_out_around_an_evaluation() -> None:
    """FastGAN: load_params(G, average), draw, load_params(G, backup). Nothing of it may stay."""
    host = Host()
    rg = rgplug.attach(host.G, host.D, {"sparsity_weight": 1e-2, "threshold": {"init": 0.05}})
    host.run(3)
    thetas = [w.theta for w in rg.weights("G")]
    backup = [p.detach().clone() for p in host.G.parameters()]
    for p in host.G.parameters():
        p.data.copy_(torch.randn_like(p))
    for p, b in zip(host.G.parameters(), backup):
        p.data.copy_(b)
    assert all(torch.equal(w.theta, t) for w, t in zip(rg.weights("G"), thetas))


def test_zeros_of_live_weights_are_no_host_writes() -> None:
    """Live zeros hide as many writes in the count, but never make one up."""
    G = linear([[1.0, 0.05, 0.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": -0.1, "task_gradient": False}})
    set_grad(G, 0.0)
    opt.step()
    assert G.mask.all()
    assert int(rg.networks["G"].written.sum()) == 0


# ---- NaN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["absolute", "layer_std", "spectral"])
@pytest.mark.parametrize("target", [None, {"G": 0.5, "by": 0, "shape": "constant"}, {"G": 0.5, "start": 50, "by": 60}])
@pytest.mark.parametrize("kept_in", ["one entry", "all"])
def test_nan_gradients_reach_live_weights_as_they_would_and_nothing_else(units: str, target: Any, kept_in: str) -> None:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    opt = adam(G)
    policy = {"sparsity_weight": 1e-2, "threshold": {"units": units, "init": 0.1}, "target": target}
    rg = rgplug.attach(G, policy=policy)
    for _ in range(2):
        for m in G:
            set_grad(m, torch.randn(8, 8))
        opt.step()
    good = copy.deepcopy(G.state_dict())
    masks = [w.mask.clone() for w in rg.weights("G")]
    for m in G:
        set_grad(m, 1.0)
    if kept_in == "all":
        G[0].weight.grad.fill_(float("nan"))
    else:
        row, column = masks[0].nonzero()[0].tolist()
        G[0].weight.grad[row, column] = float("nan")
    opt.step()
    w = rg.weights("G")[0]
    assert G[0].weight.isnan()[masks[0]].all() if kept_in == "all" else G[0].weight[row, column].isnan()
    assert torch.isfinite(w.dormant).all()
    assert torch.isfinite(w.threshold).all()
    # the host goes back to its last good weights
    G.load_state_dict(good)
    for _ in range(3):
        opt.state.clear()
        for m in G:
            set_grad(m, 0.01)
        opt.step()
    for w in rg.weights("G"):
        assert torch.isfinite(w.theta).all()
        assert torch.isfinite(w.threshold).all()
        assert w.scale is None or torch.isfinite(w.scale)
        assert torch.equal(w.mask, (w.theta.abs() / (1 if w.scale is None else w.scale)) > w.threshold[:, None])


# ---- moving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("then", ["step", "end_epoch", "go_dense", "state", "apply_masks", "detach"])
def test_networks_that_move_after_attach(dtype: torch.dtype, then: str) -> None:
    G = linear([[1.0, 0.0625, 2.0, 0.03125]])
    opt = sgd(G)
    policy = {**FIXED, "target": {"G": 0.5, "by": 0, "shape": "constant"}} if then == "end_epoch" else FIXED
    rg = rgplug.attach(G, policy={**policy, "sparsity_weight": 1e-6})
    set_grad(G, 0.0)
    opt.step()
    G.to(dtype)
    (w,) = rg.weights("G")
    if then == "end_epoch":
        rg.end_epoch(1.0)
    elif then == "go_dense":
        rg.networks["G"].go_dense()
        assert G.weight.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]
        rg.networks["G"].go_sparse()
    elif then == "state":
        rg.load_state_dict(rg.state_dict())
    elif then == "apply_masks":
        rg.apply_masks(copy.deepcopy(G))
    elif then == "detach":
        rg.detach("dense")
        assert G.weight.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]
        return
    opt = adam(G, lr=0.0, eps=1e-3)
    set_grad(G, 0.0)
    opt.step()
    assert G.weight.tolist() == [[1, 0, 2, 0]]
    assert G.weight.dtype == dtype
    assert w.theta.tolist() == [[1.0, 0.0625, 2.0, 0.03125]]


def test_thresholds_keep_their_moments_when_the_network_moves() -> None:
    """A host that moves its network and its optimizer's state to float64 in the middle of a run."""
    G = linear([[100.0, 0.5]])
    opt = adam(G)
    rg = rgplug.attach(G, policy=RAMP)
    set_grad(G, 1.0)
    opt.step()
    G.double()
    for state in opt.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].double()
    set_grad(G, 1.0)
    opt.step()
    assert rg.weights("G")[0].threshold.dtype == torch.float64
    assert rg.weights("G")[0].threshold.item() == pytest.approx(2 * ADAM["lr"], rel=1e-3)


@pytest.mark.parametrize("units", ["layer_std", "spectral"])
def test_units_are_those_of_the_weights_that_train(units: str) -> None:
    """A host loads its weights after attach: the first step measures them, not what was there before."""
    first, second = nn.Linear(6, 4), nn.Linear(6, 4)
    with torch.no_grad():
        first.weight.mul_(100)
    late = rgplug.attach(first, None, {"threshold.units": units})
    first.load_state_dict(second.state_dict())
    early = rgplug.attach(second, None, {"threshold.units": units})
    for net in (first, second):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(3, 6)).square().sum().backward()
            optimizer.step()
    (a,), (b,) = late.weights("G"), early.weights("G")
    assert torch.equal(a.threshold, b.threshold)
    assert torch.equal(a.scale, b.scale)
    assert torch.equal(first.weight, second.weight)


def test_a_target_that_is_met_stays_met_until_the_next_step() -> None:
    net = nn.Linear(40, 30)
    rg = rgplug.attach(net, None, {"target": {"G": 0.5, "by": 1}})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    (network,) = rg.networks.values()
    network.meet_target()
    mask, threshold = network.weights[0].mask.clone(), network.weights[0].threshold.clone()
    drawn = net.weight.detach().clone()
    rg.end_epoch(1.0)
    assert torch.equal(network.weights[0].mask, mask)
    assert torch.equal(network.weights[0].threshold, threshold)
    assert torch.equal(net.weight, drawn)
    optimizer.step()
    network.go_dense()
    network.go_sparse()
    assert rg.density("G") == pytest.approx(0.5, abs=0.005)
