"""Ranks that are not alike, or do not do the same: a clear error on every rank, in time, instead of a hang.

All stories run one after the other in one group of processes, since starting them takes most of the time.
"""

from __future__ import annotations

import datetime
import itertools
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import adam
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rgplug
from rgplug import meetings
from rgplug.errors import RgplugError
from rgplug.ranks import digest, first_difference

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed"),
    pytest.mark.filterwarnings("ignore"),
]
TIMEOUT = 60.0
POLICY = {"sparsity_weight": 1e-2, "threshold": {"init": 0.05, "units": "layer_std"}, "kernels": "eager"}
UNITS_ONLY = {**POLICY, "threshold": {"init": 0.0, "units": "layer_std"}}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()


def steps(rank: int, seed: int, policy: dict[str, Any], change: Callable[[Any], None] = lambda rg: None) -> float:
    G = network(seed)
    rg = rgplug.attach(G, None, policy)
    parallel = DistributedDataParallel(G)  # gives all ranks the first one's weights
    change(rg)
    optimizer = adam(G)
    try:
        for _ in range(3):
            step(parallel, optimizer)
        return float(rg.density("G"))
    finally:
        rg.detach()


# ---- the stories: what each rank does, and returns or raises --------------------------------------------------------


def equal(rank: int, world: int) -> Any:
    held: list[str] = []
    original = meetings.exchange
    meetings.exchange = lambda key, *rest: held.append(key) or original(key, *rest)  # type: ignore[func-returns-value]
    try:
        return steps(rank, 0, POLICY), len(held)
    finally:
        meetings.exchange = original


def unequal_without_ddp(rank: int, world: int) -> Any:
    G = network(0)
    if rank == world - 1:
        with torch.no_grad():
            G[2].weight[1, 3] += 1e-6
    rg = rgplug.attach(G, None, POLICY)
    try:
        step(G, adam(G))
    finally:
        rg.detach()


def unequal_and_ddp(rank: int, world: int) -> Any:
    return steps(rank, rank, POLICY)


def unequal_and_synchronized(rank: int, world: int) -> Any:
    return steps(rank, rank, POLICY, lambda rg: rg.synchronize())


def unequal_at_threshold_zero(rank: int, world: int) -> Any:
    """Nothing is pruned before DDP has made the weights equal, and units are measured anew after that."""
    return steps(rank, rank, UNITS_ONLY)


def unequal_thresholds(rank: int, world: int) -> Any:
    return steps(rank, 0, POLICY, lambda rg: rg.weights("G")[1].threshold[2].add_(0.5 * (rank == 1)))


def unequal_units(rank: int, world: int) -> Any:
    def change(rg: Any) -> None:
        rg.mask_gradients()  # the first step's work: units are final now
        rg.weights("G")[0].scale.mul_(1 + rank)

    return steps(rank, 0, POLICY, change)


def unequal_masks(rank: int, world: int) -> Any:
    """Random masks of another seed on one rank. DDP hands the first rank's masked weights to ranks of other masks."""
    policy = {"base": "stu-gan", "masks.density": 0.5, "masks.seed": rank, "kernels": "eager"}
    return steps(rank, 0, policy)


def loaded_states_differ(rank: int, world: int) -> Any:
    G = network(0)
    rg = rgplug.attach(G, None, POLICY)
    optimizer = adam(G)
    step(G, optimizer)
    state = rg.state_dict()
    if rank == 1:
        state["networks"]["G"]["weights"]["2.weight"]["threshold"][0] += 0.5
    rg.load_state_dict(state)
    try:
        step(G, optimizer)
    finally:
        rg.detach()


def first_rank_loads_and_synchronizes(rank: int, world: int) -> Any:
    def change(rg: Any) -> None:
        if rank == 0:
            state = rg.state_dict()
            state["networks"]["G"]["weights"]["2.weight"]["threshold"][0] += 0.5
            rg.load_state_dict(state)
        rg.synchronize()

    return steps(rank, 0, POLICY, change)


def last_rank_skips_end_epoch(rank: int, world: int) -> Any:
    rg = rgplug.attach(network(0), None, POLICY)
    try:
        return rg.end_epoch(1.0).epoch if rank < world - 1 else "skipped"
    finally:
        rg.detach()


def first_rank_skips_end_epoch(rank: int, world: int) -> Any:
    rg = rgplug.attach(network(0), None, POLICY)
    try:
        return rg.end_epoch(1.0).epoch if rank else "skipped"
    finally:
        rg.detach()


