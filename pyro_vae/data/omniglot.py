"""Omniglot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae.data._images import read_images
from pyro_vae.data._shared import check_options, grey_images
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Binarization, Dataset

__all__ = ["omniglot"]

FOLDERS = {"train": "images_background", "test": "images_evaluation"}


def omniglot(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load Omniglot: 19,280 and 13,180 characters of 30 and 20 alphabets, `(N, 1, 28, 28)`, strokes light on dark.

    They are read from files in `data_dir` (torchvision's layout, `omniglot-py/`), or else downloaded there by
    torchvision, and scaled down from 105 x 105. The 28 x 28 images of Burda, Grosse and Salakhutdinov (2016) were made
    otherwise and split otherwise: figures on them are not comparable. Labels number the alphabets; test alphabets are
    others than those to train on. Arguments and errors are those of `mnist`; this takes Pillow.

    References:
        Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning through probabilistic program induction.
    """
    check_options(split, binarization=binarization)
    folder = Path("omniglot-py") / FOLDERS[split]
    needed = f"{folder.as_posix()}/*/*/*.png"
    data_dir = require_files(data_dir, "Omniglot", download, f"put the images in {folder} there", needed=needed)
    images, labels = read_images(data_dir / folder, (28, 28), "resize", 1)
    labels = np.zeros(len(images), dtype=np.int64) if labels is None else labels  # of one alphabet alone
    source = "torchvision's files, scaled to 28 x 28"
    return grey_images(255 - images, labels, "Omniglot", split, source, binarization, seed)
