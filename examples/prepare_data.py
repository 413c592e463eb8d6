"""Turn downloaded data sets, and parts of them, into what the training scripts read. Nothing is downloaded.

    python examples/prepare_data.py cifar10 cifar-10-python.tar.gz data/cifar10.zip
    python examples/prepare_data.py cifar10 cifar-10-python.tar.gz data/cifar10_test.npz --part test
    python examples/prepare_data.py cifar10 cifar-10-python.tar.gz data/cifar10_10.zip --share 0.1
    python examples/prepare_data.py tiny-imagenet tiny-imagenet-200.zip data/tiny.zip --share 0.2 --balanced
    python examples/prepare_data.py images ffhq.zip data/ffhq_1k.zip --count 1000
    python examples/prepare_data.py images 100-shot-obama.zip data/obama --size 256

OUT's name says its form:

    *.zip     StyleGAN2-ADA's: uncompressed PNG files, classes in dataset.json
    *.npz     examples/sngan.py's and policy.metric.real's: `images`, uint8 [N, H, W, 3], and `labels`, [N]
    folder    FastGAN's: PNG files side by side; classes in dataset.json, which StyleGAN2-ADA reads there too

--share and --count take the first images in the order of the data set, as the released code of RG-GAN and of GAN
tickets for limited data does; with --balanced as many of each class, drawn by --seed: the same images on every machine,
and the same that --share of examples/sngan.py takes.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rgplug.errors import RgplugError
from rgplug.examples.sngan import subset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Images:
    """A data set that is read image by image, in its own order."""

    names: list[str]  # by which --balanced draws
    classes: list[str] | None  # of each image; None: the data set has none
    read: Callable[[int], Image.Image]  # image i


# ----------------------------------------------------------------------------
# Data sets as they are downloaded.


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays, numbers and text; a pickle that asks for anything else is refused."""

    def find_class(self, module, name):
        if module.partition(".")[0] in ("numpy", "_codecs") and name in ("_reconstruct", "ndarray", "dtype", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def cifar10(source, part):
    """cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it holds. part: train (50,000) | test (10,000)."""
    files = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    pixels, labels = [], []
    for name in files:
        try:
            held = _Arrays(io.BytesIO(_read_tar(source, f"cifar-10-batches-py/{name}")), encoding="latin1").load()
            pixels.append(held["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += [int(label) for label in held["labels"]]
        except (OSError, KeyError, ValueError, AttributeError, EOFError, tarfile.TarError, pickle.PickleError) as error:
            raise RgplugError(
                f"{source} has no {name} of CIFAR-10 ({error}); give cifar-10-python.tar.gz or the folder "
                "cifar-10-batches-py"
            ) from error
    images = np.concatenate(pixels)
    return Images([str(i) for i in range(len(images))], [str(x) for x in labels], lambda i: Image.fromarray(images[i]))


def _read_tar(source, member):
    if source.is_dir():
        return (source / Path(member).name).read_bytes()
    with tarfile.open(source) as archive:
        opened = archive.extractfile(member)
        if opened is None:
            raise KeyError(member)
        return opened.read()


def tiny_imagenet(source, part):
    """tiny-imagenet-200.zip, or the folder that it holds. part: train (100,000) | val (10,000) | test (10,000, without
    classes). A class is its place in wnids.txt; images come class by class, in the order of their names."""
    files = _Files(source)
    root = next((n[: -len("wnids.txt")] for n in files.names if n.rpartition("/")[2] == "wnids.txt"), None)
    if root is None:
        raise RgplugError(f"{source} has no wnids.txt; give tiny-imagenet-200.zip or the folder in it")
    order = {wnid: str(i) for i, wnid in enumerate(files.read(root + "wnids.txt").decode().split())}
    names = [n for n in files.names if n.startswith(f"{root}{part}/") and n.lower().endswith(SUFFIXES)]
    if part == "train":
        found = {n: n.rsplit("/", 3)[1] for n in names}  # train/WNID/images/WNID_0.JPEG
    elif part == "val":
        rows = files.read(f"{root}val/val_annotations.txt").decode().splitlines()
        of_image = dict(row.split("\t")[:2] for row in rows if row.strip())
        found = {n: of_image.get(n.rpartition("/")[2], "") for n in names}
    else:
        found = {}
    unknown = next((n for n, wnid in found.items() if wnid not in order), None)
    if unknown is not None:
        raise RgplugError(f"{source}: the class of {unknown} is not in wnids.txt; the archive is not Tiny ImageNet's")
    if not names:
        raise RgplugError(f"{source} has no images under {root}{part}; the archive is not Tiny ImageNet's")
    names.sort(key=lambda n: (int(order[found[n]]) if found else 0, _by_number(n)))
    return Images(names, [order[found[n]] for n in names] if found else None, files.image_of(names))


def _by_number(name):
    """n01443537_2.JPEG before n01443537_10.JPEG."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    number = stem.rpartition("_")[2]
    return (int(number) if number.isdigit() else 0, name)


def images(source):
    """A folder (searched with its subfolders), a .zip, or an .npz. Classes: dataset.json, else subfolders, else
    `labels` of the .npz."""
    if source.suffix.lower() == ".npz":
        return _from_npz(source)
    files = _Files(source)
    names = [n for n in files.names if n.lower().endswith(SUFFIXES)]
    if not names:
        raise RgplugError(f"{source} holds no {', '.join(SUFFIXES)} files")
    classes = None
    if "dataset.json" in files.names:
        labels = json.loads(files.read("dataset.json")).get("labels")
        if labels is not None:
            of_image = {name: str(label) for name, label in labels}
            missing = next((n for n in names if n not in of_image), None)
            if missing is not None:
                raise RgplugError(f"{source}: dataset.json has no label for {missing}; complete it or take it away")
            classes = [of_image[n] for n in names]
    elif all("/" in n for n in names) and len({n.rpartition("/")[0] for n in names}) > 1:
        classes = [n.rpartition("/")[0] for n in names]
    return Images(names, classes, files.image_of(names))


def _from_npz(source):
    try:
        with np.load(source, allow_pickle=False) as held:
            pixels, labels = held["images"], held.get("labels")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RgplugError(f"{source} cannot be read ({error}); it has to hold `images`, uint8 [N, H, W, 3]") from error
    classes = None if labels is None else [str(x) for x in labels.reshape(-1).tolist()]
    return Images([str(i) for i in range(len(pixels))], classes, lambda i: Image.fromarray(pixels[i]))


class _Files:
    """The files of a folder or a .zip, by their names in it, sorted."""

    def __init__(self, source):
        self.source = source
        if source.is_dir():
            self.names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
            self.read = lambda name: (source / name).read_bytes()
        elif source.is_file() and zipfile.is_zipfile(source):
            archive = zipfile.ZipFile(source)
            self.names = sorted(n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX"))
            self.read = archive.read
        else:
            raise RgplugError(f"{source} is neither a folder nor a .zip; give the data set as it was downloaded")

    def image_of(self, names):
        def read(i):
            try:
                return Image.open(io.BytesIO(self.read(names[i]))).convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise RgplugError(
                    f"{names[i]} in {self.source} cannot be read ({error}); repair or remove it"
                ) from error

        return read


# ----------------------------------------------------------------------------
# Which images, and where they go.


def chosen(data, share, count, balanced, seed):
    """Indices of the images that are taken, ascending: all, the first int(N share) or `count`, or as many of each class
    as whole numbers allow."""
    n = len(data.names)
    number = n if share is None and count is None else int(n * share) if count is None else count
    if not 1 <= number <= n:
        raise RgplugError(
            f"{number} of {n} images cannot be taken; give --count between 1 and {n}, or a larger --share"
        )
    if not balanced:
        return list(range(number))
    if data.classes is None:
        raise RgplugError("--balanced needs classes, and this data set has none; leave it out")
    # the half keeps int(n * share), which is what `subset` takes, at `number` whatever the division rounds to
    exact = share if count is None and share is not None else (number + 0.5) / n
    return subset(data.names, data.classes, exact, seed) if number < n else list(range(n))


def write(data, indices, size, out):
    """Write the images at `indices`; OUT appears when it is whole. size: edge in pixels, cropped to a square; None: as
    they are."""
    if out.exists():
        raise RgplugError(f"{out} is there already; delete it or give another name")
    found = None if data.classes is None else [data.classes[i] for i in indices]
    whole = sorted(set(found or ()), key=lambda c: (int(c) if c.lstrip("-").isdigit() else 0, c))
    numeric = all(c.isdigit() for c in whole)  # classes that are numbers stay what they are
    labels = None if found is None else [int(c) if numeric else whole.index(c) for c in found]
    pictures = (_sized(data.read(i), size) for i in indices)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)
    forms = {".npz": _write_npz, ".zip": _write_zip, "": _write_folder}
    if out.suffix.lower() not in forms:
        raise RgplugError(f"{out}: the name has to end in .zip or .npz, or be that of a folder")
    forms[out.suffix.lower()](part, pictures, labels)
    os.replace(part, out)


def _sized(picture, size):
    return picture if size is None else ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def _write_npz(path, pictures, labels):
    arrays = [np.asarray(p) for p in pictures]
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise RgplugError(f"the images have {len(shapes)} different sizes; give --size")
    with open(path, "wb") as file:
        np.savez(file, images=np.stack(arrays), **({} if labels is None else {"labels": np.array(labels)}))


def _write_zip(path, pictures, labels):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        names = []
        for i, picture in enumerate(pictures):
            names.append(f"{i // 1000:05d}/img{i:08d}.png")
            archive.writestr(zipfile.ZipInfo(names[-1]), _png(picture))  # without a date: the same bytes every time
        archive.writestr(zipfile.ZipInfo("dataset.json"), _labels(names, labels))


def _write_folder(path, pictures, labels):
    path.mkdir()
    names = []
    for i, picture in enumerate(pictures):
        names.append(f"img{i:08d}.png")
        (path / names[-1]).write_bytes(_png(picture))
    (path / "dataset.json").write_text(_labels(names, labels))


def _png(picture):
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=0)
    return held.getvalue()


def _labels(names, labels):
    return json.dumps({"labels": None if labels is None else [[n, x] for n, x in zip(names, labels)]})


# ----------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, parts in (("cifar10", ["train", "test"]), ("tiny-imagenet", ["train", "val", "test"]), ("images", [])):
        add = kinds.add_parser(kind).add_argument
        add("source", type=Path, help="archive or folder, as it was downloaded")
        add("out", type=Path, help="NAME.zip, NAME.npz, or a folder")
        if parts:
            add("--part", choices=parts, default="train", help="[%(default)s]")
        add("--share", type=float, help="take this share of the images, above 0 and up to 1 [all]")
        add("--count", type=int, help="take so many images")
        add("--balanced", action="store_true", help="as many of each class, drawn by --seed, not the first ones")
        add("--seed", type=int, default=0, help="of --balanced [%(default)s]")
        add("--size", type=int, help="crop to a square and resize to so many pixels [as they are]")
    args = parser.parse_args(argv)
    try:
        if args.share is not None and (args.count is not None or not 0 < args.share <= 1):
            raise RgplugError("give --share, above 0 and up to 1, or --count, not both")
        if args.kind == "images":
            data = images(args.source)
        else:
            data = (cifar10 if args.kind == "cifar10" else tiny_imagenet)(args.source, args.part)
        indices = chosen(data, args.share, args.count, args.balanced, args.seed)
        write(data, indices, args.size, args.out)
    except RgplugError as error:
        print(error, file=sys.stderr)
        return 2
    classes = "" if data.classes is None else f", {len({data.classes[i] for i in indices})} classes"
    print(f"{args.out}: {len(indices)} of {len(data.names)} images{classes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
