"""Data by name or from a file or a folder."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.data._arrays import read_array, read_arrays
from pyro_vae.data._images import is_folder_of_images, read_images
from pyro_vae.data._table import Table, read_csv, read_parquet
from pyro_vae.data.celeba import celeba
from pyro_vae.data.cifar10 import cifar10
from pyro_vae.data.dataset import BINARIZATIONS, Binarization, Dataset, from_tensor
from pyro_vae.data.emnist import emnist
from pyro_vae.data.fashion_mnist import fashion_mnist
from pyro_vae.data.frey_faces import frey_faces
from pyro_vae.data.kmnist import kmnist
from pyro_vae.data.mnist import mnist
from pyro_vae.data.omniglot import omniglot
from pyro_vae.data.pbmc68k import pbmc68k
from pyro_vae.data.photographs import photographs
from pyro_vae.data.scikit_learn import breast_cancer, digits, wine
from pyro_vae.data.static_mnist import static_mnist
from pyro_vae.data.svhn import svhn

__all__ = ["NAMES", "load", "names_of_columns", "train_and_test"]

NAMES: dict[str, Callable[..., Dataset]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "kmnist": kmnist,
    "emnist": emnist,
    "static-mnist": static_mnist,
    "omniglot": omniglot,
    "celeba": celeba,
    "cifar-10": cifar10,
    "svhn": svhn,
    "frey-faces": frey_faces,
    "digits": digits,
    "photographs": photographs,
    "breast-cancer": breast_cancer,
    "wine": wine,
    "pbmc-68k": pbmc68k,
}
"""Data sets with a name, each with a reader, of which each has a test part of its own."""

FILES = (".npz", ".npy", ".csv", ".tsv", ".parquet")
MISSING = ("refuse", "drop", "keep")
MOST_HELD_OUT = 1000
CHANNELS = (1, 3, 4)


def load(
    source: str | PathLike[str],
    *,
    split: Literal["train", "test", "all"] = "train",
    num_test: int | None = None,
    binarization: Binarization | Literal["auto"] | None = "auto",
    missing: Literal["refuse", "drop", "keep"] = "refuse",
    image_size: Sequence[int] | None = None,
    image_fit: Literal["resize", "crop"] = "resize",
    channels: int | None = None,
    key: str | None = None,
    data_dir: str | PathLike[str] = "data",
    download: bool = True,
    seed: int = 0,
) -> Dataset:
    """Load a data set by its name, or from a folder of images, an array or a table.

    Bytes are grey levels: they are divided by 255, unless they are zeros and ones. Images come as `(N, C, H, W)`, rows
    of a table as `(N, D)`.

    Args:
        source: one of `pv.data.NAMES`, such as "mnist"; or a path, to
            a folder of images, whose subfolders, if all images lie in such, are the labels;
            an `.npz` file with `x` and, if it has them, `labels`; an `.npy` file;
            a `.csv` table of numbers, with or without names of columns, one of which may be `label`, and with nothing
            (or NaN) where a value is missing; or a `.parquet` table, which takes the package pyarrow.
        split: of data without parts of their own, "test" is a share that is held out at random, "train" the rest.
        num_test: how many are held out; by default a tenth, at most 1,000.
        binarization: as in `from_tensor`; "auto" is "dynamic" for grey images, and None for all other data.
        missing: what is done with rows that lack a value: "refuse" them with an error; "drop" them; or "keep" them,
            with NaN in `Dataset.x`, for `pv.impute` and for VAEs with `likelihoods.Incomplete`.
        image_size: (height, width), for images of several sizes.
        image_fit: "resize" an image to it, whatever becomes of the proportions; or "crop" to the middle of it, scaled
            to fill the size.
        channels: 1, 3 or 4, to convert images to; by default they are kept.
        key: the array of an `.npz` file, instead of `x`.
        data_dir, download: of data by name, as in `mnist`.
        seed: of what is held out, and of the binarization.

    Raises:
        TypeError, ValueError, FileNotFoundError: for data that cannot be read, or with values missing; files of images
            and lines of tables are named.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "iris.csv"
        >>> _ = path.write_text("length,width,label\\n" + "5.1,3.5,0\\n6.2,2.9,1\\n" * 10)
        >>> train, test = (load(path, split=split) for split in ("train", "test"))
        >>> train.x.shape, len(test)
        (torch.Size([18, 2]), 2)
    """
    _checks.choice("missing", missing, MISSING)
    _checks.choice("split", split, ("train", "test", "all"))
    _checks.choice("binarization", binarization, (*BINARIZATIONS, "auto"))
    if str(source) in NAMES:
        _refuse_options_of_files(str(source), image_size=image_size, channels=channels, key=key, num_test=num_test)
        return _by_name(str(source), split, binarization, data_dir, download, seed)
    raw = _read(_existing(source), image_size, image_fit, channels, key)
    whole = _dataset(raw, Path(source), missing, binarization, seed)
    return whole if split == "all" else train_and_test(whole, num_test, seed)[split == "test"]


def names_of_columns(source: str | PathLike[str]) -> tuple[str, ...] | None:
    """Return the names of a table's columns, without that of its labels; None for other data."""
    path = Path(source)
    table = path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".parquet")
    return _read_table(path).names if table else None


class _Raw(NamedTuple):
    """What a source holds, as it was read."""

    values: np.ndarray
    labels: Any


def _refuse_options_of_files(name: str, **options: Any) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option}: expected None for {name}, whose form is its own; got {value!r}; leave it out.")


