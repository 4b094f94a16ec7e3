"""Kuzushiji-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pyro_vae.data._idx import idx_dataset
from pyro_vae.data.dataset import Binarization, Dataset

__all__ = ["kmnist"]


def kmnist(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load Kuzushiji-MNIST: 60,000 and 10,000 cursive Japanese characters of ten kinds, `(N, 1, 28, 28)`.

    They are read from files in `data_dir` (torchvision's layout, `KMNIST/raw/`), or else downloaded there by
    torchvision. Arguments and errors are those of `mnist`; torchvision publishes no hash of these files, so that only
    their form is checked.

    References:
        Clanuwat et al. (2018), Deep learning for classical Japanese literature.
    """
    return idx_dataset("Kuzushiji-MNIST", "KMNIST", data_dir, split, binarization, seed, download, {})