def only_the_first_rank_steps(rank: int, world: int) -> Any:
    G = network(0)
    rg = rgplug.attach(G, None, POLICY)
    try:
        return step(G, adam(G)) if rank == 0 else "skipped"
    finally:
        rg.detach()


def another_call(rank: int, world: int) -> Any:
    rg = rgplug.attach(network(0), None, POLICY)
    try:
        return rg.end_epoch(1.0) if rank == 0 else rg.synchronize()
    finally:
        rg.detach()


def one_rank_is_late(rank: int, world: int) -> Any:
    """The first one measures for longer than it would wait for the others."""
    rg = rgplug.attach(network(0), None, POLICY)
    if rank == 0:
        time.sleep(1.5 * meetings.PATIENCE)
    try:
        return rg.end_epoch(3.0 if rank == 0 else None).metric
    finally:
        rg.detach()


def evaluation_is_skipped(rank: int, world: int) -> Any:
    rg = rgplug.attach(network(0), None, POLICY)

    class Measured:
        def measure(self, *_: Any) -> float:
            return 1.0

    rg._evaluation = Measured()  # type: ignore[assignment]
    try:
        return rg.evaluate() if rank == 0 else "skipped"
    finally:
        rg.detach()


def several_controllers(rank: int, world: int) -> Any:
    """A dry run on one rank alone, and two pairs at once: nobody takes one for the other."""
    first, second, third = network(0), network(1), network(2)
    if rank == 1:
        image = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2)))
        assert rgplug.check(image, make_batch=lambda: (torch.randn(2, 4), torch.randn(2, 4))).ok
    a, b = rgplug.attach(first, second, POLICY), rgplug.attach(third, None, POLICY)
    for net in (second, third, first):
        step(net, adam(net))
    epochs = [rg.end_epoch(1.0).epoch for rg in (a, b, b, a, a)]
    a.detach()
    b.detach()
    return epochs


def timeout_is_the_groups(rank: int, world: int) -> Any:
    return meetings._group_timeout()


def notes_are_taken_back(rank: int, world: int) -> Any:
    rg = rgplug.attach(network(0), None, POLICY)
    for _ in range(3):
        rg.end_epoch(1.0)
    dist.barrier()
    store, number = meetings._store(), rg._meetings._number
    rg.detach()
    return [store.check([f"rgplug/{number}/call {n}/{r}" for r in range(world)]) for n in (1, 2, 3)]


