"""From what generators make and disks hold to uint8 images [N, 3, H, W]."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rgplug.errors import RgplugError

Size = tuple[int, int]  # height, width in pixels


def to_uint8(images: Tensor) -> Tensor:
    """Images [N, C, H, W] as uint8 [N, C, H, W], C = 1 or 3.

    uint8 is passed through; floating point means [-1, 1], is clamped and rounded to floor(127.5 x + 128), as in
    StyleGAN's and torchvision's image writers. NaN is not looked for here.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise RgplugError(f"images must be a tensor [N, 3, H, W] or [N, 1, H, W], not {found}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise RgplugError(f"images must be uint8 or floating point in [-1, 1], not {images.dtype}")
    return (images.detach().float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_rgb(images: Tensor) -> Tensor:
    """Grey images [N, 1, H, W] repeated to [N, 3, H, W]; three channels are passed through."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def resize_picture(picture: Image.Image, size: Size) -> Image.Image:
    """A picture at `size`: centre-cropped to the aspect of `size`, then Lanczos with antialiasing. Same size: as is."""
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = min(picture.width / width, picture.height / height)
    crop_width, crop_height = round(width * scale), round(height * scale)
    left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
    centre = picture.crop((left, top, left + crop_width, top + crop_height))  # resize(box=) would look beyond the box
    return centre.resize((width, height), Image.Resampling.LANCZOS)


def resize_images(images: Tensor, size: Size) -> Tensor:
    """uint8 images [N, 3, H, W] at `size`, one by one as in `resize_picture`; on the CPU when anything changes."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    pictures = [Image.fromarray(i) for i in images.permute(0, 2, 3, 1).cpu().numpy()]
    return from_arrays([np.asarray(resize_picture(p, size)) for p in pictures])


def from_arrays(arrays: list[NDArray[np.uint8]]) -> Tensor:
    """A list of uint8 arrays [H, W, 3] of one size as a tensor [N, 3, H, W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
