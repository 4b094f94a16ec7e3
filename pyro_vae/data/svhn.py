"""Street View House Numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae.data._matlab import read_mat
from pyro_vae.data._shared import check_options, damaged
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Dataset, Pixels, from_bytes

__all__ = ["svhn"]

# Of the files, as torchvision checks them; no other hash is published.
_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3"}
_CANONICAL_SIZE = {"train": 73_257, "test": 26_032}


def svhn(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    pixels: Pixels = "unit",
    download: bool = True,
) -> Dataset:
    """Load Street View House Numbers: 73,257 and 26,032 digits in colour, `(N, 3, 32, 32)`.

    They are read from files in `data_dir` (torchvision's layout, `train_32x32.mat` and `test_32x32.mat`), or else
    downloaded there by torchvision. Arguments and errors are those of `cifar10`; this takes scipy.

    References:
        Netzer et al. (2011), Reading digits in natural images with unsupervised feature learning.
    """
    check_options(split, pixels=pixels)
    name = f"{split}_32x32.mat"
    path = require_files(data_dir, "SVHN", download, f"put {name} there", needed=name) / name
    images, labels = read_mat(path, "X", "y")
    labels = labels.flatten().astype(np.int64) % 10  # a zero is labelled 10 in the files
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise _corrupted(path, f"arrays of shape {images.shape} and {labels.shape}")
    if len(labels) == _CANONICAL_SIZE[split] and _md5(path) != _MD5[split]:
        raise _corrupted(path, f"another md5 than {_MD5[split]}")
    images = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return from_bytes(images, labels, name="SVHN", split=split, source="torchvision's files", pixels=pixels)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _corrupted(path: Path, found: str) -> ValueError:
    expected = "images 32 x 32 x 3 x N of bytes, and N labels,"
    return damaged(path, expected, found, "delete it and download it again")
