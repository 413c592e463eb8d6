"""The SNGAN example, on a few random images and at a small width."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sngan_runs import IMAGES, SMALL, Attached, assert_identical, run
from torch import nn

from rgplug.examples import sngan
from rgplug.metrics import layer_macs


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=IMAGES)
    return path


# ----------------------------------------------------------------------------
# Networks.


def test_parameters_and_macs_as_published():
    build, _ = sngan.host(["--data=unused"])
    G, D = build()
    assert [sum(p.numel() for p in net.parameters()) for net in (G, D)] == [4_276_739, 1_053_824]
    macs = layer_macs(G, torch.randn(1, 128)), layer_macs(D, torch.randn(1, 3, 32, 32))
    assert [f"{m.total:.3e}" for m in macs] == ["1.681e+09", "2.721e+08"]


def test_initialization_and_spectral_norm():
    build, _ = sngan.host(["--data=unused", "--width=32"])
    torch.manual_seed(0)
    G, D = build()
    for name, layer in [*G.named_modules(), *D.named_modules()]:
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        normed = hasattr(layer, "parametrizations")
        assert normed == any(layer is m for m in D.modules()), name
        assert layer.bias is None or (layer.bias == 0).all()
        weight = layer.parametrizations.weight.original if normed else layer.weight
        area = weight[0, 0].numel()
        bound = (6 / ((weight.shape[0] + weight.shape[1]) * area)) ** 0.5  # of a uniform distribution
        bound *= 2**0.5 if area == 9 and weight.shape[0] != 3 else 1  # to_rgb is in no residual branch
        assert 0.85 * bound < weight.detach().abs().max() <= bound * (1 + 1e-6), name
        if normed:
            sigma = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert sigma == pytest.approx(1, abs=0.1), name
    images = G(torch.randn(2, 128))
    assert images.shape == (2, 3, 32, 32)
    assert images.abs().max() <= 1
    assert D(images).shape == (2,)


def test_widths():
    def widths(*options):
        args = sngan.parse_arguments(["--data=unused", *options])
        return args.width_g, args.width_d

    assert widths() == (256, 128)
    assert widths("--width=64") == (64, 32)
    assert widths("--width-g=64") == (64, 128)
    assert widths("--width=64", "--width-d=8") == (64, 8)


# ----------------------------------------------------------------------------
# The protocol.


def test_host_gives_functions_that_can_be_pickled(npz, tmp_path):
    build, train = pickle.loads(pickle.dumps(sngan.host([f"--data={npz}", *SMALL, "--iterations=1"])))
    assert build()[0].to_rgb.in_channels == 8
    ema = train(build, None, 3, tmp_path)
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.training


def test_calls_and_their_order(npz, tmp_path):
    ema, extra, state = run(npz, tmp_path, "--iterations=5")
    assert extra.log == ["attach"] + ["end_epoch", "state_dict"] * 3  # after iterations 2, 4 and 5
    assert extra.ema is ema
    assert [len(x) for x in extra.seen] == [8, 8, 3] * 5  # 2 steps of D on 4 real and 4 generated images, 1 of G on 3
    assert state["iteration"] == 5
    assert state["extra"]["epochs"] == 3
    assert_identical(dict(ema.state_dict()), dict(state["G_ema"]))
    assert_identical(dict(extra.networks[0].state_dict()), dict(state["G"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "samples.png"]
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.size == (8 * 32, 8 * 32)


def test_attached_before_optimizers_and_ema(npz, tmp_path):
    """What attach does to a weight is where EMA and optimizers begin."""
    _, train = sngan.host([f"--data={npz}", *SMALL, "--iterations=1", "--ema=0.5"])
    start = {}

    def attach(G, D):
        with torch.no_grad():
            G.linear.weight.fill_(0.25)
        D.score = nn.Linear(4, 1)  # exchanged: only optimizers that are made later know it
        start["score"] = D.score.weight.detach().clone()
        return Attached(G, D)

    ema = train(lambda: (sngan.Generator(8), sngan.Discriminator(4)), attach, 0, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(ema.linear.weight, 0.125 + state["G"]["linear.weight"] / 2)
    assert not torch.equal(state["D"]["score.weight"], start["score"])


def test_ema_of_parameters_and_copies_of_buffers(npz, tmp_path):
    _, _, first = run(npz, tmp_path / "1", "--iterations=1")
    _, _, second = run(npz, tmp_path / "2", "--iterations=2")
    step = second["G"]["linear.weight"] - first["G_ema"]["linear.weight"]
    moved = second["G_ema"]["linear.weight"] - first["G_ema"]["linear.weight"]
    torch.testing.assert_close(moved, 0.001 * step, rtol=1e-2, atol=1e-8)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(second["G_ema"][name], second["G"][name])


def test_an_average_of_the_attached_object_s_takes_the_parameters_only(npz, tmp_path):
    class Averaging(Attached):
        sema = True

        def ema(self, average, beta):
            self.log.append(f"ema {beta}")
            for tensor in (*average.parameters(), *average.buffers()):
                tensor.fill_(2)

    made = []

    def attach(G, D):
        made.append(Averaging(G, D))
        return made[-1]

    build, train = sngan.host([f"--data={npz}", *SMALL, "--iterations=2", "--ema=0.9"])
    ema = train(build, attach, 0, tmp_path)
    assert made[0].log.count("ema 0.9") == 2
    assert all((p == 2).all() for p in ema.parameters())
    assert all(map(torch.equal, ema.buffers(), made[0].networks[0].buffers()))


def test_adams(npz, tmp_path):
    _, _, state = run(npz, tmp_path, "--iterations=2")
    for name, steps in (("opt_G", 2), ("opt_D", 4)):
        (group,) = state[name]["param_groups"]
        assert (group["lr"], tuple(group["betas"]), group["eps"]) == (2e-4, (0.0, 0.9), 1e-8)
        assert {float(s["step"]) for s in state[name]["state"].values()} == {steps}


def test_first_steps_follow_hinge_loss_and_score(npz, tmp_path):
    """Adam's first step is lr times the sign of the gradient; gradients of losses written out here say which."""
    build, _ = sngan.host([f"--data={npz}", *SMALL])
    torch.manual_seed(0)
    _, D = build()
    _, extra, state = run(npz, tmp_path, "--iterations=1", "--n-critic=1")
    batch_d, batch_g = extra.seen
    real = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
    assert all((image - real).abs().amax(dim=(1, 2, 3)).min() < 1e-6 for image in batch_d[:4])
    scores = D(batch_d)
    ((1 - scores[:4]).clamp(min=0).mean() + (1 + scores[4:]).clamp(min=0).mean()).backward()
    for name, p in D.named_parameters():
        large = p.grad.abs() > 1e-4
        step = state["D"][name] - p.detach()
        torch.testing.assert_close(step[large], -2e-4 * p.grad[large].sign(), rtol=0.01, atol=1e-6)
    # With respect to its images, G's loss has the gradient of -mean D; the bias of to_rgb sees it through tanh.
    D.load_state_dict(state["D"])
    batch_g.requires_grad_()
    (-D(batch_g).mean()).backward()
    through_tanh = (batch_g.grad * (1 - batch_g.detach() ** 2)).sum(dim=(0, 2, 3))
    torch.testing.assert_close(state["G"]["to_rgb.bias"], -2e-4 * through_tanh.sign(), rtol=0.01, atol=1e-6)


