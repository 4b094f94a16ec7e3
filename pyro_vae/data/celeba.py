"""CelebA."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae import _checks
from pyro_vae.data._images import read_files
from pyro_vae.data._shared import check_options, damaged, warn_of_another_size
from pyro_vae.data._torchvision import require_files
from pyro_vae.data.dataset import Dataset, Pixels, from_bytes

__all__ = ["celeba"]

NUM_IMAGES = {"train": 162_770, "validation": 19_867, "test": 19_962}
PARTS = {"train": 0, "validation": 1, "test": 2}


def celeba(
    data_dir: str | Path = "data",
    *,
    split: Literal["train", "validation", "test"] = "train",
    attribute: str | None = None,
    image_size: int = 64,
    crop: int = 148,
    num_data: int | None = None,
    pixels: Pixels = "unit",
    download: bool = True,
) -> Dataset:
    """Load CelebA: 162,770, 19,867 and 19,962 faces, `(N, 3, 64, 64)`.

    They are read from files in `data_dir` (torchvision's layout, `celeba/img_align_celeba/` and two of the lists beside
    it), or else downloaded there by torchvision. The middle of each image of 218 x 178 is cut out and scaled; papers
    differ in its size, and figures on different ones are not comparable.

    Args:
        data_dir: the folder.
        split: the authors' partition.
        attribute: one of the forty, such as "Smiling", to be the label, 0 or 1; without one there are no labels.
        image_size: height and width.
        crop: height and width of the square that is cut out.
        num_data: how many are read, the first ones; all by default, 2 GB of bytes to train on, or 8 GB of numbers.
        pixels: `"unit"` or `"bytes"`, as in `cifar10`.
        download: whether torchvision may download the files.

    Raises:
        ValueError: for lists or images that are truncated or corrupted, or arguments out of range.
        FileNotFoundError: without the files.

    References:
        Liu, Luo, Wang and Tang (2015), Deep learning face attributes in the wild.
    """
    check_options(split, tuple(PARTS), pixels=pixels)
    size, crop = _checks.whole_number("image_size", image_size), _checks.whole_number("crop", crop)
    folder = require_files(data_dir, "CelebA", download, "put the folder celeba there") / "celeba"
    partition = {words[0]: words[1] for words in _lines(folder / "list_eval_partition.txt", 0, 2)}
    names = [name for name, part in partition.items() if part == str(PARTS[split])]
    warn_of_another_size("CelebA", split, len(names), NUM_IMAGES[split])
    names = names if num_data is None else names[: _checks.whole_number("num_data", num_data)]
    if not names:
        raise ValueError(f"data_dir: expected images to {split} in {folder}; got none; put the whole list there.")
    labels = None if attribute is None else _labels(folder / "list_attr_celeba.txt", attribute, names)
    images = read_files([folder / "img_align_celeba" / name for name in names], (size, size), crop)
    source = f"torchvision's files, the middle {crop} x {crop} scaled to {size} x {size}"
    return from_bytes(images, labels, name="CelebA", split=split, source=source, pixels=pixels)


def _labels(path: Path, attribute: str, names: list[str]) -> np.ndarray:
    """Read an attribute of each image, 1 or -1 in the list, as 1 or 0."""
    (attributes,) = _lines(path, 1, None, most=1)
    _checks.choice("attribute", attribute, attributes)
    place = 1 + attributes.index(attribute)
    values = {words[0]: int(words[place] == "1") for words in _lines(path, 2, 1 + len(attributes))}
    absent = next((name for name in names if name not in values), None)
    if absent is not None:
        raise ValueError(f"data_dir: expected attributes of {absent} in {path}; got none; put the whole list there.")
    return np.array([values[name] for name in names])


def _lines(path: Path, first: int, width: int | None, most: int | None = None) -> list[list[str]]:
    """Split lines into words; each has as many as there are columns."""
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: expected a file {path}; got none; put it there.")
    last = None if most is None else first + most
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()[first:last]]
    if not lines or (width is not None and any(len(words) != width for words in lines)):
        raise damaged(path, f"lines of {width or 'several'} words", "others", "download it again")
    return lines
