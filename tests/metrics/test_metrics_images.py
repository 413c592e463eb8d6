"""Ranges, rounding, grey images and resizing."""

import numpy as np
import pytest
import torch
from PIL import Image

from rgplug.errors import RgplugError
from rgplug.metrics.images import resize_images, resize_picture, to_rgb, to_uint8


def test_rounding_by_hand():
    values = torch.tensor([-9.0, -1.0, -1 + 1 / 256, 0.0, 1 - 1 / 256, 1.0, 9.0])
    pixels = to_uint8(values.reshape(1, 1, 1, 7)).flatten().tolist()
    assert pixels == [0, 0, 0, 128, 255, 255, 255]  # floor(127.5 x + 128)


def test_every_byte_survives_the_way_to_minus_one_and_one_and_back():
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(bytes_.float() / 127.5 - 1), bytes_)
    assert to_uint8(bytes_) is bytes_
    assert to_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).unique().item() == 128


@pytest.mark.parametrize("images", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, 3), "images", None])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(RgplugError, match="images must be a tensor"):
        to_uint8(images)


def test_integers_are_refused():
    with pytest.raises(RgplugError, match=r"not torch\.int64"):
        to_uint8(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


def test_grey_becomes_three_equal_channels():
    grey = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert torch.equal(to_rgb(grey), torch.cat([grey] * 3, 1))
    colour = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert to_rgb(colour) is colour


def test_resize_crops_the_centre_and_averages():
    wide = np.zeros((2, 8, 3), np.uint8)
    wide[:, 3:5] = 200  # what is left of a 2 x 2 centre crop
    assert np.asarray(resize_picture(Image.fromarray(wide), (2, 2))).min() == 200
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_picture(Image.fromarray(stripes), (8, 8)))
    assert abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2  # no aliasing: a plain grey


def test_resize_of_a_batch_equals_resize_of_each_and_does_nothing_at_the_same_size():
    images = torch.randint(0, 256, (3, 3, 10, 14), dtype=torch.uint8)
    assert resize_images(images, (10, 14)) is images
    small = resize_images(images, (5, 5))
    one = resize_picture(Image.fromarray(images[1].permute(1, 2, 0).numpy()), (5, 5))
    assert small.shape == (3, 3, 5, 5)
    assert np.array_equal(small[1].permute(1, 2, 0).numpy(), np.asarray(one))
