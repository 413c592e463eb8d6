"""The SNGAN example, on a few random images and at a small width."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from rgplug.examples import sngan
from rgplug.metrics import layer_macs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
SMALL = ["--width=8", "--batch=4", "--batch-g=3", "--n-critic=2", "--eval-every=2"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=IMAGES)
    return path


class Attached:
    """What `attach` returns, with a log of all calls; its state has a tensor drawn from torch's global generator."""

    def __init__(self, G, D, stop_at=None):
        self.log, self.networks, self.noise = ["attach"], (G, D), torch.rand(3)
        self.epochs = 0
        self.seen = []  # D's inputs
        self.stop_at = stop_at  # D's forward number so many never ends
        D.register_forward_pre_hook(self.before_forward)

    def before_forward(self, module, inputs):
        self.seen.append(inputs[0].detach().clone())
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt

    def end_epoch(self, ema):
        self.log.append("end_epoch")
        self.ema = ema
        self.epochs += 1
        self.noise = self.noise + torch.rand(3)

    def state_dict(self):
        self.log.append("state_dict")
        return {"epochs": self.epochs, "noise": self.noise, "text": "t", "list": [1, 2.5, None]}

    def load_state_dict(self, state):
        self.log.append("load_state_dict")
        self.epochs, self.noise = state["epochs"], state["noise"]


def run(npz, folder, *options, stop_at=None, seed=0, attached=True):
    """One call of the protocol. Returns (EMA, what was attached, checkpoint or None)."""
    build, train = sngan.host([f"--data={npz}", *SMALL, *options])
    made = []

    def attach(G, D):
        made.append(Attached(G, D, stop_at))
        return made[-1]

    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            train(build, attach, seed, folder)
        return None, made[0], None
    ema = train(build, attach if attached else None, seed, folder)
    state = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    return ema, made[0] if made else None, state


def assert_identical(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for name in a:
            assert_identical(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{path}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


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
# Data.


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name, pixels in [("c.png", IMAGES[2]), ("a.png", IMAGES[0]), ("b/x.PNG", IMAGES[1])]:
        Image.fromarray(pixels).save(tmp_path / name, format="png")
    Image.fromarray(IMAGES[3]).resize((40, 70)).convert("L").save(tmp_path / "d.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    images = sngan.load_images(tmp_path)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert (images[:3].permute(0, 2, 3, 1).numpy() == IMAGES[:3]).all()
    assert (images[3] == images[3, :1]).all()  # grey


def test_other_sizes_are_cropped_in_the_centre_and_resized(tmp_path):
    wide = np.zeros((1, 64, 96, 3), dtype=np.uint8)
    wide[:, :, 16:48, 0] = 100  # left and right half of what the crop leaves
    wide[:, :, 48:80, 1] = 200
    np.savez(tmp_path / "wide.npz", images=wide)
    image = sngan.load_images(tmp_path / "wide.npz")[0]
    assert image.shape == (3, 32, 32)
    left, right = image[:, :, 3:13], image[:, :, 19:29]  # away from the edges, where Lanczos rings
    assert (left[0] == 100).all()
    assert (right[0] == 0).all()
    assert (left[1] == 0).all()
    assert (right[1] == 200).all()


def test_packed_files(tmp_path):
    files = []
    for pixels in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="jpeg", quality=95)
        files.append(buffer.getvalue())
    lengths = np.array([len(file) for file in files], dtype=np.uint16)
    blob = np.frombuffer(b"".join(files), dtype=np.uint8)
    np.savez(tmp_path / "packed.npz", jpeg=blob, lengths=lengths)
    images = sngan.load_images(tmp_path / "packed.npz")
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    assert (images.permute(0, 2, 3, 1).numpy() == decoded).all()
    assert torch.equal(sngan.load_images(tmp_path / "packed.npz", 0.5), images[:3])


def test_share_takes_the_first_images(npz, tmp_path):
    images = sngan.load_images(npz, 0.4)  # int(2.4)
    assert (images.permute(0, 2, 3, 1).numpy() == IMAGES[:2]).all()
    _, extra, state = run(npz, tmp_path, "--iterations=1", "--share=0.4")
    shown = ((torch.cat([x[:4] for x in extra.seen[:2]]) + 1) * 127.5).round().to(torch.uint8)
    assert all(any(torch.equal(image, one) for one in images) for image in shown)
    assert state["settings"]["images"] == 2


def test_epochs_are_shuffled_and_batches_full():
    images = torch.arange(6, dtype=torch.uint8)
    batches = sngan.Batches(images, 4, seed=0)
    drawn = torch.stack([batches.next() for _ in range(6)])  # [6, 4], 4 epochs of 6
    epochs = drawn.flatten().view(4, 6)
    assert (epochs.sort(dim=1).values == images).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    assert sngan.Batches(images[:2], 5, seed=0).next().shape == (5,)  # fewer images than a batch has


def test_flip_mirrors_about_half(npz, tmp_path):
    torch.manual_seed(0)
    images = torch.rand(64, 3, 8, 8)
    flipped = sngan.flip(images)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images)]
    assert all(m != k for m, k in zip(mirrored, kept))
    assert 20 < sum(mirrored) < 44
    _, extra, _ = run(npz, tmp_path, "--iterations=2", "--flip")
    real = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    shown = [((x[:4] + 1) * 127.5).round().to(torch.uint8) for x in extra.seen if len(x) == 8]
    assert any(torch.equal(image.flip(2), one) for image in torch.cat(shown) for one in real)


