"""Masks of a site, element by element: which of its numbers count."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent

from pyro_vae._private import mask_of_distribution

__all__ = ["Counting", "Elements", "elements_of", "mask_of", "parts_that_count"]


class Elements(NamedTuple):
    """A site's distribution without masks and event wrappers: one density for each element."""

    fn: Any
    """The innermost distribution; its batch shape is that of the elements."""
    mask: Tensor | None
    """Which elements count, in any shape that broadcasts with theirs; None if all do."""


def elements_of(site: dict[str, Any]) -> Elements:
    """Return a site's elements, with the masks of `poutine.mask` and of `Distribution.mask` at any depth joined."""
    fn = site["fn"]
    masks = [(site["mask"], fn.event_dim)]
    while isinstance(fn, (MaskedDistribution, Independent)):
        if isinstance(fn, MaskedDistribution):
            masks.append((mask_of_distribution(fn), fn.event_dim))
        fn = fn.base_dist
    _refuse_masks_below(site, fn)
    joined = None
    for mask, event_dim in masks:
        if mask is not None and mask is not True:
            each = torch.as_tensor(mask, device=site["value"].device).bool()
            each = each.reshape([*each.shape, *[1] * (event_dim - fn.event_dim)])
            joined = each if joined is None else joined & each
    return Elements(fn, joined)


def mask_of(site: dict[str, Any]) -> Tensor:
    """Return which elements count, in the shape of the elements."""
    fn, mask = elements_of(site)
    whole = torch.ones(fn.batch_shape, dtype=torch.bool, device=site["value"].device)
    return whole if mask is None else whole & mask


def parts_that_count(site: dict[str, Any], event_dim: int) -> Tensor:
    """Return which parts of `event_dim` dimensions count by a site's mask: those with any element that counts."""
    mask, num_joined = mask_of(site), event_dim - elements_of(site).fn.event_dim
    return mask.flatten(-num_joined).any(-1) if num_joined else mask


class Counting(NamedTuple):
    """Which parts of a latent count, where some are masked. A part has its own density in model and guide."""

    mask: Tensor | None
    """Which parts count, in the layout of one draw: `(1, ..., N, ...)`, with the dimensions of the parts last.

    None where it depends on the draw: it is then read from the model's run on the draws."""
    event_dim: int
    """The dimensions of one part."""

    def refuse_another(self, site: dict[str, Any]) -> None:
        """Raise if a run of the model masks other parts."""
        if self.mask is not None and not (parts_that_count(site, self.event_dim) == self.mask).all():
            raise ValueError(
                f"model: expected a mask of site {site['name']!r} that depends on the data alone; got others for other "
                "draws; let it depend on arguments, or make the latent one that always counts."
            )

    def total(self, site: dict[str, Any], log_prob: Tensor) -> Tensor:
        """Sum the log density of a site's elements over the parts that count."""
        fn = elements_of(site).fn
        parts = sum_rightmost(log_prob, self.event_dim - fn.event_dim)
        return sum_rightmost(parts.where(self.mask_in(site), 0.0), site["fn"].event_dim - self.event_dim)

    def mask_in(self, site: dict[str, Any]) -> Tensor:
        """Return which parts count in a run."""
        return parts_that_count(site, self.event_dim) if self.mask is None else self.mask


def _refuse_masks_below(site: dict[str, Any], fn: Any) -> None:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        if isinstance(fn, MaskedDistribution):
            raise ValueError(
                f"model, guide: expected masks about a whole distribution; got one inside of that of site "
                f"{site['name']!r}, which has no density then; mask the transformed distribution instead."
            )
