"""Tensors with their provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae import _checks

__all__ = ["Binarization", "Dataset", "Pixels", "Provenance", "from_bytes", "from_tensor"]

Binarization = Literal["dynamic", "static", "threshold"]
Pixels = Literal["unit", "bytes"]
PIXELS = ("unit", "bytes")
"""Numbers from 0 to 1, or whole numbers 0 to 255."""
OF_NAN = "remove or impute them; or, for a program that takes NaN, pv.data.from_tensor(x, missing='keep')"
BINARIZATIONS = ("dynamic", "static", "threshold", None)


@dataclass(frozen=True)
class Provenance:
    """Where data come from: what must be the same for two figures to be comparable.

    Attributes:
        name: of the data set.
        split: which part of it.
        source: where it was read.
        num_data: how many data there are.
        binarization: `"dynamic"` (each pixel drawn with its grey level as probability, anew for each batch),
            `"static"` (drawn once), `"threshold"` (grey level above one half) or None (as it is).
        seed: of the draw of a static binarization, and of the fixed draw `Dataset.x` of a dynamic one.
        sha256: of `Dataset.x`, the data as they are evaluated.
    """

    name: str
    split: str
    source: str
    num_data: int
    binarization: Binarization | None
    seed: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        how = f"{self.binarization} binarization, seed {self.seed}" if self.binarization else "not binarized"
        return f"{self.name} {self.split}, {self.num_data:,} data from {self.source}; {how}; sha256 {self.sha256[:12]}"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Data in memory, with their provenance.

    Attributes:
        x: `(N, ...)`: the data, as they are evaluated; a dynamic binarization is drawn once for them. NaN where an
            entry is missing.
        grey: `(N, ...)`: where the binarization is dynamic, the grey levels: uint8 of 0 to 255, or floating of 0 to 1.
        labels: `(N,)` of int64, or None.
        provenance: where they come from and how they are binarized.
        label_names: what labels 0, 1, ... stand for, or None.
    """

    x: Tensor
    grey: Tensor | None
    labels: Tensor | None
    provenance: Provenance
    label_names: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.x.device

    @property
    def mean(self) -> Tensor:
        """The mean datum, `(...)` float: grey levels as probabilities, where the binarization is dynamic.

        Of what was observed, where entries are missing.
        """
        return (self.x if self.grey is None else _probabilities(self.grey)).to(torch.get_default_dtype()).nanmean(0)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the data of some rows `(B,)`, counted from 0, as they are trained on.

        A dynamic binarization is drawn anew by torch's generator.
        """
        if self.grey is None:
            return self.x.index_select(0, rows)
        grey = self.grey.index_select(0, rows)
        return _bernoulli_255(grey) if grey.dtype == torch.uint8 else _bernoulli(_probabilities(grey))

    def hold_out(self, num_data: int, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Split at random into all but `num_data` of the data, and these."""
        num_data = _checks.whole_number("num_data", num_data)
        if num_data >= len(self):
            raise ValueError(f"num_data: expected fewer than the {len(self)} data; got {num_data}; hold out fewer.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept, held_out = order[num_data:], order[:num_data]
        return self._part(kept, f"less {num_data:,} held out"), self._part(held_out, f"{num_data:,} held out")

    def first(self, num_data: int) -> Dataset:
        """Return the first `num_data` of the data, or all if there are fewer."""
        num_data = min(_checks.whole_number("num_data", num_data), len(self))
        return self if num_data == len(self) else self._part(torch.arange(num_data), f"first {num_data:,}")

    def _part(self, rows: Tensor, which: str) -> Dataset:
        rows = rows.to(self.device)
        x = self.x[rows]
        grey = None if self.grey is None else self.grey[rows]
        labels = None if self.labels is None else self.labels[rows]
        split = f"{self.provenance.split} ({which})"
        provenance = replace(self.provenance, split=split, num_data=len(rows), sha256=_sha256(x))
        return replace(self, x=x, grey=grey, labels=labels, provenance=provenance)

    def to(self, device: torch.device | str) -> Dataset:
        """Move the data to another device."""
        grey = None if self.grey is None else self.grey.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, x=self.x.to(device), grey=grey, labels=labels)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Dataset({self.provenance})"


