"""What readers of data sets share: options, parts that a file does not say, sizes, damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae import _checks
from pyro_vae.data.dataset import BINARIZATIONS, PIXELS, Dataset, from_tensor

__all__ = ["check_options", "damaged", "drawn_rows", "grey_images", "warn_of_another_size"]


def check_options(
    split: Any, splits: tuple[str, ...] = ("train", "test"), *, pixels: Any = "unit", binarization: Any = None
) -> None:
    """Check what readers take, before anything is read or downloaded."""
    _checks.choice("split", split, splits)
    _checks.choice("pixels", pixels, PIXELS)
    _checks.choice("binarization", binarization, BINARIZATIONS)


def drawn_rows(split: str, num_data: int, num_test: int) -> np.ndarray:
    """Return the rows of a part, where a file has no test part: drawn at random, always the same."""
    order = np.random.default_rng(0).permutation(num_data)
    return order[num_test:] if split == "train" else order[:num_test]


def grey_images(
    images: np.ndarray, labels: np.ndarray, name: str, split: str, source: str, binarization: Any, seed: int
) -> Dataset:
    """Make a data set of grey images, binarized or as numbers from 0 to 1."""
    pixels = torch.from_numpy(images)
    pixels = pixels / 255 if binarization is None else pixels
    return from_tensor(pixels, labels, name=name, split=split, source=source, binarization=binarization, seed=seed)


def damaged(path: Path, expected: str, found: str, remedy: str) -> ValueError:
    """Make the error of a file whose content is not what it should be."""
    return ValueError(
        f"data_dir: expected {expected} in {path}; got {found:.200}: it is truncated, corrupted or of another kind; "
        f"{remedy}."
    )


def warn_of_another_size(name: str, split: str, num_data: int, expected: int) -> None:
    """Warn of a part that is not whole: figures on it are not comparable with others'."""
    if num_data != expected:
        _checks.warn(
            f"data_dir: expected the {expected:,} data of {name} to {split}; got {num_data:,}: figures on them are "
            "not comparable with those of others; put the whole file there, unless a part is what you want."
        )
