"""STU-GAN's sparse moving average (Eq. 5) where the average is the repository's own, under the example policies.

Each repository trains with its own train.py and its own update of the average. What every iteration leaves is compared
with Eq. 5, computed here from G's weights and the average of the iteration before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import test_adapter_biggan as biggan
import test_adapter_biggan_pytorch as biggan_pytorch
import test_adapter_fastgan as fastgan
import test_adapter_stylegan2 as stylegan2
import torch
from common import Host
from host_runs import HostRun, cifar, folder, shapes
from numpy.typing import NDArray
from test_no_sync import forbidden

from rgplug.adapters.run import Run
from rgplug.adapters.sparse_average import corrected_
from rgplug.policy import Policy

POLICIES = Path(__file__).parent.parent / "examples" / "policies"
Arrays = dict[str, NDArray[np.float32]]


def test_an_ordinary_update_becomes_equation_5() -> None:
    """beta = 0.75 by hand, entry by entry: goes on; begins; is inactive; has become inactive."""
    weight = torch.tensor([4.0, 8.0, 0.0, 0.0])
    before = torch.tensor([2.0, 0.0, 0.0, 6.0])
    ordinary = torch.tensor([0.75 * 2 + 0.25 * 4, 0.25 * 8, 0.0, 0.75 * 6])
    corrected_(ordinary, weight, torch.tensor([True, True, False, False]), before == 0)
    assert ordinary.tolist() == [2.5, 8.0, 0.0, 0.0]


STU_GAN = {"base": "stu-gan", "masks.density": 0.5, "exploration.every": 2}


def hosts_update(host: Host, average: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for mean, p in zip(average, host.G.parameters()):
            mean.mul_(0.9).add_(p, alpha=0.1)


def test_only_methods_with_a_sparse_average_change_the_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    """Under rg-gan the host's update stays bit for bit; under stu-gan inactive weights are 0. Neither says anything."""
    for policy, sparse in ((STU_GAN, True), ({"threshold.init": 0.2}, False)):
        host, run = Host(), Run(Policy.load(policy))
        run.network("G", host.G)
        run.network("D", host.D)
        average = [p.detach().clone() for p in host.G.parameters()]
        run.averages(lambda average=average: average)
        host.run(3)
        plain = [mean.clone() for mean in average]
        hosts_update(host, plain)
        with run.averaging():
            hosts_update(host, average)
        names = [name for name, _ in host.G.named_parameters()]
        managed = {w.name: w for w in run.controller.weights("G")}
        assert managed
        for name, ours, theirs in zip(names, average, plain):
            if sparse and name in managed:
                assert not ours[~managed[name].mask].any()
                assert not torch.equal(ours, theirs)
            else:
                assert torch.equal(ours, theirs)
        run.evaluated({"fid": 3.0})
        assert "not STU-GAN's" not in capsys.readouterr().out


def test_an_average_in_half_precision_keeps_its_dtype() -> None:
    average = torch.tensor([1.0, 2.0], dtype=torch.float16)
    corrected_(average, torch.tensor([0.5, 8.0]), torch.tensor([True, True]), torch.tensor([False, True]))
    assert (average.dtype, average.tolist()) == (torch.float16, [1.0, 8.0])


def test_an_update_never_waits_for_the_device() -> None:
    host, run = Host(), Run(Policy.load(STU_GAN))
    run.network("G", host.G)
    run.network("D", host.D)
    average = [p.detach().clone() for p in host.G.parameters()]
    run.averages(lambda: average)
    host.run(3)
    with forbidden(), run.averaging():
        hosts_update(host, average)
    assert any(not mean.all() for mean in average)


def test_an_average_that_is_updated_elsewhere_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    host, run = Host(), Run(Policy.load(STU_GAN))
    run.network("G", host.G)
    run.network("D", host.D)
    average = [p.detach().clone() for p in host.G.parameters()]
    run.averages(lambda: average)
    host.run(1)
    for _ in range(2):
        hosts_update(host, average)
        run.evaluated({"fid": 3.0})
    said = [line for line in capsys.readouterr().out.splitlines() if "STU-GAN" in line]
    assert said == [
        "rgplug: the moving average is the host's ordinary one, not STU-GAN's (Eq. 5): its update was not found where "
        "the adapter looks for it"
    ]


@dataclass
class Trained:
    """G and the average as each iteration left them; beta(i): of the update at the end of iteration i, from 0."""

    steps: list[Arrays]
    beta: Callable[[int], float]


def policy(name: str) -> dict[str, object]:
    """The example policy, exchanging after every third step."""
    return {"base": str(POLICIES / name), "exploration": {"every": 3}}