# ----------------------------------------------------------------------------
# DiffAugment.


def test_no_augmentation_is_the_identity():
    images = torch.randn(4, 3, 32, 32)
    assert sngan.augment(images, []) is images


@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_an_augmentation_alters_images_and_passes_gradients(name):
    torch.manual_seed(0)
    images = torch.rand(32, 3, 32, 32).sub(0.5).requires_grad_()
    altered = sngan.augment(images, [name])
    assert altered.shape == images.shape
    changed = (altered - images).abs().amax(dim=(1, 2, 3)) > 0.02
    assert changed.sum() >= 30  # a translation can be by 0 pixels
    altered.square().sum().backward()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_color_by_its_definition():
    """Every image goes to s c (x - grey) + c (grey - mean) + mean, plus its brightness."""
    torch.manual_seed(0)
    images = torch.rand(64, 3, 8, 8, dtype=torch.float64).sub(0.5)
    altered = sngan.color(images)
    mean, new_mean = (x.mean(dim=(1, 2, 3)) for x in (images, altered))
    grey, new_grey = (x.mean(dim=1, keepdim=True) for x in (images, altered))
    brightness = new_mean - mean
    contrast = (new_grey - new_mean.view(-1, 1, 1, 1)) / (grey - mean.view(-1, 1, 1, 1))
    product = (altered - new_grey) / (images - grey)  # saturation times contrast
    for ratio in (contrast, product):
        flat = ratio.flatten(1)
        torch.testing.assert_close(flat, flat.median(dim=1, keepdim=True).values.expand_as(flat), rtol=1e-3, atol=1e-3)
    contrast = contrast.flatten(1).median(dim=1).values
    saturation = product.flatten(1).median(dim=1).values / contrast
    for values, low, high in [(brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (saturation, 0, 2)]:
        assert low - 1e-3 <= values.min() < low + 0.2 * (high - low)
        assert high + 1e-3 >= values.max() > high - 0.2 * (high - low)


def test_translation_by_up_to_an_eighth():
    torch.manual_seed(0)
    images = torch.randn(400, 3, 32, 32)
    altered = sngan.translation(images)
    padded = F.pad(images, (4, 4, 4, 4))
    shifts = []
    for image, inside in zip(altered, padded):
        found = [
            (y, x) for y in range(9) for x in range(9) if torch.equal(image, inside[:, y : y + 32, x : x + 32])
        ]  # fmt: skip
        shifts += found
    assert len(shifts) == 400
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))


def test_cutout_of_half_the_side():
    torch.manual_seed(0)
    holes = sngan.cutout(torch.ones(1000, 3, 32, 32)) == 0
    assert (holes == holes[:, :1]).all()
    holes = holes[:, 0]
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(holes.sum(dim=(1, 2)), heights * widths)  # rectangles
    for sides in (heights, widths):
        assert (sides.min(), sides.max()) == (8, 16)  # centre on the border, centre inside
        assert 0.4 < (sides == 16).float().mean() < 0.65  # 17 of 33 centres
    assert holes[:, 0, 0].any()
    assert holes[:, -1, -1].any()


def test_every_image_that_discriminator_sees_is_augmented(npz, tmp_path):
    def zeros(*options):  # of each image; bytes scaled to [-1, 1] are never 0
        _, extra, _ = run(npz, tmp_path / str(len(options)), "--iterations=1", *options)
        return [(x == 0).sum(dim=(1, 2, 3)) for x in extra.seen]

    assert all(n.min() >= 3 * 8 * 8 for n in zeros("--diffaug=cutout"))  # real and generated, for D and for G
    assert all(n.max() < 3 * 8 * 8 for n in zeros())


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
