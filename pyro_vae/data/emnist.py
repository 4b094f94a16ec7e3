"""EMNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae import _checks
from pyro_vae.data._idx import read_pair
from pyro_vae.data._shared import check_options, grey_images
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Binarization, Dataset

__all__ = ["emnist"]

KINDS = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")


def emnist(
    data_dir: str | Path = "data",
    *,
    kind: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load EMNIST: handwritten letters and digits, `(N, 1, 28, 28)`; 112,800 and 18,800 of 47 classes if balanced.

    They are read from files in `data_dir` (torchvision's layout, `EMNIST/raw/`), or else downloaded there by
    torchvision. In the files images lie on their side; here they stand upright.

    Args:
        data_dir: the folder.
        kind: which of the six parts, as the authors name them. Labels are as in the files: letters count from 1.
        split, binarization, seed, download: as in `mnist`.

    Raises:
        ValueError: for files that are truncated or corrupted, or arguments out of range.
        FileNotFoundError: without the files.

    References:
        Cohen, Afshar, Tapson and van Schaik (2017), EMNIST: an extension of MNIST to handwritten letters.
    """
    _checks.choice("kind", kind, KINDS)
    check_options(split, binarization=binarization)
    folder = require_files(data_dir, "EMNIST", download, "put the files of EMNIST there")
    images, labels = read_pair(folder / "EMNIST" / "raw", f"emnist-{kind}-{split}", None, {})
    upright = np.ascontiguousarray(images.swapaxes(-1, -2))
    return grey_images(upright, labels, f"EMNIST {kind}", split, "torchvision's files", binarization, seed)
