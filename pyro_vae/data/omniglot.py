"""Omniglot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pyro_vae import _checks
from pyro_vae.data._idx import dataset_of, require_files
from pyro_vae.data._images import read_images
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
    _checks.choice("split", split, ("train", "test"))
    folder = require_files(data_dir, "Omniglot", download, "put the folder of Omniglot's images there")
    images, labels = read_images(folder / "omniglot-py" / FOLDERS[split], (28, 28), "resize", 1)
    assert labels is not None  # all images lie in the folder of an alphabet
    source = "torchvision's files, scaled to 28 x 28"
    return dataset_of(255 - images, labels, "Omniglot", split, source, binarization, seed)
