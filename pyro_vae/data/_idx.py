"""Files in torchvision's layout, where they are downloaded, and those among them in the IDX format.

The only file that imports torchvision.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_vae import _checks
from pyro_vae._files import replace_file
from pyro_vae.data.dataset import Dataset, from_tensor

__all__ = ["dataset_of", "idx_dataset", "raw_folder", "read_pair", "read_split", "require_files", "why_absent"]


class _Source(NamedTuple):
    """A data set of torchvision's: patterns of the files that are read, and the options of each download."""

    files: tuple[str, ...]
    options: tuple[dict[str, Any], ...] = ({},)


SOURCES = {
    "MNIST": _Source(("MNIST/raw/*-ubyte",)),
    "FashionMNIST": _Source(("FashionMNIST/raw/*-ubyte",)),
    "KMNIST": _Source(("KMNIST/raw/*-ubyte",)),
    "EMNIST": _Source(("EMNIST/raw/*-ubyte",), ({"split": "balanced"},)),  # all kinds are in one archive
    "Omniglot": _Source(("omniglot-py/images_*/*/*/*.png",), ({"background": True}, {"background": False})),
    "CelebA": _Source(("celeba/img_align_celeba/*.jpg", "celeba/*.txt")),
    "CIFAR10": _Source(("cifar-10-batches-py/*_batch*",)),
    "SVHN": _Source(("*_32x32.mat",), ({"split": "train"}, {"split": "test"})),
}
"""By the name of torchvision's class."""


def dataset_of(
    images: np.ndarray, labels: np.ndarray, name: str, split: str, source: str, binarization: Any, seed: int
) -> Dataset:
    """Make a data set of images and labels, with the source they were read from."""
    pixels = torch.from_numpy(images)
    pixels = pixels / 255 if binarization is None else pixels
    return from_tensor(pixels, labels, name=name, split=split, source=source, binarization=binarization, seed=seed)


def why_absent(data_dir: str | Path, name: str, download: bool) -> str | None:
    """Return the reason why there are no files of a data set, or None if there are, or were downloaded now."""
    folder, pattern = Path(data_dir), SOURCES[name].files[0]
    if any(folder.glob(pattern)):
        return None
    # The deepest folder whose name is known, and the files in it.
    where = folder.joinpath(*(part for part in Path(pattern).parent.parts if "*" not in part))
    if not download:
        return f"no files of {name} in {where}, and a download was not asked for"
    failure = _download(data_dir, name)
    return None if failure is None else f"no files of {name} in {where}, and {failure}"


def require_files(data_dir: str | Path, name: str, download: bool, remedy: str) -> Path:
    """Return the data folder, or raise an error where it has no files of a data set."""
    why = why_absent(data_dir, name, download)
    if why is not None:
        raise FileNotFoundError(f"data_dir: {why}; {remedy}.")
    return Path(data_dir)


def raw_folder(data_dir: str | Path, name: str, download: bool) -> Path | str:
    """Return the folder of IDX files, or the reason why there is none."""
    why = why_absent(data_dir, name, download)
    return Path(data_dir) / name / "raw" if why is None else why


def _download(data_dir: str | Path, name: str) -> str | None:
    """Fetch the files through torchvision; return the reason if that fails."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        return f"torchvision cannot be imported ({error})"
    source = SOURCES[name]
    # Files appear in the data folder only when they are complete.
    with tempfile.TemporaryDirectory() as folder:
        try:
            for options in source.options:
                getattr(torchvision.datasets, name)(folder, download=True, **options)
        except (RuntimeError, OSError) as error:  # torchvision's own, and those of the network and the disk
            return f"their download failed ({error}; is there a network?)"
        for file in (file for pattern in source.files for file in Path(folder).glob(pattern)):
            kept = Path(data_dir) / file.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept, file.read_bytes())
    return None


_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_SPLIT_SIZE = {"train": 60_000, "test": 10_000}


def idx_dataset(
    title: str, name: str, data_dir: str | Path, split: str, binarization: Any, seed: int, download: bool,
    sha256: Mapping[str, str],
) -> Dataset:  # fmt: skip
    """Load a data set that has MNIST's four files."""
    _checks.choice("split", split, ("train", "test"))
    data_dir = require_files(data_dir, name, download, f"put the four files of {title} there")
    images, labels = read_split(data_dir / name / "raw", split, sha256)
    return dataset_of(images, labels, title, split, "torchvision's files", binarization, seed)


def read_split(raw: Path, split: str, sha256: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the images `(N, 1, H, W)` and the labels `(N,)` of a split, and check them."""
    return read_pair(raw, _SPLIT_PREFIX[split], _SPLIT_SIZE[split], sha256)


def read_pair(
    raw: Path, prefix: str, canonical_size: int | None, sha256: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of images and that of their labels."""
    images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3, canonical_size, sha256)
    labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1, canonical_size, sha256)
    if len(images) != len(labels):
        raise ValueError(
            f"data_dir: expected as many labels as images in {raw}; got {len(labels)} and {len(images)}; "
            "delete the folder and download it again."
        )
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, ndim: int, canonical_size: int | None, sha256: Mapping[str, str]) -> np.ndarray:
    """Read the array in an IDX file of bytes: a header of big-endian integers, then the content."""
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: expected a file {path}; got none; put it there, or delete its folder.")
    content = path.read_bytes()
    header = np.frombuffer(content[: 4 * (ndim + 1)], dtype=">u4") if len(content) >= 4 * (ndim + 1) else [0]
    if header[0] != 0x0800 + ndim:
        raise _corrupted(path, f"an IDX file of {ndim}-dimensional bytes", "another header")
    sizes = tuple(int(size) for size in header[1:])
    expected, found = math.prod(sizes), len(content) - 4 * (ndim + 1)
    if expected != found or expected == 0:
        raise _corrupted(path, f"{expected:,} bytes after the header", f"{found:,}")
    known = sha256.get(path.name) if sizes[0] == canonical_size else None
    if known is not None and hashlib.sha256(content).hexdigest() != known:
        raise _corrupted(path, f"sha256 {known}", hashlib.sha256(content).hexdigest())
    return np.frombuffer(content, dtype=np.uint8, offset=4 * (ndim + 1)).reshape(sizes).copy()


def _corrupted(path: Path, expected: str, found: str) -> ValueError:
    return ValueError(
        f"data_dir: expected {expected} in {path}; got {found}: the file is truncated or corrupted; delete it with its "
        "folder and download it again."
    )
