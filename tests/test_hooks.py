"""Which steps are seen, whose they are, and that a host that retries, clips or counts phases apart changes nothing."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from common import (
    ADAM,
    FIXED,
    RAMP,
    TASK,
    Host,
    adam,
    different,
    linear,
    pruned_at,
    set_grad,
    sgd,
    snapshot,
    trajectory,
)
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import rgplug
from rgplug.errors import RgplugError

# ---- the closure, the raising step, the second optimizer ---------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True])
def test_closures(keyword: bool) -> None:
    def loop(host: Host, rg: rgplug.Controller) -> None:
        for _ in range(6):
            for name, loss in host.losses().items():

                def closure(name: str = name, loss: Any = loss) -> Tensor:
                    host.opt[name].zero_grad()
                    value = loss()
                    value.backward()
                    return value

                value = host.opt[name].step(closure=closure) if keyword else host.opt[name].step(closure)
                assert isinstance(value, Tensor)
            host.iteration += 1

    assert not different(trajectory(loop=loop), trajectory())


class Raises(torch.optim.Adam):
    fail = False

    def step(self, closure: Any = None) -> Any:
        if Raises.fail:
            Raises.fail = False
            raise RuntimeError("out of memory")
        return super().step(closure)


def test_a_step_that_raises_is_retried_with_new_gradients() -> None:
    """What was prepared for the failed step (thresholds' gradients of that batch) must not serve the next one."""

    def loop(fail: bool) -> Callable[[Host, rgplug.Controller], None]:
        def run(host: Host, rg: rgplug.Controller) -> None:
            host.run(3)
            if fail:
                Raises.fail = True
                host.opt["G"].zero_grad()
                (1e3 * host.G(host.data.z(7)).square().sum()).backward()
                with pytest.raises(RuntimeError, match="out of memory"):
                    host.opt["G"].step()
            host.run(3)

        return run

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return Raises(module.parameters(), **ADAM)

    expected = trajectory(loop=loop(False), optimizer=make, kind="equalized")  # no buffers that a forward changes
    assert not [
        k for k in different(trajectory(loop=loop(True), optimizer=make, kind="equalized"), expected) if "G" in k
    ]


def test_a_step_that_raises_is_retried_as_it_is() -> None:
    def loop(host: Host, rg: rgplug.Controller) -> None:
        for _ in range(6):
            for name, loss in host.losses().items():
                host.opt[name].zero_grad()
                loss().backward()
                Raises.fail = True
                with pytest.raises(RuntimeError, match="out of memory"):
                    host.opt[name].step()
                host.opt[name].step()
            host.iteration += 1

    expected = trajectory()
    assert not different(trajectory(loop=loop, optimizer=lambda m: Raises(m.parameters(), **ADAM)), expected)


def test_an_interrupt_inside_the_work_after_a_step_does_not_lose_the_next_steps() -> None:
    G = linear([[1.0, 0.5, 0.01]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False}})
    net = rg.networks["G"]
    set_grad(G, 0.125)
    with mock.patch.object(net.method, "update", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        opt.step()
    set_grad(G, 0.125)
    opt.step()
    assert G.weight.tolist() == [[0.75, 0.25, 0.0]]
    assert rg.weights("G")[0].theta.tolist() == [[0.75, 0.25, pytest.approx(0.01)]]


def two_optimizers() -> tuple[nn.Sequential, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return G, [sgd(G[0], 0.1), sgd(G[2], 0.1)]


def step_both(G: nn.Module, opts: list[torch.optim.Optimizer], loss: Callable[[], Tensor] | None = None) -> None:
    G.zero_grad()
    (loss() if loss is not None else G(torch.ones(3, 4)).square().mean()).backward()
    for opt in opts:
        opt.step()


@pytest.mark.parametrize("regularization", ["hook", "loss"])
def test_two_optimizers_for_one_network_train_like_one(regularization: str) -> None:
    policy = {"sparsity_weight": 1e-2, "regularization": regularization}
    seen = []
    for together in (True, False):
        G, opts = two_optimizers()
        if together:
            opts = [sgd(G, 0.1)]
        with rgplug.attach(G, policy=policy) as rg:
            for _ in range(4):
                if regularization == "loss":
                    step_both(G, opts, lambda: G(torch.ones(3, 4)).square().mean() + rg.regularization_loss("G"))  # noqa: B023
                else:
                    step_both(G, opts)
            seen.append(snapshot(rg))
            assert rg.networks["G"].iteration == 4
    assert not different(*seen)


def test_two_optimizers_do_not_count_an_iteration_twice() -> None:
    G, opts = two_optimizers()
    rg = rgplug.attach(G, policy=RAMP)
    for _ in range(4):
        step_both(G, opts)
    net = rg.networks["G"]
    assert (net.counts.density_steps / net.iteration <= 1).all()  # the mean density, from which FLOPs are computed


def test_iterations_do_not_go_back_when_one_optimizer_steps_less_often() -> None:
    G, opts = two_optimizers()
    rg = rgplug.attach(G, policy=RAMP)
    for i in range(6):
        step_both(G, opts if i % 3 == 2 else opts[:1])
    assert rg.networks["G"].iteration == 6


def test_a_group_added_later() -> None:
    G = nn.Sequential(linear([[1.0, 0.02]]), linear([[1.0], [0.02]]))
    opt = sgd(G[0])
    rg = rgplug.attach(G, policy={**RAMP, "sparsity_weight": 0.25})
    set_grad(G[0], 0.0), set_grad(G[1], 0.0)
    opt.step()
    assert [w.steps for w in rg.weights("G")] == [1, 0]
    opt.add_param_group({"params": list(G[1].parameters()), "lr": 2.0})
    opt.step()
    assert [w.steps for w in rg.weights("G")] == [2, 1]
    assert rg.weights("G")[1].threshold.tolist() == [0.5, 0.5]  # 2 * 0.25 * exp(0): the new group's lr
    assert G[1].weight.tolist() == [[1], [0]]


# ---- steps beside, inside and instead of others ------------------------------------------------------------------

SPARSE = {"base": "sparse-uniform", "masks.density": 0.5}


def pruned_non_zeros(rg: rgplug.Controller, label: str) -> int:
    return sum(int(torch.count_nonzero(w.param[~w.mask])) for w in rg.weights(label))


def test_two_threads_lose_no_step() -> None:
    nets = {label: nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)) for label in ("G", "D")}
    rg = rgplug.attach(nets["G"], nets["D"], {**FIXED, "kernels": "eager"})
    started = threading.Barrier(2)

    def train(net: nn.Module) -> None:
        opt = adam(net)
        started.wait()
        for _ in range(100):
            opt.zero_grad()
            net(torch.ones(4, 8)).square().mean().backward()
            opt.step()

    threads = [threading.Thread(target=train, args=(net,)) for net in nets.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {label: net.iteration for label, net in rg.networks.items()} == {"G": 100, "D": 100}
    assert pruned_non_zeros(rg, "G") == pruned_non_zeros(rg, "D") == 0


def test_an_optimizer_stepped_inside_the_closure_of_another() -> None:
    G, D = nn.Linear(8, 64), nn.Linear(64, 1)
    rg = rgplug.attach(G, D, SPARSE)
    opt_G, opt_D = adam(G), adam(D)

    def closure() -> Tensor:
        opt_D.zero_grad()
        D(G(torch.randn(4, 8)).detach()).mean().backward()
        opt_D.step()
        opt_G.zero_grad()
        loss = -D(G(torch.randn(4, 8))).mean()
        loss.backward()
        return loss

    for _ in range(5):
        opt_G.step(closure)
    assert {label: net.iteration for label, net in rg.networks.items()} == {"G": 5, "D": 5}
    assert pruned_non_zeros(rg, "D") == 0


class Fails(torch.optim.SGD):
    """A step that moves weights, and then raises."""

    fail = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fail:
            raise RuntimeError("out of memory")
        return loss


def broken_step(G: nn.Module, opt: torch.optim.Optimizer) -> weakref.ref[Tensor]:
    large = torch.zeros(1000)
    found = weakref.ref(large)
    opt.zero_grad()
    G(torch.ones(2, 8)).mean().backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        opt.step()
    return found


def test_a_step_that_raises_keeps_no_frame_alive() -> None:
    G = nn.Linear(8, 8)
    rgplug.attach(G, policy=SPARSE)
    opt = Fails(G.parameters(), lr=1.0)
    opt.fail = True
    assert broken_step(G, opt)() is None


def test_a_step_that_raises_leaves_the_learning_rate_as_it_was() -> None:
    G = nn.Linear(8, 8)
    rg = rgplug.attach(G, policy={"base": "re-gan", "cycle": {"warm_up": 0, "period": 1, "lr": 0.1}})
    opt = Fails(G.parameters(), lr=1.0)
    set_grad(G, 0.0)
    opt.step()
    opt.fail = True
    broken_step(G, opt)  # a dense phase's, whose rate is a tenth
    assert opt.state_dict()["param_groups"][0]["lr"] == 1.0
    assert rg.networks["G"].iteration == 1


def test_what_a_step_that_raised_wrote_at_pruned_places_is_not_taken_for_the_hosts() -> None:
    """Momentum moves pruned entries, and the hook that undoes it does not run."""
    G = nn.Linear(8, 8, bias=False)
    opt = Fails(G.parameters(), lr=0.5, momentum=0.9)
    rg = rgplug.attach(G, policy=FIXED)
    for _ in range(2):
        set_grad(G, 0.0)
        opt.step()
    (w,) = rg.weights("G")
    waiting = w.dormant.clone()
    opt.state[G.weight]["momentum_buffer"].fill_(1.0)
    opt.fail = True
    broken_step(G, opt)
    opt.fail = False
    set_grad(G, 0.0)
    opt.step()
    assert pruned_non_zeros(rg, "G") == 0
    still = ~w.mask & (waiting != 0)
    assert still.any()
    assert torch.equal(w.dormant[still], waiting[still])


def test_two_controllers_on_one_optimizer_leave_its_rate_alone() -> None:
    G, D = nn.Linear(8, 8), nn.Linear(8, 8)
    policy = {"base": "re-gan", "cycle": {"networks": ["G"], "warm_up": 0, "period": 1, "lr": 0.1}}
    rgplug.attach(G, None, policy)
    rgplug.attach(D, None, policy)
    opt = torch.optim.SGD([*G.parameters(), *D.parameters()], lr=1.0)
    rates = []
    opt.register_step_pre_hook(lambda *_: rates.append(opt.param_groups[0]["lr"]))
    for _ in range(4):
        set_grad(G, 0.0), set_grad(D, 0.0)
        opt.step()
        assert opt.param_groups[0]["lr"] == 1.0
    assert rates == [1.0, 0.1, 1.0, 0.1]  # sparse and dense phases in turns; a tenth once, not twice


# ---- auxiliary steps ---------------------------------------------------------------------------------------------


def test_an_auxiliary_step_is_no_iteration_and_has_no_regularizer() -> None:
    G = linear([[8.0, 4.0]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy=RAMP)
    set_grad(G, [[0.25, 0.0]])
    with rg.auxiliary_step("G"):
        opt.step()
    (w,) = rg.weights("G")
    assert w.threshold.tolist() == [0]
    assert G.weight.tolist() == [[7.75, 4.0]]  # the host's own step counts
    assert (w.steps, rg.networks["G"].iteration) == (0, 0)
    assert rg.networks["G"].counts.density_steps.sum() == 0
    opt.step()
    assert (w.steps, rg.networks["G"].iteration) == (1, 1)
    assert w.threshold.tolist() == [1]


def test_the_task_gradient_of_an_auxiliary_step_moves_thresholds() -> None:
    G = linear([[1.0, 0.5]])
    opt = sgd(G)
    rg = rgplug.attach(G, policy={"sparsity_weight": 1.0})
    set_grad(G, [[0.0, 0.5]])
    with rg.auxiliary_step():
        opt.step()
    # -dL/dt = A theta H'(|0.5| - 0) = 0.5 * 0.5 * 0.4
    assert rg.weights("G")[0].threshold.item() == pytest.approx(0.1)


# ---- optimizers that are no torch.optim.Optimizer ----------------------------------------------------------------


def test_a_hand_written_optimizer_between_before_and_after_step() -> None:
    G = linear([[1.0, 0.5], [0.25, 0.02]])
    policy = {"sparsity_weight": 0.0, "threshold": {"init": 0.1, "task_gradient": False, "optimizer": {"lr": 0.01}}}
    rg = rgplug.attach(G, policy=policy)
    set_grad(G, [[0.5, 0.25], [0.125, 9.0]])
    rg.before_step("G")
    assert G.weight.grad.tolist() == [[0.5, 0.25], [0.125, 0.0]]
    with torch.no_grad():
        G.weight.sub_(torch.tensor([[0.5, 0.25], [0.125, 9.0]]))  # ignores the mask
    rg.after_step("G")
    assert G.weight.tolist() == [[0.5, 0.25], [0.125, 0.0]]
    assert rg.weights("G")[0].theta[1, 1].item() == pytest.approx(0.02)
    assert rg.networks["G"].iteration == 1


def test_hand_written_optimizers_need_settings_for_the_thresholds() -> None:
    G = linear([[1.0, 0.5]])
    rg = rgplug.attach(G)
    set_grad(G, 1.0)
    rg.before_step("G")
    with pytest.raises(RgplugError, match=r"policy\.threshold\.optimizer: \{lr: \.\.\.\}"):
        rg.after_step("G")


# ---- lifetime ----------------------------------------------------------------------------------------------------


def test_nothing_is_kept_alive_after_detach() -> None:
    host = Host()
    rg = rgplug.attach(host.G, host.D, TASK)
    host.run(1)
    rg.detach()
    alive = [weakref.ref(x) for x in (host.G, host.D, host.opt["G"], rg)]
    del host, rg
    gc.collect()
    assert [a() for a in alive] == [None] * 4


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("policy", [TASK, "re-gan", "stu-gan", {"base": "adapt", "exploration": {"every": 2}}])
def test_networks_without_detach_go_and_take_everything_along(explicit: bool, trained: bool, policy: Any) -> None:
    hooks = _global_optimizer_pre_hooks
    before = len(hooks)
    alive = []
    for _ in range(3):
        host = Host()
        rg = rgplug.attach(host.G, host.D, policy, optimizers=host.opt if explicit else None)
        if trained:
            host.run(1)
        alive += [weakref.ref(x) for x in (host.G, host.D, host.opt["G"], rg, rg.hooks)]
        del host, rg
    gc.collect()
    assert not any(a() for a in alive)
    assert len(hooks) == before


def test_pruning_goes_on_where_nobody_keeps_the_controller() -> None:
    expected = trajectory()
    host = Host()
    nets = rgplug.attach(host.G, host.D, TASK).networks
    gc.collect()
    host.run(6)
    for label, net in nets.items():
        for w in net.weights:
            assert torch.equal(w.mask, expected[f"{label}.{w.name}.mask"])


def test_two_pairs_in_one_process_do_not_touch_each_other() -> None:
    expected = trajectory()
    host, other = Host(), Host(seed=1)
    rg = rgplug.attach(host.G, host.D, TASK)
    rgplug.attach(other.G, other.D, RAMP)
    for _ in range(6):
        host.run(1)
        other.run(1)
    assert not different(snapshot(rg), expected)


def test_gradients_in_a_pruned_layer_are_dense_between_backward_and_step() -> None:
    """Growth rules and DDP need the gradient where the weight is pruned; it is masked when the optimizer steps."""
    G = linear([[1.0, 0.02]])
    opt = sgd(G)
    rg = rgplug.attach(G)
    pruned_at(rg, "G", 0.1)
    G(torch.ones(1, 2)).sum().backward()
    assert G.weight.grad.tolist() == [[1, 1]]
    opt.step()
    assert G.weight.grad.tolist() == [[1, 0]]
