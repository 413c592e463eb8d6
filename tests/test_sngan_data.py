"""The SNGAN example's images: reading them, batches, and DiffAugment."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sngan_runs import IMAGES, run

from rgplug.examples import sngan


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=IMAGES)
    return path


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
    chosen = sngan.subset([str(i) for i in range(6)], [""] * 6, 0.5, 0)
    assert torch.equal(sngan.load_images(tmp_path / "packed.npz", 0.5), images[chosen])


def write_classes(folder, **sizes):
    """A folder per class; an image's red value says its class, its green value its number."""
    for c, (label, size) in enumerate(sizes.items()):
        (folder / label).mkdir(parents=True)
        for i in range(size):
            Image.new("RGB", (32, 32), (c, i, 0)).save(folder / label / f"{i:03d}.png")


def drawn(images):
    """(class, number) of each image of `write_classes`."""
    return [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in images]


def test_share_takes_as_much_of_each_class(tmp_path):
    """10 + 20 + 5 images: .4 of them are 4 + 8 + 2, in the order of the paths."""
    write_classes(tmp_path, ant=10, bee=20, cow=5)
    taken = drawn(sngan.load_images(tmp_path, 0.4))
    assert [sum(c == label for c, _ in taken) for label in range(3)] == [4, 8, 2]
    assert taken == sorted(set(taken))
    assert taken != [(c, i) for c, n in enumerate((4, 8, 2)) for i in range(n)]  # not the first ones
    assert drawn(sngan.load_images(tmp_path, 0.4)) == taken
    assert drawn(sngan.load_images(tmp_path, 0.4, 1)) != taken
    assert drawn(sngan.load_images(tmp_path)) == [(c, i) for c, n in enumerate((10, 20, 5)) for i in range(n)]


def test_a_share_is_of_the_whole_where_classes_do_not_divide(tmp_path):
    """Forty classes of one image: a tenth is four images, of any classes."""
    write_classes(tmp_path, **{f"c{i:02d}": 1 for i in range(40)})
    taken = [drawn(sngan.load_images(tmp_path, 0.1, seed)) for seed in range(5)]
    assert all(len(t) == 4 for t in taken)
    assert len({c for t in taken for c, _ in t}) > 8


def test_share_of_an_npz_file_by_its_labels(tmp_path):
    labels = np.repeat([3, 7], [6, 4])
    images = np.zeros((10, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = labels[:, None, None], np.arange(10)[:, None, None]
    np.savez(tmp_path / "labelled.npz", images=images, labels=labels)
    taken = drawn(sngan.load_images(tmp_path / "labelled.npz", 0.5))
    assert [c for c, _ in taken] == [3, 3, 3, 7, 7]
    np.savez(tmp_path / "plain.npz", images=images)
    sets = [drawn(sngan.load_images(tmp_path / "plain.npz", 0.5, seed)) for seed in range(4)]
    assert {len(s) for s in sets} == {5}
    assert len({tuple(s) for s in sets}) > 1
    np.savez(tmp_path / "wrong.npz", images=images, labels=labels[:4])
    with pytest.raises(SystemExit, match=r"`labels` in .* for each of 10 images"):
        sngan.load_images(tmp_path / "wrong.npz", 0.5)


def test_every_seed_trains_on_the_same_share(npz, tmp_path):
    images = sngan.load_images(npz, 0.4)  # int(2.4)
    for seed in (0, 1):
        _, extra, state = run(npz, tmp_path / str(seed), "--iterations=1", "--share=0.4", seed=seed)
        shown = ((torch.cat([x[:4] for x in extra.seen[:2]]) + 1) * 127.5).round().to(torch.uint8)
        assert all(any(torch.equal(image, one) for one in images) for image in shown)
        assert (state["settings"]["images"], state["settings"]["share_seed"]) == (2, 0)
    with pytest.raises(SystemExit, match="share_seed = 0, not 5"):
        run(npz, tmp_path / "1", "--iterations=1", "--share=0.4", "--share-seed=5", seed=1)
    _, _, state = run(npz, tmp_path / "all", "--iterations=1")
    assert "share_seed" not in state["settings"]  # nothing is drawn: checkpoints of before go on


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
