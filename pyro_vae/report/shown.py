"""Data as pictures, if they are images, and else as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_vae import _html, plots
from pyro_vae.report.page import picture, pictures

__all__ = ["Shown", "image_shape"]

SMALLEST_SIDE = 8
"""Of flat squares that are taken for images: a table may well have 9 or 16 columns."""
NUM_COLUMNS = 8


def image_shape(x: Tensor) -> tuple[int, int, int] | None:
    """Return the shape (C, H, W) of data that are images."""
    shape = tuple(x.shape[1:])
    if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 1:
        return shape[0], shape[1], shape[2]
    observed = x[~x.isnan()]
    if not len(observed) or observed.min() < 0 or observed.max() > 1:
        return None
    if len(shape) == 2 and min(shape) >= SMALLEST_SIDE:
        return 1, shape[0], shape[1]
    side = math.isqrt(math.prod(shape))
    return (1, side, side) if len(shape) == 1 and side * side == shape[0] and side >= SMALLEST_SIDE else None


@dataclass(frozen=True)
class Shown:
    """How data of a kind are shown: as images of a shape, whose numbers lie between two others."""

    shape: tuple[int, int, int] | None
    low: float
    high: float

    @classmethod
    def like(cls, x: Tensor) -> Shown:
        """Choose how to show data."""
        shape = image_shape(x)
        observed = x[~x.isnan()] if shape is not None else x[:0]
        low, high = (observed.min().item(), observed.max().item()) if observed.numel() else (0.0, 1.0)
        return cls(shape, 0.0, 1.0) if low >= 0 and high <= 1 else cls(shape, low, high)

    @property
    def scaling(self) -> str:
        """What to say of the pictures' greys."""
        if (self.low, self.high) == (0.0, 1.0):
            return ""
        return f"Pictures are scaled: {self.low:g} to {self.high:g} is the whole range."

    def files(self, x: Tensor) -> list[bytes]:
        """Return the data as PNG files."""
        assert self.shape is not None
        images = x.detach().cpu().float().reshape(-1, *self.shape)
        return plots.as_png(((images - self.low) / (self.high - self.low)).clamp(0, 1))

    def html(
        self, columns: Sequence[Tensor], names: Sequence[str], captions: Sequence[str] = (), *, beside: bool = False
    ) -> str:
        """Show each datum's original and what belongs to it, as pictures with a caption or as rows of a table."""
        if self.shape is None:
            return self._rows(columns, names, captions)
        is_grey = self.shape[0] == 1
        files = zip(*map(self.files, columns), strict=True)
        labels = captions or [""] * len(columns[0])
        some = [
            picture(
                each,
                f"{names[0]} {place if not label else label.splitlines()[0]}",
                caption=label,
                is_grey=is_grey,
                beside=beside,
            )
            for place, (each, label) in enumerate(zip(files, labels, strict=True))
        ]
        return pictures(some, wide=beside)

    def _rows(self, columns: Sequence[Tensor], names: Sequence[str], captions: Sequence[str]) -> str:
        flat = [column.detach().cpu().reshape(len(column), -1) for column in columns]
        width = min(NUM_COLUMNS, flat[0].shape[1])
        rows = []
        for place in range(len(flat[0])):
            for name, column in zip(names, flat, strict=True):
                rows.append([captions[place] if captions else place, name, *map(float, column[place, :width])])
        more = flat[0].shape[1] - width
        heads = ["datum", "", *(f"[{column}]" for column in range(width))]
        table = _html.table(rows, heads)
        return f"{table}<p>The first {width} of {width + more} columns.</p>" if more else table
