"""Enumerate all values of discrete latents, where they are few."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import BetaBinomial, Binomial
from torch import Tensor

from pyro_vae.program.core import Program
from pyro_vae.program.draws import ONE_BY_ONE
from pyro_vae.program.masks import elements_of
from pyro_vae.program.runs import Latents

__all__ = ["all_values", "for_each_datum", "joint_values"]

MOST = 1024


def all_values(program: Program) -> Latents | None:
    """Return one draw for each joint value of a program's latents, `(K, N, ...)`; None if they are more than 1,024.

    Also None if a latent's values cannot be listed, or depend on another latent, or if draws are run one by one.
    """
    latents = program.sites().latent
    supports = _supports(latents)
    axis = program.structure.data_axis
    listed = joint_values(latents, axis)
    if listed is None or supports is None or program.structure.draws == ONE_BY_ONE:
        return None
    values = {name: for_each_datum(value, program.num_data, axis) for name, value in listed.items()}
    there = _supports({name: site for name, site in program.model_sites(values).items() if name in values})
    if there is None or any(not torch.equal(there[name], supports[name]) for name in supports):
        return None
    return values


def joint_values(sites: dict[str, Any], axis: int, most: int = MOST) -> Latents | None:
    """Return each joint value of a datum's sites, `(C, ..., 1, ...)` with the datum on `axis`; None if too many."""
    supports = _supports(sites)
    if supports is None:
        return None
    sizes = {name: _sizes(site, axis) for name, site in sites.items()}
    counts = [len(supports[name]) for name in sites for _ in range(math.prod(sizes[name]))]
    if sum(map(math.log, counts)) > math.log(most) + 1e-9:
        return None
    grid = torch.cartesian_prod(*(torch.arange(count) for count in counts)).reshape(-1, len(counts))
    columns = grid.split([math.prod(sizes[name]) for name in sites], dim=1)
    return {
        name: _values(site, supports[name], index.to(site["value"].device), sizes[name], axis)
        for (name, site), index in zip(sites.items(), columns, strict=True)
    }


def for_each_datum(value: Tensor, num_data: int, axis: int) -> Tensor:
    """Repeat values of one datum, which lies on `axis`."""
    return value.expand(*value.shape[:axis], num_data, *value.shape[axis + 1 :])


def _supports(latents: dict[str, Any]) -> dict[str, Tensor] | None:
    """List the values of one element of each site, `(S, ...)`; None if one has no list."""
    found = {name: _support(site) for name, site in latents.items()}
    supports = {name: support for name, support in found.items() if support is not None}
    return supports if len(supports) == len(found) else None


def _support(site: dict[str, Any]) -> Tensor | None:
    fn = elements_of(site).fn
    if not getattr(fn, "has_enumerate_support", False):
        return None
    if isinstance(fn, (Binomial, BetaBinomial)):  # totals may differ: values above an element's own have density 0
        return torch.arange(1 + int(fn.total_count.max()), device=site["value"].device)
    try:
        values = fn.enumerate_support(expand=False)
    except (NotImplementedError, RuntimeError):  # from distributions that Pyro has expanded
        return None
    return values.reshape(len(values), *fn.event_shape)


def _sizes(site: dict[str, Any], axis: int) -> tuple[int, ...]:
    """Return the shape of a datum's elements."""
    shape = site["value"].shape[: site["value"].ndim - elements_of(site).fn.event_dim]
    return (*shape[1:axis], *shape[axis + 1 :])


def _values(site: dict[str, Any], support: Tensor, index: Tensor, sizes: tuple[int, ...], axis: int) -> Tensor:
    """List the values of a site in the layout of draws."""
    value = support[index.reshape(len(index), *sizes)].to(site["value"].dtype)
    return value.unsqueeze(axis)
