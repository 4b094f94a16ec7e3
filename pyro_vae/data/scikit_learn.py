"""Data that the package scikit-learn carries. The only file that imports it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from pyro_vae import _checks
from pyro_vae.data._shared import check_options, drawn_rows
from pyro_vae.data.dataset import Binarization, Dataset, from_tensor

__all__ = ["breast_cancer", "digits", "sample_photographs", "wine"]

SOURCE = "the package scikit-learn"


def digits(
    *,
    split: Literal["train", "test"] = "train",
    binarization: Binarization | None = "dynamic",
    seed: int = 0,
) -> Dataset:
    """Load scikit-learn's digits: 1,438 and 359 handwritten digits, `(N, 1, 8, 8)`, of 17 grey levels.

    Nothing is downloaded: the package carries them. It has no test part; here it is drawn at random, always the same.

    Args:
        split: `"train"` or `"test"`.
        binarization: as in `mnist`; None gives grey levels from 0 to 1.
        seed: of the binarization.

    Raises:
        ValueError: for arguments out of range.
        ImportError: without the package.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits.

    Examples:
        >>> digits(split="test").x.shape
        torch.Size([359, 1, 8, 8])
    """
    found, rows = _loaded("load_digits", split, binarization)
    grey = torch.from_numpy(found.images[rows, None].astype(np.float32) / 16)
    return from_tensor(
        grey, found.target[rows], name="digits", split=split, source=SOURCE, binarization=binarization, seed=seed
    )


def breast_cancer(*, split: Literal["train", "test"] = "train") -> Dataset:
    """Load Breast Cancer Wisconsin: 456 and 113 tumours, `(N, 30)`, malignant (label 0) or benign (1).

    Arguments, errors and the test part are those of `digits`. Columns are in units that are far apart: standardize
    them, by those to train on.

    References:
        Street, Wolberg and Mangasarian (1993), Nuclear feature extraction for breast tumor diagnosis.

    Examples:
        >>> breast_cancer().x.shape
        torch.Size([456, 30])
    """
    return _table("load_breast_cancer", "breast cancer", split)


def wine(*, split: Literal["train", "test"] = "train") -> Dataset:
    """Load Wine: chemical analyses of 143 and 35 wines, `(N, 13)`, of three cultivars.

    Arguments, errors and the test part are those of `digits`; as for units, see `breast_cancer`.

    References:
        Forina et al. (1988), PARVUS: an extendible package for data exploration, classification and correlation.

    Examples:
        >>> wine(split="test").x.shape
        torch.Size([35, 13])
    """
    return _table("load_wine", "wine", split)


def sample_photographs() -> list[np.ndarray]:
    """Return two photographs, bytes `(427, 640, 3)`."""
    return _sklearn().load_sample_images().images


def _table(function: str, name: str, split: str) -> Dataset:
    found, rows = _loaded(function, split)
    x = torch.from_numpy(found.data[rows]).to(torch.get_default_dtype())
    names = found.target_names
    return from_tensor(x, found.target[rows], label_names=names, name=name, split=split, source=SOURCE)


def _loaded(function: str, split: str, binarization: Any = None) -> tuple[Any, np.ndarray]:
    """Call a loader of scikit-learn, and choose rows: a fifth to test on."""
    check_options(split, binarization=binarization)
    found = getattr(_sklearn(), function)()
    return found, drawn_rows(split, len(found.target), len(found.target) // 5)


def _sklearn() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise _checks.missing_package("data", "scikit-learn", "which carries these data") from error
    return datasets
