"""MNIST that was binarized once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pyro_vae.data._arrays import read_arrays
from pyro_vae.data._matlab import read_mat
from pyro_vae.data._shared import check_options, damaged, warn_of_another_size
from pyro_vae.data.dataset import Dataset, from_tensor

__all__ = ["static_mnist"]

NAMES = {"train": "train", "validation": "valid", "test": "test"}
NUM_ROWS = {"train": 50_000, "validation": 10_000, "test": 10_000}
SUFFIXES = (".amat", ".mat", ".npz")


def static_mnist(data_dir: str | Path = "data", *, split: Literal["train", "validation", "test"] = "train") -> Dataset:
    """Load statically binarized MNIST: 50,000, 10,000 and 10,000 digits, `(N, 1, 28, 28)` of zeros and ones.

    They are read from `binarized_mnist_train.amat`, `..._valid` and `..._test` in `data_dir` or its folder
    `static_mnist`: lines of 784 digits, as Larochelle published them; or the same as `.mat`, with an array `X`, which
    takes scipy; or as `.npz`, with an array `x`. There are no labels, and nothing is downloaded. Whether files hold
    Larochelle's own draw is not checked: compare `provenance.sha256` with others'. For a draw of our own, see `mnist`.

    Args:
        data_dir: the folder.
        split: which part.

    Raises:
        ValueError: for files that end within a row or are corrupted, or hold other numbers. Of
            another number of rows it warns.
        FileNotFoundError: without the files.

    References:
        Larochelle and Murray (2011), The neural autoregressive distribution estimator; Salakhutdinov and Murray (2008),
        On the quantitative analysis of deep belief networks.
    """
    check_options(split, tuple(NAMES))
    path = _found(Path(data_dir), f"binarized_mnist_{NAMES[split]}")
    values = _read(path)
    if values.ndim != 2 or values.shape[1] != 784 or not len(values) or not np.isin(values, (0, 1)).all():
        found = f"shape {values.shape}, or other numbers"
        raise damaged(path, "rows of 784 zeros and ones", found, "put the right file there")
    warn_of_another_size("statically binarized MNIST", split, len(values), NUM_ROWS[split])
    x = torch.from_numpy(values.astype(np.float32)).reshape(-1, 1, 28, 28)
    return from_tensor(x, name="statically binarized MNIST", split=split, source=path.name)


def _found(folder: Path, stem: str) -> Path:
    paths = [place / f"{stem}{suffix}" for place in (folder, folder / "static_mnist") for suffix in SUFFIXES]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"data_dir: expected {stem}{', '.join(SUFFIXES)} in {folder} or {folder / 'static_mnist'}; got none; put it "
        "there, or use pv.data.mnist(binarization='static')."
    )


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        return read_arrays(path, None)[0]
    if path.suffix == ".mat":
        return read_mat(path, "X")[0]
    return _read_digits(path)


def _read_digits(path: Path) -> np.ndarray:
    """Read lines of zeros and ones with blanks between: fast, since numbers are single characters."""
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    digits = content[(content == ord("0")) | (content == ord("1"))] - ord("0")
    if not np.isin(content, np.frombuffer(b"01 \t\r\n", dtype=np.uint8)).all() or len(digits) % 784:
        return np.empty((0, len(digits)))
    return digits.reshape(-1, 784)