def test_the_seed_decides(npz, tmp_path):
    a, b, c = (
        run(npz, tmp_path / name, "--iterations=1", seed=seed)[2] for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert_identical(a, b)
    assert not torch.equal(a["G"]["linear.weight"], c["G"]["linear.weight"])
    assert not torch.equal(a["batches"]["order"], c["batches"]["order"])


def test_evaluating_more_often_changes_nothing(npz, tmp_path):
    """Samples come from latents of their own, not from the stream that training draws from."""
    a, b = (run(npz, tmp_path / n, "--iterations=3", f"--eval-every={n}", attached=False)[2] for n in ("1", "3"))
    for name in ("G", "D", "G_ema", "opt_G", "opt_D", "batches", "rng"):
        assert_identical(a[name], b[name], name)
    assert (tmp_path / "1" / "samples.png").read_bytes() == (tmp_path / "3" / "samples.png").read_bytes()


# ----------------------------------------------------------------------------
# Going on after a break.


@pytest.mark.parametrize("options", [[], ["--flip", "--diffaug=color,translation,cutout"]], ids=["plain", "augmented"])
def test_a_stopped_run_goes_on_bit_by_bit(npz, tmp_path, options):
    options = ["--iterations=5", *options]
    _, _, whole = run(npz, tmp_path / "whole", *options)
    _, stopped, _ = run(npz, tmp_path / "parts", *options, stop_at=11)  # D's step in iteration 4, after checkpoint 2
    assert stopped.epochs == 1
    _, extra, parts = run(npz, tmp_path / "parts", *options)
    assert_identical(whole, parts)
    assert extra.log == ["attach", "load_state_dict"] + ["end_epoch", "state_dict"] * 2
    assert len(extra.seen) == 9  # iterations 3, 4 and 5
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "parts" / "samples.png").read_bytes()


