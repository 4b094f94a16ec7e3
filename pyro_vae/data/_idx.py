"""Read images from IDX files in torchvision's layout. The only file that imports torchvision."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae._files import replace_file
from pyro_vae.data.dataset import Dataset, from_tensor

__all__ = ["dataset_of", "raw_folder", "read_split"]


def dataset_of(
    images: np.ndarray, labels: np.ndarray, name: str, split: str, source: str, binarization: Any, seed: int
) -> Dataset:
    """Make a data set of images and labels, with the source they were read from."""
    pixels = torch.from_numpy(images)
    pixels = pixels / 255 if binarization is None else pixels
    return from_tensor(pixels, labels, name=name, split=split, source=source, binarization=binarization, seed=seed)


_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_SPLIT_SIZE = {"train": 60_000, "test": 10_000}


def raw_folder(data_dir: str | Path, name: str, download: bool) -> Path | str:
    """Return the folder of the files, or the reason why there is none."""
    raw = Path(data_dir) / name / "raw"
    if any(raw.glob("*-ubyte")):
        return raw
    if not download:
        return f"no files of {name} in {raw}, and a download was not asked for"
    failure = _download(data_dir, name)
    return raw if failure is None else f"no files of {name} in {raw}, and {failure}"


def _download(data_dir: str | Path, name: str) -> str | None:
    """Fetch the files through torchvision; return the reason if that fails."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        return f"torchvision cannot be imported ({error})"
    # Files appear in the data folder only when they are complete.
    with tempfile.TemporaryDirectory() as folder:
        try:
            getattr(torchvision.datasets, name)(folder, download=True)
        except (RuntimeError, OSError) as error:  # torchvision's own, and those of the network and the disk
            return f"their download failed ({error}; is there a network?)"
        raw = Path(data_dir) / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for file in (Path(folder) / name / "raw").glob("*-ubyte"):
            replace_file(raw / file.name, file.read_bytes())
    return None


def read_split(raw: Path, split: str, sha256: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the images `(N, 1, H, W)` and the labels `(N,)` of a split, and check them."""
    prefix = _SPLIT_PREFIX[split]
    canonical_size = _SPLIT_SIZE[split]
    images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3, canonical_size, sha256)
    labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1, canonical_size, sha256)
    if len(images) != len(labels):
        raise ValueError(
            f"data_dir: expected as many labels as images in {raw}; got {len(labels)} and {len(images)}; "
            "delete the folder and download it again."
        )
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, ndim: int, canonical_size: int, sha256: dict[str, str]) -> np.ndarray:
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
    if sizes[0] == canonical_size and hashlib.sha256(content).hexdigest() != sha256[path.name]:
        raise _corrupted(path, f"sha256 {sha256[path.name]}", hashlib.sha256(content).hexdigest())
    return np.frombuffer(content, dtype=np.uint8, offset=4 * (ndim + 1)).reshape(sizes).copy()


def _corrupted(path: Path, expected: str, found: str) -> ValueError:
    return ValueError(
        f"data_dir: expected {expected} in {path}; got {found}: the file is truncated or corrupted; delete it with its "
        "folder and download it again."
    )