def _by_name(name: str, split: str, binarization: Any, data_dir: Any, download: bool, seed: int) -> Dataset:
    if split == "all":
        raise ValueError(f"split: expected 'train' or 'test' for {name}; got 'all'; pass one of these.")
    reader = NAMES[name]
    taken = inspect.signature(reader).parameters
    if binarization not in ("auto", None) and "binarization" not in taken:
        raise ValueError(f"binarization: expected none for {name}; got {binarization!r}; leave it out.")
    options = {"data_dir": data_dir, "split": split, "seed": seed, "download": download}
    if binarization != "auto":
        options["binarization"] = binarization
    return reader(**{option: value for option, value in options.items() if option in taken})


def _existing(source: Any) -> Path:
    if not isinstance(source, (str, PathLike)):
        raise TypeError(f"data: expected a path or a name; got {source!r} of type {type(source).__name__}; pass one.")
    path = Path(source)
    if path.exists():
        return path
    near = difflib.get_close_matches(path.name, NAMES, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else "check the path"
    raise FileNotFoundError(
        f"data: expected {', '.join(NAMES)}, or the path of a file or folder; got {str(source)!r}, which is not there; "
        f"{remedy}"
    )


def _read(path: Path, image_size: Any, image_fit: str, channels: int | None, key: str | None) -> _Raw:
    suffix = path.suffix.lower()
    if key is not None and suffix != ".npz":
        raise ValueError(f"key: expected none, for data that are no .npz file; got {key!r}; leave it out.")
    if path.is_dir() and is_folder_of_images(path):
        return _Raw(*read_images(path, image_size, image_fit, channels))
    if image_size is not None or channels is not None:
        name = "channels" if image_size is None else "image_size"
        raise ValueError(f"{name}: expected none, for data that are no folder of images; got one; leave it out.")
    if path.is_dir():
        raise ValueError(
            f"data: expected a folder of images; got {str(path)!r}, which holds none; name another, or one of the "
            f"files in it ({', '.join(FILES)})."
        )
    if suffix == ".npz":
        return _Raw(*read_arrays(path, key))
    if suffix == ".npy":
        return _Raw(read_array(path), None)
    table = _read_table(path)
    return _Raw(table.values, table.labels)


def _read_table(path: Path) -> Table:
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path)
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    raise ValueError(f"data: expected a folder of images or a file {', '.join(FILES)}; got {str(path)!r}; convert it.")


def _dataset(raw: _Raw, path: Path, missing: str, binarization: Any, seed: int) -> Dataset:
    """Make a data set of what was read, with rows in which values are missing or without them."""
    x, labels = _laid_out(raw.values, path), raw.labels
    absent = torch.isnan(x) if x.is_floating_point() else torch.zeros(x.shape, dtype=torch.bool)
    incomplete = absent.flatten(1).any(1)
    if x.is_floating_point() and x.isinf().any():
        raise ValueError(
            f"data: expected numbers that float32 can hold in {str(path)!r}; got infinite or larger ones in "
            f"{int(x.isinf().flatten(1).any(1).sum()):,} of the {len(x):,} rows; scale or remove them."
        )
    if incomplete.any() and missing == "refuse":
        raise ValueError(
            f"data: expected complete data; got values missing in {int(incomplete.sum()):,} of the {len(x):,} rows of "
            f"{str(path)!r}; pass missing='keep' (--missing keep) to learn from what was observed, or 'drop' to leave "
            "these rows out; either way pv.impute (pyro-vae impute) fills them in."
        )
    if incomplete.any() and missing == "drop":
        kept = ~incomplete
        x, labels = x[kept], None if labels is None else labels[kept.numpy()]
        if not len(x):
            raise ValueError(f"data: expected complete rows to keep; got none in {str(path)!r}; fill some in.")
    source = str(path.resolve())
    chosen: Any = ("dynamic" if _is_grey(x) else None) if binarization == "auto" else binarization
    return from_tensor(
        x if chosen else _as_numbers(x), labels, name=path.stem, source=source, binarization=chosen, missing="keep",
        seed=seed,
    )  # fmt: skip


def _laid_out(values: np.ndarray, path: Path) -> Tensor:
    """Give data a dimension after the first, images one of channels, and bytes of zeros and ones their meaning."""
    if values.ndim == 0 or values.size == 0:
        raise ValueError(
            f"data: expected rows of numbers in {str(path)!r}; got an array of shape {values.shape}; save (N, ...)."
        )
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=_dtype(values)))
    if x.ndim == 1:
        return x[:, None]
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[-1] in CHANNELS:
        return x.movedim(-1, 1).contiguous()
    return x


def _dtype(values: np.ndarray) -> Any:
    if values.dtype != np.uint8 or values.max() <= 1:
        return np.float32
    return np.uint8


def _is_grey(x: Tensor) -> bool:
    """Tell whether these are images of one channel in grey levels, not all of them black or white."""
    if x.ndim != 4 or x.shape[1] != 1:
        return False
    if x.dtype == torch.uint8:
        return True
    known = x[~x.isnan()]
    return bool(((known >= 0) & (known <= 1)).all()) and not bool(((known == 0) | (known == 1)).all())


def _as_numbers(x: Tensor) -> Tensor:
    return x / 255 if x.dtype == torch.uint8 else x.to(torch.get_default_dtype())


def train_and_test(whole: Dataset, num_test: int | None = None, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold out a test part at random, by default a tenth of the data and at most 1,000."""
    number = min(MOST_HELD_OUT, len(whole) // 10) if num_test is None else _checks.whole_number("num_test", num_test)
    if number >= len(whole) or not number:
        raise ValueError(
            f"num_test: expected fewer than the {len(whole)} data, of which a tenth is held out by default; got "
            f"{number}; pass num_test (--num-test), or more data."
        )
    return whole.hold_out(number, seed)