def test_a_kill_while_saving_leaves_the_previous_checkpoint(npz, tmp_path, monkeypatch):
    _, _, whole = run(npz, tmp_path / "whole", "--iterations=4")
    saved, save = [], torch.save

    def half(state, path):
        save(state, path)
        saved.append(path)
        if len(saved) == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        run(npz, tmp_path / "parts", "--iterations=4")
    monkeypatch.undo()
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["iteration"] == 2
    assert_identical(whole, run(npz, tmp_path / "parts", "--iterations=4")[2])


def test_a_complete_run_returns_at_once(npz, tmp_path):
    first, _, _ = run(npz, tmp_path, "--iterations=2")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "samples.png").unlink()
    again, extra, _ = run(npz, tmp_path, "--iterations=2")
    assert extra.log == ["attach", "load_state_dict"]
    assert extra.seen == []
    assert_identical(dict(first.state_dict()), dict(again.state_dict()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_checkpoints_that_do_not_fit(npz, tmp_path):
    def said(*options, seed=0, attached=True):
        with pytest.raises(SystemExit) as info:
            run(npz, tmp_path, *options, seed=seed, attached=attached)
        assert "\n" not in str(info.value)
        return str(info.value)

    run(npz, tmp_path, "--iterations=1")
    assert "width_g = 8, not 16" in said("--width-g=16")
    assert "lr = 0.0002, not 0.1" in said("--lr=0.1")
    assert "seed = 0, not 1" in said(seed=1)
    assert "attached = True, not False" in said(attached=False)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        assert "cannot be read" in said()
    for other in ([1, 2], {"G": {}}):
        torch.save(other, tmp_path / "checkpoint.pt")
        assert "cannot be read" in said()


def test_networks_that_do_not_fit_the_checkpoint(npz, tmp_path):
    _, train = sngan.host([f"--data={npz}", *SMALL, "--iterations=1"])
    train(lambda: (sngan.Generator(8), sngan.Discriminator(4)), None, 0, tmp_path)
    with pytest.raises(SystemExit, match=r"^D in .* is of another architecture"):
        train(lambda: (sngan.Generator(8), sngan.Discriminator(8)), None, 0, tmp_path)


# ----------------------------------------------------------------------------
# As a program.


def test_runs_by_itself_and_goes_on(npz, tmp_path, capsys):
    arguments = [f"--data={npz}", f"--out={tmp_path}", *SMALL, "--diffaug=color,cutout"]
    sngan.main([*arguments, "--iterations=2"])
    assert "iteration      2  loss D" in capsys.readouterr().out
    sngan.main([*arguments, "--iterations=3"])
    assert "iteration      2" not in capsys.readouterr().out
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 3
    assert "extra" not in state
    assert (tmp_path / "samples.png").exists()


def error(capsys, *arguments):
    with pytest.raises(SystemExit) as info:
        sngan.main([str(a) for a in arguments])
    said = str(info.value) if info.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in said
    return said


def test_errors_are_one_sentence(npz, tmp_path, capsys):
    def data(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return error(capsys, "--data", tmp_path / "x.npz", "--out", tmp_path / "out")

    assert "neither a folder" in error(capsys, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "no .npz file" in error(capsys, "--data", tmp_path / "nowhere.npz", "--out", tmp_path / "out")
    assert "must hold" in data(labels=np.zeros(3))
    assert "uint8 [N, H, W, 3], not float64" in data(images=np.zeros((2, 32, 32, 3)))
    assert "add up to 5 bytes" in data(jpeg=np.zeros(4, np.uint8), lengths=np.array([2, 3]))
    assert "number 0 in" in data(jpeg=np.zeros(4, np.uint8), lengths=np.array([2, 2]))
    assert "no images" in data(images=np.zeros((0, 32, 32, 3), np.uint8))
    (tmp_path / "broken").mkdir()
    assert "no images" in error(capsys, "--data", tmp_path / "broken", "--out", tmp_path / "out")
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    assert "a.png" in error(capsys, "--data", tmp_path / "broken", "--out", tmp_path / "out")
    assert "less than one image" in error(capsys, "--data", npz, "--share=0.1", "--out", tmp_path / "out")
    assert "above 0 and up to 1" in error(capsys, "--data", npz, "--share=0")
    assert "color, translation, cutout" in error(capsys, "--data", npz, "--diffaug=color,blur")
    assert "from 1 on" in error(capsys, "--data", npz, "--batch=0")
    assert "--lr" in error(capsys, "--data", npz, "--lr=nan")
    assert "--ema" in error(capsys, "--data", npz, "--ema=1")


def test_the_script_stands_alone():
    assert "rgplug" not in Path(sngan.__file__).read_text()
