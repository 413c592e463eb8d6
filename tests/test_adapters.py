"""What all adapters have in common: where they are called in the wrong place, and how they are undone."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from host_runs import HostRun, folder, tree
from test_hosts import host

from rgplug.adapters import hosting, patching
from rgplug.errors import RgplugError

STYLEGAN2 = "this is not StyleGAN2-ADA as rgplug knows it (version d72cc7d)"
BIGGAN = "this is not DiffAugment-BigGAN as rgplug knows it (version 0b63395)"
BIGGAN_PYTORCH = "this is not BigGAN-PyTorch as rgplug knows it (version 9845943)"
FASTGAN = "this is not FastGAN as rgplug knows it (version 1a848e5)"


@pytest.mark.host
@pytest.mark.parametrize(
    ("host", "adapter", "without", "sentences"),
    [
        ("stylegan2-ada", "fastgan", "", (FASTGAN, "there is no module models")),
        ("stylegan2-ada", "stylegan2_ada", "metrics.metric_main.calc_metric", (STYLEGAN2, "has no calc_metric")),
        ("stylegan2-ada", "stylegan2_ada", "torch_utils.training_stats.report0", (STYLEGAN2, "has no report0")),
        ("fastgan", "stylegan2_ada", "", (STYLEGAN2, "there is no module training.training_loop")),
        ("fastgan", "diffaugment", "", (BIGGAN, "neither a module training.training_loop (StyleGAN2) nor BigGAN")),
        ("fastgan", "fastgan", "operation.load_params", (FASTGAN, "operation has no load_params")),
        ("biggan", "stylegan2_ada", "", (STYLEGAN2, "there is no module training.training_loop")),
        ("biggan", "diffaugment", "utils.load_weights", (BIGGAN, "utils has no load_weights")),
        ("biggan-pytorch", "biggan", "utils.ema", (BIGGAN_PYTORCH, "utils has no ema")),
        ("fastgan", "biggan", "", (BIGGAN_PYTORCH, "there is no module BigGAN")),
    ],
)
def test_the_wrong_repository(
    host: str, adapter: str, without: str, sentences: tuple[str, ...], tmp_path: Path
) -> None:
    before = tree(folder(host))
    run = HostRun(host, tmp_path)
    needed = "from operation import get_dir, copy_G_params\n" if (host, adapter) == ("fastgan", "fastgan") else ""
    (tmp_path / "train.py").write_text(f"{needed}from rgplug.adapters import {adapter}\n{adapter}.install()\n")
    environment = {"RGPLUG_TEST_WITHOUT": without} if without else {}
    done = run(tmp_path / "train.py", check=False, **environment)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert all(sentence in last for sentence in ("RgplugError", "install()", *sentences)), done.stderr[-2000:]
    assert tree(folder(host)) == before


class Owner:
    value = 1


def test_patches_are_undone_in_reverse_order() -> None:
    patches, namespace = hosting.Patches(), {"value": 1}
    for factor in (2, 3):
        patches.wrap(Owner, "value", lambda x, factor=factor: x * factor)
        patches.wrap(namespace, "value", lambda x, factor=factor: x * factor)
    assert (Owner.value, namespace["value"]) == (6, 6)
    patches.shadow(namespace, "zip", lambda original: lambda *x: list(original(*x))[::-1])
    assert eval("zip('ab', 'cd')", namespace) == [("b", "d"), ("a", "c")]
    patches.undo()
    assert (Owner.value, namespace["value"]) == (1, 1)
    assert "zip" not in namespace


def adapter() -> hosting.Adapter:
    return hosting.Adapter(hosting.Host("A host", "abc"))


def test_install_once_per_process(capsys: pytest.CaptureFixture[str]) -> None:
    ours, calls = adapter(), []

    def hook(patches: hosting.Patches, policy: object) -> str:
        calls.append(policy)
        return "this and that"

    ours.install("rg-gan", hook)
    ours.install("rg-gan", hook)
    assert len(calls) == 1
    assert capsys.readouterr().out == "rgplug: A host abc: hooked this and that; policy rg-gan\n"
    with pytest.raises(RgplugError, match=r"A host is installed already.*uninstall\(\) first"):
        ours.install("dense", hook)
    ours.uninstall()
    ours.install("dense", hook)
    assert len(calls) == 2


def test_an_install_that_fails_leaves_nothing_behind() -> None:
    def hook(patches: hosting.Patches, policy: object) -> str:
        patches.wrap(Owner, "value", lambda x: x + 1)
        raise hosting.Host("A host", "abc").unknown("there is no engine")

    ours = adapter()
    with pytest.raises(RgplugError, match=r"this is not A host as rgplug knows it \(version abc\): there is no engine"):
        ours.install("rg-gan", hook)
    assert Owner.value == 1
    assert ours.patches is None


def test_a_wrong_policy_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RgplugError, match=r"policy file .*missing\.yaml cannot be read"):
        adapter().install(str(tmp_path / "missing.yaml"), lambda patches, policy: "")


SCRIPT = '"""A script."""\nimport os\nfrom sys import (\n    path,\n)\n\nx = 1\nif x:\n    import re\n'


def test_two_lines_after_the_last_import_at_top_level() -> None:
    patched = patching.with_two_lines(SCRIPT, "fastgan", "policy.yaml", every=10, other=None)
    lines = patched.splitlines()
    assert lines[5:7] == [
        "from rgplug.adapters import fastgan",
        "fastgan.install(policy='policy.yaml', every=10)",
    ]
    assert [line for line in lines if line not in lines[5:7]] == SCRIPT.splitlines()
    assert [x for x in patching.diff(SCRIPT, patched).splitlines() if x[:1] == "+"][1:] == [f"+{x}" for x in lines[5:7]]
    with pytest.raises(RgplugError, match="imports rgplug already"):
        patching.with_two_lines(patched, "fastgan")
    with pytest.raises(RgplugError, match="imports nothing"):
        patching.with_two_lines("x = 1\n", "fastgan")


def test_patched_copy_lies_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"\xef\xbb\xbf" + SCRIPT.encode())  # some hosts begin with a byte order mark
    copy = patching.patched_copy(tmp_path / "train.py", "fastgan")
    assert copy == tmp_path / "train_rgplug.py"
    compile(copy.read_text(), str(copy), "exec")
    assert (tmp_path / "train.py").read_bytes().endswith(SCRIPT.encode())


def names_of(*owners: object) -> dict[str, object]:
    """Everything that the owners hold, by name."""
    found = {}
    for owner in owners:
        held = owner if isinstance(owner, dict) else vars(owner)
        found.update({f"{id(owner)}.{k}": v for k, v in held.items() if not k.startswith("__") or k == "__init__"})
    return found


@pytest.mark.host
def test_uninstall_undoes_everything(capsys: pytest.CaptureFixture[str]) -> None:
    from rgplug.adapters import biggan, diffaugment, fastgan, stylegan2_ada

    for name, adapter in (("stylegan2-ada", stylegan2_ada), ("diffaugment-stylegan2", diffaugment)):
        with host(name):
            modules = [
                importlib.import_module(m)
                for m in ("training.training_loop", "dnnlib.util", "torch_utils.training_stats", "metrics.metric_main")
            ]
            before = names_of(*modules)
            adapter.install("dense")
            after = names_of(*modules)
            assert sum(after[k] is not v for k, v in before.items()) == 7
            adapter.uninstall()
            assert all(names_of(*modules)[k] is v for k, v in before.items())
    with host("fastgan"):
        script: dict[str, object] = {}
        exec("from operation import get_dir, copy_G_params, load_params\nfrom tqdm import tqdm", script)
        models = importlib.import_module("models")
        owners = (script, importlib.import_module("operation"), torch, models.Generator, models.Discriminator)
        before = names_of(*owners)
        exec("from rgplug.adapters import fastgan\nfastgan.install('dense')", script)
        assert sum(names_of(*owners)[k] is not v for k, v in before.items()) == 11
        assert script["zip"] is not zip
        fastgan.uninstall()
        assert "zip" not in script
        assert all(names_of(*owners)[k] is v for k, v in before.items())
    with host("biggan-pytorch"):
        utils, functions, *models = map(importlib.import_module, ("utils", "train_fns", "BigGAN", "BigGANdeep"))
        networks = [network for model in models for network in (model.Generator, model.Discriminator)]
        owners = (utils, functions, utils.ema, utils.MetricsLogger, *networks)
        before = names_of(*owners)
        biggan.install("dense")
        assert sum(names_of(*owners)[k] is not v for k, v in before.items()) == 4 + 3 + 2 + 2
        biggan.uninstall()
        assert all(names_of(*owners)[k] is v for k, v in before.items())
    assert capsys.readouterr().out.count("rgplug: ") == 4


@pytest.mark.host
def test_fastgan_from_another_module() -> None:
    from rgplug.adapters import fastgan

    with host("fastgan"), pytest.raises(RgplugError, match=r"train\.py does not import get_dir from operation"):
        fastgan.install("dense")


def test_an_interval_that_is_none() -> None:
    from rgplug.adapters import diffaugment, fastgan

    with pytest.raises(RgplugError, match=r"install\(every=0\) has to be a number of iterations, 1 or more"):
        fastgan.install(every=0)
    with pytest.raises(RgplugError, match=r"DiffAugment-BigGAN measures FID and IS_mean"):
        diffaugment.install(metric="fid50k_full")
