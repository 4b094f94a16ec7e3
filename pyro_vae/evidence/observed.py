"""The data that were evaluated, and whether their log p(x) has bits a number."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.program.core import Program

__all__ = ["Observed", "bits_of_levels"]


@dataclass(frozen=True)
class Observed:
    """What was evaluated: enough to tell whether two evaluations are of the same data.

    Attributes:
        values: the value of each observed site, `(N, ...)`.
        fingerprint: sha256 of the observed values in float64, and of their masks.
        num_dims: how many observed numbers a datum has.
        is_masked: whether some of them are left out, by a mask or as NaN.
        kind: "probability" of discrete values, "density" of continuous ones, "mixed"; or "factor" where the likelihood
            is a `pyro.factor`, whose data cannot be seen.
    """

    values: dict[str, Tensor]
    fingerprint: str
    num_dims: int
    is_masked: bool
    kind: str

    @classmethod
    def of(cls, program: Program) -> Observed:
        """Record the data that a program is called on."""
        with torch.no_grad():
            values = program.observed_values()
        digest = hashlib.sha256()
        for _, site in sorted(values.items()):
            for tensor in (site.value, *site.masks):
                digest.update(f"{len(tensor)} {tensor.numel()}".encode())
                # NaN has many forms, of which none says more than another.
                numbers = tensor.double().cpu().contiguous()
                digest.update(torch.where(numbers.isnan(), torch.nan, numbers).numpy().tobytes())
        num_dims = sum(site.value.numel() // len(site.value) for site in values.values())
        kinds = {site.kind for site in values.values()}
        kind = "factor" if "factor" in kinds else kinds.pop() if len(kinds) == 1 else "mixed"
        kept = {name: site.value.detach().cpu() for name, site in values.items()}
        is_masked = any(
            site.value.isnan().any() or any(not mask.all() for mask in site.masks) for site in values.values()
        )
        return cls(kept, digest.hexdigest(), num_dims, is_masked, kind)


def bits_of_levels(observed: Observed, num_levels: int | None) -> float:
    """Return the bits of each number's levels, zero for discrete data; raise for data that have no bits a number."""
    if observed.kind == "factor":
        raise ValueError("model: expected observed sites with values; got pyro.factor, whose data have no size.")
    if observed.is_masked:
        raise ValueError(
            "model: expected data all of which count; got masks or missing entries: each datum has its own size."
        )
    if observed.kind == "probability":
        if num_levels is not None:
            raise ValueError("num_levels: expected None for discrete data, whose log p(x) needs no unit; leave it out.")
        return 0.0
    if num_levels is None:
        raise ValueError(
            "num_levels: expected the number of levels for continuous data; got None; pass 256 for dequantized "
            "8-bit pixels scaled to [0, 1]. A density of other data has no bits."
        )
    _refuse_other_units(observed)
    return math.log2(_checks.whole_number("num_levels", num_levels))


def _refuse_other_units(observed: Observed) -> None:
    for name, value in observed.values.items():
        low, high = value.min().item(), value.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"x: expected data scaled to [0, 1], whose levels are 1 / num_levels apart; got values from "
                f"{low:g} to {high:g} at site {name!r}; evaluate scaled data: a density depends on the unit."
            )
