"""Frey Face."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pyro_vae.data._arrays import read_arrays
from pyro_vae.data._matlab import read_mat
from pyro_vae.data._shared import check_options, damaged, drawn_rows
from pyro_vae.data.dataset import Dataset, Pixels, from_bytes

__all__ = ["frey_faces"]

FILES = ("frey_rawface.mat", "frey_faces.npz")
HEIGHT, WIDTH = 28, 20


def frey_faces(
    data_dir: str | Path = "data", *, split: Literal["train", "test"] = "train", pixels: Pixels = "unit"
) -> Dataset:
    """Load Frey Face: 1,965 grey images of one face from a film, `(N, 1, 28, 20)`; a tenth of them to test on.

    They are read from `frey_rawface.mat`, as Roweis published it (560 x 1,965, which takes scipy), or `frey_faces.npz`
    with `images` `(N, 28, 20)`, in `data_dir` or its folder `frey`. No licence is stated, and nothing is downloaded.
    There is no test part in the file: here it is drawn at random, always the same. Neighbours in the film are alike, so
    that test images resemble some that were trained on.

    Args:
        data_dir: the folder.
        split: `"train"` or `"test"`.
        pixels: `"unit"` or `"bytes"`, as in `cifar10`.

    Raises:
        ValueError: for files that are truncated or corrupted, or hold other images.
        FileNotFoundError: without the files.

    References:
        Roweis, Saul and Hinton (2002), Global coordination of local linear models.
    """
    check_options(split, pixels=pixels)
    folder = Path(data_dir)
    paths = [place / name for place in (folder, folder / "frey") for name in FILES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"data_dir: expected {' or '.join(FILES)} in {folder} or {folder / 'frey'}; got none; put it there."
        )
    images = _read(path)
    rows = drawn_rows(split, len(images), len(images) // 10)
    return from_bytes(images[rows, None], None, name="Frey Face", split=split, source=path.name, pixels=pixels)


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        images = read_arrays(path, "images")[0]
    else:
        (columns,) = read_mat(path, "ff")
        images = columns.T.reshape(-1, HEIGHT, WIDTH) if len(columns) == HEIGHT * WIDTH else columns
    if images.dtype != np.uint8 or images.shape[1:] != (HEIGHT, WIDTH) or len(images) < 10:
        found = f"{images.dtype} of shape {images.shape}"
        raise damaged(path, "bytes of 28 x 20 images", found, "put the right file there")
    return images
