"""What of a script's own policy stays under a method of a comparison: the same for a command and for functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hosts_of_comparisons as hosts
import pytest
import tiny

import rgplug
from rgplug import Policy, RgplugError, reading, schema
from rgplug.baselines import compare
from rgplug.baselines.command import Command
from rgplug.baselines.compare import plan
from rgplug.baselines.host import Attachment
from rgplug.baselines.methods import Scale
from rgplug.baselines.run import Training
from rgplug.policy import from_environment


def training(method: str, out: Path, density: float | None = None, common: Any = None) -> Training:
    """The last training of a method in a comparison over a command."""
    host = Command(("python", "train.py", "{out}"))
    tasks = plan([method], host, out, 1, common or {}, Scale(density), 1, 0.2, None, 1, {}, None)
    (found,) = (task for task in tasks if task.baseline.name == method)
    return found.trainings()[-1]


def by_command(own: Any, asked: Training, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """The policy that a script with its own one has in that training."""
    assert isinstance(asked.host, Command)
    asked.root.mkdir(exist_ok=True)
    path = asked.root / "policy.yaml"
    path.write_text(reading.dump(schema.plain(asked.host._policy(asked))), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setenv("RGPLUG_POLICY", str(path))
        return from_environment(Policy.load(own))


def by_functions(own: Any, asked: Training) -> Policy:
    rg = Attachment(asked.common, {**asked.policy, "run_dir": str(asked.folder)})(*tiny.build("plain"), policy=own)
    rg.detach()
    return rg.policy


UNIFORM = {"method": "sparse", "masks": {"distribution": "uniform", "density": 0.3, "seed": 5}}
ON_G = {
    "base": "rg-gan",
    "threshold": {"networks": ["G"], "task_gradient": False, "units": "layer_std"},
    "regeneration": {"recurrent": ["G"], "augmented": {"networks": ["G"], "window": 2, "weights": [0.5, 0.5]}},
}


@pytest.mark.parametrize(
    ("own", "method", "expected"),
    [
        # what tells methods apart is the method's; the rest that it reads is the script's
        (ON_G, "rg-gan", {"threshold.networks": ["G", "D"], "threshold.task_gradient": True}),
        (ON_G, "rg-gan", {"regeneration.recurrent": True, "regeneration.augmented.networks": ["G", "D"]}),
        (ON_G, "rg-gan", {"threshold.units": "layer_std", "regeneration.augmented.window": 2}),
        (ON_G, "rg-gan-ar-d", {"threshold.networks": ["D"], "regeneration.augmented.networks": ["D"]}),
        ({"base": "rg-gan", "regeneration.augmented": False}, "rg-gan", {"regeneration.augmented.window": 5}),
        (UNIFORM, "sparse", {"masks.distribution": "erk", "masks.density": 0.3, "masks.seed": 5}),
        (UNIFORM, "sparse-er", {"masks.distribution": "er"}),
        ({"method": "sparse", "masks.criterion": "magnitude"}, "stu-gan", {"masks.criterion": "random"}),
        ({"method": "sparse", "masks.file": "mine.safetensors"}, "rigl", {"masks.file": None}),
        ({"base": "small-dense", "masks.channels": True}, "sparse-global", {"masks.channels": False}),
        (
            {"base": "re-gan", "cycle": {"networks": ["D"], "lr": 0.5}},
            "re-gan",
            {"cycle.networks": ["G"], "cycle.lr": 0.5},
        ),
    ],
)
def test_a_script_s_policy_makes_no_other_method(
    own: Any, method: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = training(method, tmp_path / "out")
    for policy in (by_command(own, asked, monkeypatch), by_functions(own, asked)):
        found = schema.leaves(policy.to_dict())
        assert {key: found[key] for key in expected} == expected


def test_keys_for_all_methods_count_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = training("sparse", tmp_path / "out", common={"masks.distribution": "uniform"})
    assert by_command({"base": "sparse-er"}, asked, monkeypatch).masks.distribution == "uniform"
    assert by_functions({"base": "sparse-er"}, asked).masks.distribution == "uniform"


@pytest.mark.parametrize(
    ("own", "method"),
    [
        ({"base": "rg-gan", "target": {"G": 0.5, "D": 0.5, "by": 10}}, "rg-gan-ar-g"),
        ({"base": "rg-gan", "sparsity_weight": {"G": 1e-9, "D": 1e-8}}, "rg-gan-dp-d"),
        ({"base": "rg-gan", "granularity": {"D": "kernel"}}, "re-gan"),
        ({"method": "sparse", "masks.sampling": "bernoulli"}, "sparse-global"),
        ({"method": "sparse", "granularity": "filter", "masks": {"channels": True, "distribution": "uniform"}}, "set"),
    ],
)
def test_keys_that_a_method_has_no_use_for_end_no_run(
    own: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = by_command(own, training(method, tmp_path / "out"), monkeypatch)
    rgplug.attach(*tiny.build("plain"), policy).detach()


def test_a_ticket_starts_as_a_ticket_whatever_the_script_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewound are both networks, without the moments; the dense run keeps those that fine-tuning goes on from."""
    own = {
        "base": "stu-gan",
        "start": {"weights": "mine.safetensors", "networks": ["G"], "optimizers": True},
        "snapshots": {"folder": "mine", "optimizers": False},
    }
    ticket = by_command(own, training("tickets", tmp_path / "out"), monkeypatch)
    assert ticket.start is not None
    assert ticket.start.weights.endswith("dense/seed_0/initial.safetensors")
    assert (ticket.start.networks, ticket.start.optimizers) == (("G", "D"), False)
    dense = by_command(own, training("dense", tmp_path / "out"), monkeypatch)
    assert dense.snapshots is not None
    assert dense.snapshots.optimizers
    assert dense.start is None


def test_a_policy_left_in_the_environment_is_no_method_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be on top of what every method says, in this process: dense and sparse would be one training."""
    monkeypatch.setenv("RGPLUG_POLICY", "left.yaml")
    with pytest.raises(RgplugError, match="RGPLUG_POLICY is set, and the keys of that file would replace those of eve"):
        compare(["dense", "sparse"], hosts.train, hosts.build, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
