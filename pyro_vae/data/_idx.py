"""Files in the IDX format, in which MNIST and its relatives come."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data._shared import check_options, damaged, grey_images
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Dataset

__all__ = ["idx_dataset", "read_pair", "read_split"]

_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_SPLIT_SIZE = {"train": 60_000, "test": 10_000}


def idx_dataset(
    title: str, name: str, data_dir: str | Path, split: str, binarization: Any, seed: int, download: bool,
    sha256: Mapping[str, str],
) -> Dataset:  # fmt: skip
    """Load a data set that has MNIST's four files."""
    check_options(split, binarization=binarization)
    data_dir = require_files(data_dir, name, download, f"put the four files of {title} there")
    images, labels = read_split(data_dir / name / "raw", split, sha256)
    return grey_images(images, labels, title, split, "torchvision's files", binarization, seed)


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
    return damaged(path, expected, found, "delete it with its folder and download it again")
