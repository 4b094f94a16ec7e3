"""Files that commands write: grids of images, arrays and tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae import plots
from pyro_vae.cli.failure import refuse

__all__ = ["PICTURES", "checked_output", "write_arrays", "write_picture", "write_table"]

PICTURES = (".png", ".pdf", ".svg", ".jpg")
ARRAYS = (".npz", ".csv")


def checked_output(output: str, is_of_images: bool) -> Path:
    """Return the path of a file that can be written, before anything is computed."""
    path = Path(output)
    expected = PICTURES + ARRAYS if is_of_images else ARRAYS
    if path.suffix.lower() not in expected:
        found = (
            repr(output)
            if is_of_images or path.suffix.lower() not in PICTURES
            else f"{output!r}, for data that are no images"
        )
        refuse("--output", f"a name that ends in {', '.join(expected)}", found, "rename it")
    if not path.absolute().parent.is_dir():
        refuse("--output", "a file in a folder that is there", repr(output), f"mkdir -p {path.parent}")
    if path.is_dir():
        refuse("--output", "the name of a file", f"the folder {output!r}", "name a file in it")
    return path


def write_picture(path: Path, images: Tensor, originals: Tensor | None = None) -> None:
    """Draw a grid of images, `(N, C, H, W)` of 0 to 1, or originals above their reconstructions."""
    images = images.clamp(0, 1)
    ax = plots.image_grid(images) if originals is None else plots.reconstructions(originals.clamp(0, 1), images)
    figure: Any = ax.figure
    figure.savefig(path, dpi=150)
    figure.clear()


def write_arrays(path: Path, names: Sequence[str] | None, **arrays: Tensor) -> None:
    """Write all arrays to an `.npz` file, or `x` as a table."""
    if path.suffix.lower() == ".npz":
        np.savez_compressed(path, allow_pickle=False, **{name: each.cpu().numpy() for name, each in arrays.items()})
    else:
        write_table(path, names, arrays["x"], arrays.get("labels"))


def write_table(path: Path, names: Sequence[str] | None, x: Tensor, labels: Tensor | None = None) -> None:
    """Write rows of numbers, with a line of names, and a last column of labels if there are any."""
    rows = x.flatten(1).double().cpu()
    header = list(names) if names else [f"x{place}" for place in range(1, 1 + rows.shape[1])]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header + (["label"] if labels is not None else []))
        for place, row in enumerate(rows.tolist()):
            writer.writerow([f"{each:.9g}" for each in row] + ([int(labels[place])] if labels is not None else []))