STORIES = [v for v in list(globals().values()) if callable(v) and getattr(v, "__module__", "") == __name__]
STORIES = [s for s in STORIES if s.__code__.co_varnames[: s.__code__.co_argcount] == ("rank", "world")]


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    limit = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=limit)
    steps(rank, 0, UNITS_ONLY)  # imports of a first step take their time
    meetings.PATIENCE, meetings.SHARE = 2.0, 8 / TIMEOUT
    told = {}
    for i, story in enumerate(STORIES):
        meetings._numbers = itertools.count(100 * (i + 1))  # a rank that skipped a meeting is behind
        begin = time.monotonic()
        try:
            outcome: Any = story(rank, world)
        except RgplugError as error:
            outcome = f"RgplugError: {error}"
        told[story.__name__] = (outcome, time.monotonic() - begin)
        dist.barrier()
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each story was on each rank."""
    world = request.param
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(world, port, str(folder)), nprocs=world)
    ranks = [torch.load(Path(folder) / f"{r}.pt", weights_only=False) for r in range(world)]
    for name in ranks[0]:
        assert max(r[name][1] for r in ranks) < 30, name  # long before the group's timeout
    return {name: [r[name][0] for r in ranks] for name in ranks[0]}


def test_equal_ranks_compare_once(told: dict[str, list[Any]]) -> None:
    assert len(set(told["equal"])) == 1
    density, held = told["equal"][0]
    assert 0 < density < 1
    assert held == 1  # three steps


@pytest.mark.parametrize(
    ("story", "different", "what"),
    [
        ("unequal_without_ddp", -1, "the weight of G.2.weight"),
        ("unequal_and_ddp", 1, "the weight of G.0.weight"),
        ("unequal_thresholds", 1, "the threshold of G.2.weight"),
        ("unequal_units", 1, "the unit of G.0.weight"),
        ("unequal_masks", 1, "the weight of G.0.weight"),
        ("loaded_states_differ", 1, "the threshold of G.2.weight"),
    ],
)
def test_unequal_ranks_are_an_error_on_all_of_them(
    told: dict[str, list[Any]], story: str, different: int, what: str
) -> None:
    for outcome in told[story]:
        rank = different % len(told[story])
        assert outcome.startswith(
            f"RgplugError: rgplug found ranks 0 and {rank} unequal at the first step of G: {what}"
        )
        assert "rg.synchronize() on every rank" in outcome


@pytest.mark.parametrize(
    "story", ["unequal_and_synchronized", "unequal_at_threshold_zero", "first_rank_loads_and_synchronizes"]
)
def test_ranks_that_are_equal_by_the_first_step_train(told: dict[str, list[Any]], story: str) -> None:
    assert len(set(told[story])) == 1
    assert isinstance(told[story][0], float)


@pytest.mark.parametrize(
    ("story", "place", "first_is_missing"),
    [
        ("last_rank_skips_end_epoch", "rg.end_epoch(...)", False),
        ("first_rank_skips_end_epoch", "rg.end_epoch(...)", True),
    ],
)
def test_a_rank_that_skips_end_epoch_is_named(
    told: dict[str, list[Any]], story: str, place: str, first_is_missing: bool
) -> None:
    outcomes = told[story]
    missing = 0 if first_is_missing else len(outcomes) - 1
    for rank, outcome in enumerate(outcomes):
        if rank == missing:
            assert outcome == "skipped"
        else:
            assert outcome.startswith("RgplugError: rgplug waited")
            assert (
                f"at {place} on rank {rank}, and rank {missing} did not come; every rank has to call {place}" in outcome
            )


@pytest.mark.parametrize(
    ("story", "place"),
    [
        ("only_the_first_rank_steps", "the first step of G"),
        ("evaluation_is_skipped", "rg.evaluate(...)"),
    ],
)
def test_what_the_first_rank_does_alone(told: dict[str, list[Any]], story: str, place: str) -> None:
    first, *others = told[story]
    assert set(others) == {"skipped"}
    named = "rank 1" if len(others) == 1 else "ranks 1, 2"
    assert f"at {place} on rank 0, and {named} did not come" in first


def test_different_calls_are_told_at_once(told: dict[str, list[Any]]) -> None:
    for outcome in told["another_call"]:
        assert "rank 0 at rg.end_epoch(...), rank 1 at rg.synchronize()" in outcome


def test_a_first_rank_that_measures_is_waited_for(told: dict[str, list[Any]]) -> None:
    assert set(told["one_rank_is_late"]) == {3.0}


def test_controllers_and_dry_runs_do_not_meet_each_other(told: dict[str, list[Any]]) -> None:
    assert all(epochs == [1, 1, 2, 2, 3] for epochs in told["several_controllers"])


def test_the_store_stays_small(told: dict[str, list[Any]]) -> None:
    assert set(told["timeout_is_the_groups"]) == {TIMEOUT}
    assert all(left == [False, False, True] for left in told["notes_are_taken_back"])


# ---- digests --------------------------------------------------------------------------------------------------------


def test_a_digest_by_hand() -> None:
    """1.0f is 0x3F800000 = 1065353216 and -0.0f is -2^31; weights 1, 3, 5."""
    x = torch.tensor([1.0, 0.0, -0.0])
    assert digest(x).tolist() == [1065353216 - 2**31, 1065353216 - 5 * 2**31]
    assert digest(torch.tensor([True, False, True])).tolist() == [2, 6]
    assert digest(torch.empty(0)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_digest_tells_every_bit_and_place(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = digest(x).tolist()
    monkeypatch.setattr("rgplug.ranks._CHUNK", 3)
    assert digest(x).tolist() == whole
    swapped = x.clone()
    swapped[0, 0], swapped[3, 4] = x[3, 4], x[0, 0]
    changed = x.clone()
    changed[2, 1] = torch.nextafter(x[2, 1].double(), torch.tensor(9.0).double()).to(dtype) + torch.finfo(dtype).eps * 4
    assert whole not in (digest(swapped).tolist(), digest(changed).tolist())
    assert digest(x.t().contiguous().t()).tolist() == whole  # whatever the order in memory


def test_the_first_difference() -> None:
    ours = [["a", "the weight", 1, 2], ["a", "the mask", 3, 4]]
    assert first_difference(ours, [ours[0], ["a", "the mask", 3, 5]]) == ("a", "the mask")
    assert first_difference(ours, ours[:1])[0] == "a"
    assert "what is managed" in first_difference(ours, [["b", "the weight", 1, 2]])[1]