def train_stylegan2(where: Path, witness: dict[str, str]) -> Callable[[int], float]:
    run = HostRun("stylegan2-ada", where / "run", {"RGPLUG_TEST_TICK": "5", "RGPLUG_TEST_ITERATIONS": "14"})
    stylegan2.train(run, run.script("train.py", policy("stylegan2_ada_stu_gan.yaml")), shapes(where, 32), **witness)
    # 10 kimg of half-life, at most 0.05 of the images so far; 4 images an iteration
    return lambda i: 0.5 ** (4 / max(min(10_000, 4 * i * 0.05), 1e-8))


def train_biggan(where: Path, witness: dict[str, str]) -> Callable[[int], float]:
    run = HostRun("biggan", where / "run")
    script = run.script("train.py", policy("diffaugment_biggan_stu_gan.yaml"))
    options = ["--num_epochs=3", "--test_every=4", "--ema_decay=0.9", "--ema_start=0"]
    biggan.train(run, script, cifar(where), *options, **witness)
    return lambda i: 0.9


def train_biggan_pytorch(where: Path, witness: dict[str, str]) -> Callable[[int], float]:
    run = HostRun("biggan-pytorch", where / "run")
    script = run.script("train.py", policy("diffaugment_biggan_stu_gan.yaml"))
    options = ["--num_epochs=1", "--ema_decay=0.9", "--ema_start=0"]
    biggan_pytorch.train(run, script, cifar(where), *options, **witness)
    return lambda i: 0.9


def train_fastgan(where: Path, witness: dict[str, str]) -> Callable[[int], float]:
    run = HostRun("fastgan", where / "run")
    script = run.script("train.py", policy("fastgan_stu_gan.yaml"), every=4)
    fastgan.train(run, script, shapes(where, 256), "--iter=8", **witness)
    return lambda i: 0.999


HOSTS = {
    "stylegan2-ada": train_stylegan2,
    "biggan": train_biggan,
    "biggan-pytorch": train_biggan_pytorch,
    "fastgan": train_fastgan,
}


@pytest.fixture(scope="module", params=list(HOSTS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder(request.param)
    where = tmp_path_factory.mktemp(request.param)
    (where / "steps").mkdir()
    beta = HOSTS[request.param](where, {"RGPLUG_TEST_AVERAGES": str(where / "steps")})
    return Trained([dict(np.load(path)) for path in sorted((where / "steps").glob("*.npz"))], beta)


@pytest.mark.host
def test_the_hosts_average_follows_equation_5(trained: Trained) -> None:
    assert len(trained.steps) >= 8
    begun = exchanged = 0
    for i, (before, after) in enumerate(zip(trained.steps, trained.steps[1:])):
        beta = trained.beta(i)
        for name in [key.removeprefix("live/") for key in after if key.startswith("live/")]:
            weight, average, last = after[f"live/{name}"], after[f"average/{name}"], before[f"average/{name}"]
            ordinary = beta * last.astype(np.float64) + (1 - beta) * weight.astype(np.float64)
            if f"mask/{name}" not in after:
                np.testing.assert_allclose(average, ordinary, rtol=1e-4, atol=1e-6, err_msg=name)
                continue
            active, new = weight != 0, (weight != 0) & (last == 0)
            assert not active[~after[f"mask/{name}"]].any(), name
            assert not average[~active].any(), name
            np.testing.assert_array_equal(average[new], weight[new], err_msg=name)
            going = active & ~new
            np.testing.assert_allclose(average[going], ordinary[going], rtol=1e-4, atol=1e-6, err_msg=name)
            exchanged += int((after[f"mask/{name}"] & ~before[f"mask/{name}"]).sum())
            begun += int(new.sum()) if i else 0
    assert exchanged > 100
    assert begun > 100


@pytest.mark.host
def test_two_processes_have_one_average(tmp_path: Path) -> None:
    """--gpus=2 with gloo: the repository compares the ranks' averages bit for bit at every snapshot, and stops where
    they differ; masks are equal too."""
    run = HostRun("stylegan2-ada", tmp_path / "run", {"RGPLUG_TEST_TICK": "3", "RGPLUG_TEST_ITERATIONS": "8"})
    (tmp_path / "witness").mkdir()
    script = run.script("train.py", policy("stylegan2_ada_stu_gan.yaml"))
    stylegan2.train(run, script, shapes(tmp_path, 32), "--gpus=2", RGPLUG_TEST_WITNESS=str(tmp_path / "witness"))
    ranks = [(tmp_path / "witness" / f"rank{r}.txt").read_text().splitlines() for r in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0])) >= 3
