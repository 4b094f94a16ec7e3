"""CIFAR-10."""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyro_vae.data._shared import check_options, damaged
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Dataset, Pixels, from_bytes

__all__ = ["cifar10"]

# Of the files, as torchvision checks them; no other hash is published.
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CANONICAL_SIZE = 10_000


def cifar10(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    pixels: Pixels = "unit",
    download: bool = True,
) -> Dataset:
    """Load CIFAR-10: 50,000 and 10,000 colour images of ten kinds of things, `(N, 3, 32, 32)`.

    They are read from files in `data_dir` (torchvision's layout, `cifar-10-batches-py/`), or else downloaded there by
    torchvision. The files are pickles; only arrays are taken out of them, and no code is run.

    Args:
        data_dir: the folder.
        split: `"train"` or `"test"`.
        pixels: `"unit"`, numbers from 0 to 1; or `"bytes"`, whole numbers 0 to 255, as `DiscretizedLogistic` takes
            them.
        download: whether torchvision may download the files.

    Raises:
        ValueError: for files that are truncated or corrupted, or arguments out of range.
        FileNotFoundError: without the files.

    References:
        Krizhevsky (2009), Learning multiple layers of features from tiny images.
    """
    check_options(split, pixels=pixels)
    folder = require_files(data_dir, "CIFAR10", download, "put the folder of CIFAR-10's batches there")
    names = [name for name in _MD5 if name.startswith("data") == (split == "train")]
    batches = [_read_batch(folder / "cifar-10-batches-py" / name) for name in names]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return from_bytes(images, labels, name="CIFAR-10", split=split, source="torchvision's files", pixels=pixels)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: expected a file {path}; got none; put it there, or delete its folder.")
    content = path.read_bytes()
    try:
        found = _Arrays(io.BytesIO(content), encoding="latin1").load()
        images, labels = np.asarray(found["data"]), np.asarray(found["labels"])
    except Exception as error:  # pickle raises errors of many kinds for other bytes
        raise _corrupted(path, f"{type(error).__name__}: {error}") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3 * 32 * 32) or labels.dtype.kind != "i":
        raise _corrupted(path, f"arrays of shape {images.shape} and {labels.shape}")
    if len(images) == _CANONICAL_SIZE and hashlib.md5(content, usedforsecurity=False).hexdigest() != _MD5[path.name]:
        raise _corrupted(path, f"another md5 than {_MD5[path.name]}")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
CALLED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
"""What a pickled array asks for, by module and name."""


class _Arrays(pickle.Unpickler):
    """Take arrays out of a pickle, and call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a constructor of arrays."""
        if (module, name) not in CALLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return CALLED[module, name]


def _corrupted(path: Path, found: str) -> ValueError:
    return damaged(path, "a batch of CIFAR-10", found, "delete it with its folder and download it again")
