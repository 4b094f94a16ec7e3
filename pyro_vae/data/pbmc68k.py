"""Counts of molecules in blood cells. The only file that imports h5py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pyro_vae import _checks
from pyro_vae.data._arrays import read_arrays, read_words
from pyro_vae.data._shared import check_options, damaged, drawn_rows
from pyro_vae.data.dataset import Dataset, from_tensor

__all__ = ["pbmc68k"]

CARRIED = Path("datasets") / "10x_pbmc68k_reduced.h5ad"
FILE = "pbmc68k_counts.npz"
PER_CELL = 10_000
"""Each cell's counts were scaled to this sum over all genes before the logarithm."""


def pbmc68k(data_dir: str | Path = "data", *, split: Literal["train", "test"] = "train") -> Dataset:
    """Load counts of molecules in blood cells: 560 and 140 cells x 765 genes, `(N, 765)`, of ten types.

    They are recovered from the file that the package scanpy carries (which takes h5py; scanpy is not imported): it has
    log(1 + 10,000 n / total) for n molecules of a gene among the total of a cell, and n is a whole number. Or they are
    read from `pbmc68k_counts.npz`, with `counts`, `cell_type` and, if there are any, `names` of the types, in
    `data_dir` or its folder `pbmc`, which is looked for first. The file has no test part; here it is drawn at random,
    always the same. Nothing is downloaded.

    Args:
        data_dir: the folder.
        split: `"train"` or `"test"`.

    Raises:
        ValueError: for files that are damaged or hold other numbers.
        FileNotFoundError: without a file.

    References:
        Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells; the selection of
        cells and genes is that of Wolf, Angerer and Theis (2018), SCANPY: large-scale single-cell gene expression data
        analysis.
    """
    check_options(split)
    folder = Path(data_dir)
    saved = next((path for path in (folder / FILE, folder / "pbmc" / FILE) if path.is_file()), None)
    if saved is not None:
        counts, types, source = read_arrays(saved, "counts")[0], read_arrays(saved, "cell_type")[0], saved.name
        names = read_words(saved, "names")
    else:
        counts, types, names = _recovered(_carried(folder))
        source = "the package scanpy, log-normalised values as whole numbers again"
    if counts.ndim != 2 or types.shape != counts.shape[:1] or len(counts) < 10 or (counts != np.round(counts)).any():
        raise _damaged(saved or CARRIED, f"shapes {counts.shape} and {types.shape}, or fractions")
    rows = drawn_rows(split, len(counts), len(counts) // 5)
    x = torch.from_numpy(counts[rows].astype(np.float32))
    labels = types[rows].astype(np.int64)
    return from_tensor(x, labels, label_names=names, name="PBMC 68k, reduced", split=split, source=source)


def _carried(folder: Path) -> Path:
    package = importlib.util.find_spec("scanpy")
    locations = [] if package is None else package.submodule_search_locations or []
    for location in locations:
        if (Path(location) / CARRIED).is_file():
            return Path(location) / CARRIED
    raise FileNotFoundError(
        f"data_dir: expected {FILE} in {folder} or {folder / 'pbmc'}, or the package scanpy, which carries "
        f"{CARRIED.name}; got neither; pip install scanpy."
    )


def _recovered(path: Path) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Recover counts from scaled logarithms, and check that they are whole; and types of cells, and their names."""
    try:
        import h5py
    except ImportError as error:
        raise _checks.missing_package("data", "h5py", f"to read {path}") from error
    try:
        with h5py.File(path) as file:
            logarithms, columns, starts = (file["raw.X"][name][:] for name in ("data", "indices", "indptr"))
            num_genes, cells = len(file["raw.var"]), file["obs"][:]
            known = file["uns"]["bulk_labels_categories"][:] if "bulk_labels_categories" in file.get("uns", ()) else []
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in known] or None
        rows = np.repeat(np.arange(len(cells)), np.diff(starts))
        scaled = np.zeros((len(cells), num_genes))
        scaled[rows, columns] = np.expm1(logarithms.astype(np.float64))
        found, types = scaled * cells["n_counts"][:, None] / PER_CELL, cells["bulk_labels"]
    except Exception as error:  # h5py raises errors of many kinds for other bytes
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    counts = np.round(found)
    # Logarithms are of four digits or so; a tenth of a molecule is far from the next whole number.
    if np.abs(found - counts).max() > 0.1:
        raise _damaged(path, f"a count of {found.flat[np.abs(found - counts).argmax()]:.3f}")
    return counts, types, names


def _damaged(path: Path, found: str) -> ValueError:
    return damaged(path, "counts of molecules, cells x genes,", found, "install or save it again")
