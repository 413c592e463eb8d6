"""Where real images come from: a folder, a .zip, an .npz, or a tensor."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rgplug.errors import RgplugError
from rgplug.metrics.images import Size, from_arrays, resize_picture, to_rgb, to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageSource:
    """A row of pictures that can be read one at a time.

    name: what messages call it. count: how many. read(i): picture i, in RGB. digest(): hexadecimal hash of the
    contents (the bytes and lengths of every file, not where they lie); it reads everything, but decodes nothing.
    """

    name: str
    count: int
    read: Callable[[int], Image.Image]
    digest: Callable[[], str]

    def size(self) -> Size:
        """Height and width of the first picture."""
        first = self.read(0)
        return first.height, first.width

    def batches(self, batch: int, size: Size) -> Iterator[Tensor]:
        """uint8 tensors [<= batch, 3, height, width], all pictures brought to `size`."""
        for start in range(0, self.count, batch):
            stop = min(start + batch, self.count)
            yield from_arrays([np.asarray(resize_picture(self.read(i), size)) for i in range(start, stop)])


def open_source(real: str | os.PathLike[str] | Tensor | ImageSource) -> ImageSource:
    """Real images from a folder (read recursively), a .zip of images, an .npz with `images`, or a tensor.

    The .npz holds uint8 [N, H, W, 3] (or 1) under `images`; a tensor is [N, 3, H, W], uint8 or float in [-1, 1].
    RgplugError, one sentence, when there is nothing there or nothing in it.
    """
    if isinstance(real, ImageSource):
        return real
    if isinstance(real, Tensor):
        return from_tensor(real)
    path = Path(real).expanduser()
    if not path.exists():
        raise RgplugError(f"real images: {path} does not exist; give a folder of images, a .zip or an .npz")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    if zipfile.is_zipfile(path):
        return _from_zip(path)
    raise RgplugError(f"real images: {path} is neither a folder nor a .zip nor an .npz")


def check_source(real: str | os.PathLike[str]) -> None:
    """Raise RgplugError where `open_source` would, or the first picture cannot be read; arrays are not loaded."""
    path = Path(real).expanduser()
    if path.suffix.lower() == ".npz" and path.is_file():
        _check_arrays(path)
    else:
        open_source(path).read(0)


def _check_arrays(path: Path) -> None:
    """As `_from_npz`, from the header of the array alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as opened:
            version = np.lib.format.read_magic(opened)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(opened)
    except KeyError:
        raise RgplugError(_no_images(path, "nothing")) from None
    except Exception as error:
        raise RgplugError(f"real images: cannot read {path} ({error})") from error
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or shape[0] == 0:
        raise RgplugError(_no_images(path, f"{dtype} {shape}"))


def _no_images(path: Path, found: str) -> str:
    return f"real images: {path} must hold `images`, uint8 [N, H, W, 3], and has {found} there"


def from_tensor(images: Tensor, name: str = "the given tensor") -> ImageSource:
    """A source over images [N, C, H, W] in memory; see `to_uint8` for the ranges."""
    pixels = to_rgb(to_uint8(images)).cpu()
    if len(pixels) == 0:
        raise RgplugError(f"real images: there are none in {name}")

    def digest() -> str:
        hashed = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=20)
        for image in pixels:
            hashed.update(image.contiguous().numpy().data)
        return hashed.hexdigest()

    def read(index: int) -> Image.Image:
        return Image.fromarray(pixels[index].permute(1, 2, 0).contiguous().numpy())

    return ImageSource(name, len(pixels), read, digest)


def _is_image(name: str) -> bool:
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(p.startswith((".", "__MACOSX")) for p in parts)


def _decode(opened: IO[bytes], name: str) -> Image.Image:
    """A picture in RGB; RgplugError with the file's name when it cannot be read or has more than 8 bits."""
    try:
        picture = Image.open(opened)
        if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
            raise RgplugError(f"real images: {name} has more than 8 bits per channel; convert it to 8 bits")
        return picture.convert("RGB")
    except RgplugError:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, ... by format
        raise RgplugError(f"real images: cannot read {name} ({error}); remove or repair it") from error


def _from_folder(folder: Path) -> ImageSource:
    found = []
    for root, _, names in os.walk(folder, followlinks=True):
        relative = Path(root).relative_to(folder)
        found += [folder / relative / n for n in names if _is_image((relative / n).as_posix())]
    files = sorted(found)
    if not files:
        raise RgplugError(f"real images: {folder} holds no {', '.join(SUFFIXES)} files, in no sub-folder either")

    def read(index: int) -> Image.Image:
        with open(files[index], "rb") as opened:
            return _decode(opened, str(files[index]))

    return ImageSource(str(folder), len(files), read, lambda: _hash_files(files))


def _from_zip(path: Path) -> ImageSource:
    archive = zipfile.ZipFile(path)
    names = sorted(n for n in archive.namelist() if _is_image(n))
    if not names:
        raise RgplugError(f"real images: {path} holds no {', '.join(SUFFIXES)} files")

    def read(index: int) -> Image.Image:
        try:
            held = archive.read(names[index])
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:
            raise RgplugError(f"real images: cannot read {names[index]} in {path} ({error})") from error
        return _decode(io.BytesIO(held), f"{names[index]} in {path}")

    return ImageSource(str(path), len(names), read, lambda: _hash_files([path]))


def _from_npz(path: Path) -> ImageSource:
    try:
        with np.load(path, allow_pickle=False) as held:
            images = held["images"] if "images" in held.files else None
    except Exception as error:
        raise RgplugError(f"real images: cannot read {path} ({error})") from error
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        found = "nothing" if images is None else f"{images.dtype} {images.shape}"
        raise RgplugError(_no_images(path, found))
    return from_tensor(torch.from_numpy(images).permute(0, 3, 1, 2), str(path))


def _hash_files(files: list[Path]) -> str:
    """Hash of the lengths and bytes of files, in their order."""
    hashed = hashlib.blake2b(digest_size=20)
    for path in files:
        with open(path, "rb") as opened:
            hashed.update(path.stat().st_size.to_bytes(8, "little"))
            while chunk := opened.read(1 << 20):
                hashed.update(chunk)
    return hashed.hexdigest()
