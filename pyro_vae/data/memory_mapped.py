"""Data that are larger than memory: rows of `.npy` files, read when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from pyro_vae import _checks

__all__ = ["MemoryMapped"]


class MemoryMapped(torch_data.Dataset[Tensor]):
    """Rows of `.npy` files, one file after the other, for `fit` or a `DataLoader`.

    Files are mapped into memory and not read: what a batch asks for is read by the system, which keeps it for all
    processes of a machine together. So they may be larger than memory. Rows come as float32.

    Args:
        paths: files of numbers, each `(n, *shape)`, with one shape for all.
        scale: what numbers are divided by: 255 for pixels of 8 bits.

    Raises:
        FileNotFoundError, TypeError, ValueError: for files that are missing, without rows, or no numbers; for rows of
            different shapes; for a scale that is not positive.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for name in "ab":
        ...     np.save(f"{folder}/{name}.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
        >>> data = MemoryMapped([f"{folder}/a.npy", f"{folder}/b.npy"], scale=5)
        >>> len(data), data[4]
        (6, tensor([0.4000, 0.6000]))
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], scale: float = 1.0) -> None:
        self.paths, self.scale = [Path(path) for path in paths], _checks.positive("scale", scale)
        if not self.paths:
            raise ValueError("paths: expected .npy files; got none; name one.")
        self.arrays = self._map()
        first = self.arrays[0]
        for path, array in zip(self.paths, self.arrays, strict=True):
            if array.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"paths: expected rows of one shape, {first.shape[1:]} as in {str(self.paths[0])!r}; got "
                    f"{array.shape[1:]} in {str(path)!r}; leave it out."
                )
        self.ends = np.array([*accumulate(map(len, self.arrays))])

    def _map(self) -> list[np.ndarray]:
        return [_mapped(path) for path in self.paths]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the arrays out: a worker that is started anew maps the files itself."""
        return {name: value for name, value in self.__dict__.items() if name != "arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.arrays = self._map()

    @property
    def fingerprint(self) -> str:
        """Identify the data by the form, the size and the first and last row of each file: not all is read."""
        digest = hashlib.sha256(repr(self.scale).encode())
        for array in self.arrays:
            digest.update(f"{array.shape} {array.dtype}".encode() + array[0].tobytes() + array[-1].tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]
        file = int(np.searchsorted(self.ends, index, side="right"))
        array = self.arrays[file]
        row = array[index - int(self.ends[file]) + len(array)]
        return torch.from_numpy(np.array(row, dtype=np.float32)) / self.scale

    def __repr__(self) -> str:
        return f"MemoryMapped({len(self):,} data of shape {self.arrays[0].shape[1:]} in {len(self.paths)} files)"


def _mapped(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"paths: expected a file; got {str(path)!r}, which is not there; check the path.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"paths: expected a .npy file; got {str(path)!r} ({error}); name another.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim < 1 or not len(array):
        found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise ValueError(f"paths: expected numbers in rows; got {found} in {str(path)!r}; name another.")
    return array