def from_tensor(
    x: Any,
    labels: Any = None,
    *,
    label_names: Sequence[str] | None = None,
    name: str = "tensor",
    split: str = "all",
    source: str = "a tensor",
    binarization: Binarization | None = None,
    missing: Literal["refuse", "keep"] = "refuse",
    seed: int = 0,
) -> Dataset:
    """Make a data set from a tensor or a numpy array.

    Args:
        x: `(N, ...)`. To be binarized, it must hold grey levels: uint8 of 0 to 255, or other numbers of 0 to 1. Without
            binarization it is kept as it is.
        labels: `(N,)` whole numbers, or None.
        label_names: what labels 0, 1, ... stand for.
        name, split, source: for the provenance.
        binarization: `"dynamic"`, `"static"`, `"threshold"` or None; see `Provenance`.
        missing: "keep" to take NaN in x for missing entries, which a binarization leaves as they are.
        seed: of the binarization.

    Raises:
        TypeError, ValueError: unless x is a dense real tensor of finite numbers, and of grey levels if binarized.

    Examples:
        >>> grey = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> from_tensor(grey, binarization="threshold").x
        tensor([[0., 1., 1.]])
    """
    _checks.choice("missing", missing, ("refuse", "keep"))
    values = _checks.tensor("x", x).detach()
    values = _checks.finite_or_missing("x", values) if missing == "keep" else _checks.finite("x", values, OF_NAN)
    seed = _checks.seed(seed)
    binarization = _checks.choice("binarization", binarization, BINARIZATIONS)
    labels = None if labels is None else _checked_labels(labels, len(values))
    label_names = None if label_names is None else _checked_names(label_names, labels)
    fixed = values if binarization is None else _binarized(_checked_grey(values), binarization, seed)
    grey = values if binarization == "dynamic" else None
    provenance = Provenance(name, split, source, len(values), binarization, seed, _sha256(fixed))
    return Dataset(fixed, grey, labels, provenance, label_names)


def from_bytes(
    images: np.ndarray, labels: np.ndarray | None, *, name: str, split: str, source: str, pixels: Pixels
) -> Dataset:
    """Make a data set of images that are not binarized."""
    _checks.choice("pixels", pixels, PIXELS)
    x = torch.from_numpy(images)
    return from_tensor(x if pixels == "bytes" else x / 255, labels, name=name, split=split, source=source)


def _checked_labels(labels: Any, num_data: int) -> Tensor:
    labels = _checks.tensor("labels", labels)
    if labels.shape != (num_data,) or labels.is_floating_point():
        raise ValueError(
            f"labels: expected whole numbers of shape ({num_data},), one a datum; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; convert them."
        )
    return labels.to(torch.int64)


def _checked_names(names: Sequence[str], labels: Tensor | None) -> tuple[str, ...]:
    if labels is None:
        raise ValueError("label_names: expected labels to name; got None; pass labels too.")
    low, high = labels.aminmax() if len(labels) else (0, -1)
    if low < 0 or high >= len(names):
        raise ValueError(
            f"label_names: expected a name for each label from 0 on; got {len(names)} names, and labels from {low} to "
            f"{high}; give as many."
        )
    return tuple(map(str, names))


def _checked_grey(x: Tensor) -> Tensor:
    known = x[~x.isnan()]
    if x.dtype != torch.uint8 and not ((known >= 0) & (known <= 1)).all():
        low, high = known.min().item(), known.max().item()
        raise ValueError(f"x: expected grey levels of 0 to 1 to binarize; got {low:g} to {high:g}; rescale them.")
    return x


def _probabilities(grey: Tensor) -> Tensor:
    """Return grey levels as numbers from 0 to 1."""
    return grey / 255 if grey.dtype == torch.uint8 else grey.to(torch.get_default_dtype())


def _bernoulli_255(grey: Tensor) -> Tensor:
    """Draw 0 or 1 for rows of bytes, 1 with probability grey / 255: `torch.bernoulli`, in whole numbers."""
    words = torch.empty((grey.numel() + 3) // 4, dtype=torch.int64, device=grey.device).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: grey.numel()].view(grey.shape)
    row = torch.randint(255, (len(grey), *(1,) * (grey.ndim - 1)), dtype=torch.uint8, device=grey.device)
    return _decided(grey, uniform, row.expand(grey.shape))


def _decided(grey: Tensor, uniform: Tensor, second: Tensor) -> Tensor:
    """Decide 0 or 1 by a uniform number of 16 bits, counted from -2^15, which is overwritten.

    It is below 257 grey with probability 257 grey / 65,536. Where it is 257 grey itself, a second number from 0 to 254
    decides, with probability grey / 255; together this makes grey / 255. One pixel in 65,536 needs the second number,
    so that a row may share one.
    """
    threshold = grey.to(torch.int16).sub_(128).mul_(257).add_(128)
    uniform.clamp_(min=1 - 2**15)  # the two lowest decide the same; 1 cannot be subtracted from the lowest
    wins_ties = second.contiguous() < grey
    x = torch.empty(grey.shape, device=grey.device)
    return torch.lt(uniform.sub_(wins_ties.view(torch.uint8)), threshold, out=x)


def _binarized(grey: Tensor, binarization: Binarization, seed: int) -> Tensor:
    if binarization == "threshold":
        return _unless_missing(_probabilities(grey), lambda p: (p > 0.5).to(p))
    generator = torch.Generator().manual_seed(seed)  # of the CPU, so that all devices see the same draw
    return _bernoulli(_probabilities(grey.cpu()), generator).to(grey.device)


def _bernoulli(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return _unless_missing(probabilities, lambda p: torch.bernoulli(p, generator=generator))


def _unless_missing(probabilities: Tensor, binarize: Callable[[Tensor], Tensor]) -> Tensor:
    """Binarize what is observed, and leave NaN as it is."""
    missing = probabilities.isnan()
    return binarize(probabilities.masked_fill(missing, 0)).masked_fill_(missing, torch.nan)


def _sha256(x: Tensor) -> str:
    return hashlib.sha256(x.cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()
