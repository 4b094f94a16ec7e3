"""The sites of a run, and their densities, element by element."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, SineBivariateVonMises, SineSkewed, Unit, VonMises
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import constraints

from pyro_vae._random import seeded
from pyro_vae.program.masks import elements_of

__all__ = [
    "CIRCULAR",
    "drawn_sites",
    "is_angle",
    "is_circular",
    "is_point",
    "kind_of",
    "layers_of",
    "log_prob",
    "log_prob_in_support",
    "log_prob_observed",
    "log_prob_of_all",
    "name_of_latent",
    "plates_of",
    "sample_sites",
]


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sites that have a density; a plate's choice of rows and `pyro.deterministic` have none."""
    for name, site in prune_subsample_sites(trace).nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def drawn_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """Return the sites of a guide that are part of log q, without what it observes, such as data or a factor."""
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def name_of_latent(site: dict[str, Any]) -> str:
    """Return the latent that a guide's site stands for: Pyro's automatic guides draw `z_unconstrained` for `z`."""
    name: str = site["name"]
    return name.removesuffix("_unconstrained") if site["infer"].get("is_auxiliary") else name


def plates_of(site: dict[str, Any]) -> list[Any]:
    """List the frames of the plates that give a site its batch dimensions."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def is_point(site: dict[str, Any]) -> bool:
    """Tell whether a site is a Delta, which has no density."""
    return any(isinstance(fn, Delta) for fn in layers_of(site["fn"]))


def layers_of(fn: Any) -> Iterator[Any]:
    """Yield a distribution, and what it wraps or mixes."""
    yield fn
    for inner in ("base_dist", "component_distribution"):
        if hasattr(fn, inner):
            yield from layers_of(getattr(fn, inner))


CIRCULAR = (VonMises, SineBivariateVonMises, SineSkewed)


def is_circular(fn: Any) -> bool:
    """Tell whether values are angles, though their support is declared to be the real line."""
    return any(isinstance(layer, CIRCULAR) for layer in layers_of(fn))


def is_angle(value: Tensor, batch_ndim: int) -> Tensor:
    """Tell whether angles are between -pi and pi, beyond which a density on a circle repeats."""
    inside = value.abs() <= math.pi + 1e-5
    return inside.flatten(batch_ndim).all(-1) if inside.ndim > batch_ndim else inside


def kind_of(site: dict[str, Any]) -> str:
    """Return what a site's log density is the log of: a "probability", a "density", both ("mixed") or a "factor"."""
    if any(isinstance(fn, Unit) for fn in layers_of(site["fn"])):
        return "factor"
    kinds = {part.is_discrete for part in _parts_of(site["fn"].support)}
    return "mixed" if len(kinds) > 1 else "probability" if kinds.pop() else "density"


def _parts_of(support: Any) -> list[Any]:
    """Return the constraints that a support lays side by side, or the support itself."""
    support = getattr(support, "base_constraint", support)
    return support.cseq if isinstance(support, constraints.cat) else [support]


def log_prob_of_all(site: dict[str, Any]) -> Tensor:
    """Evaluate all of a site, one number for each element of its batch."""
    fn = elements_of(site).fn
    return sum_rightmost(log_prob(fn, site["value"]), site["fn"].event_dim - fn.event_dim)


def log_prob_observed(site: dict[str, Any]) -> Tensor:
    """Evaluate an observed site where it counts. A plate's scale is no part of its density."""
    return scale_and_mask(log_prob(site["fn"], site["value"]), mask=site["mask"])


def log_prob(fn: Any, value: Tensor) -> Tensor:
    """Return log p as the distribution says it."""
    return fn.log_prob(value)


def log_prob_in_support(fn: Any, value: Tensor) -> Tensor:
    """Return log p, and -inf outside the support, where some distributions return a finite density.

    Also -inf at a pole, where log p is +inf: rounding alone can put a value there, as at 0 under a Gamma.
    """
    inside = fn.support.check(value)
    try:
        log_prob = fn.log_prob(value)
    except (IndexError, RuntimeError):  # from a table without an entry for the value
        if inside.all():
            raise
        log_prob = fn.log_prob(_inside_alone(fn, value, inside))
    inside = inside & ~log_prob.isposinf()
    if is_circular(fn):
        inside = inside & is_angle(value, inside.ndim)
    return torch.where(inside, log_prob, -torch.inf)


def _inside_alone(fn: Any, value: Tensor, inside: Tensor) -> Tensor:
    """Replace values outside of the support by a draw."""
    with seeded(value.device, 0):
        other = fn.sample().to(value.dtype)
    return torch.where(inside.reshape(*inside.shape, *(1,) * fn.event_dim), value, other)
