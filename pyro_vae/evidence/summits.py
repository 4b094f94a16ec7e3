"""Climbs from far away, to find mass that draws of a guide cannot have seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.climb import climb
from pyro_vae.evidence.derivatives import (
    hessian_of,
    log_density,
    scale_tril_of,
    smallest_curvature,
    with_gradient,
    with_second_derivatives,
)
from pyro_vae.evidence.gaussians import FullNormal, moments
from pyro_vae.evidence.modes import away, farthest
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["CLIMBS", "SHARE_ELSEWHERE", "Summits", "seek_summits"]

NUM_PRIOR_STARTS, NUM_FAR_STARTS = 3, 3
NUM_CLIMBING = 18  # steps of the climbs that every datum pays for
CLIMBS = (NUM_PRIOR_STARTS + NUM_FAR_STARTS + 1) * NUM_CLIMBING
"""Evaluations to look for mass that the guide's draws have missed."""
SHARE_ELSEWHERE = 0.01  # of p(x), beyond which another start is worth its cost
UNCOVERED = 2.0  # nats by which the weight of a place exceeds p(x), where draws would have missed it


class Summits(NamedTuple):
    """Where K climbs from afar ended for each of N data, and what they found that draws had missed."""

    places: Tensor
    """`(K, N, D)`."""
    log_mass: Tensor
    """Laplace's approximation of the mass of p(x, u) there, `(K, N)`; -inf where there is nothing new."""
    num_evaluations: Tensor
    """`(N,)`, int64."""

    def at(self, rows: Tensor) -> Summits:
        """Select rows by index."""
        return Summits(self.places[:, rows], self.log_mass[:, rows], self.num_evaluations[rows])

    def spread(self, rows: Tensor, num_data: int) -> Summits:
        """Place these as rows among more data; the others get none."""
        places = self.places.new_zeros(len(self.places), num_data, self.places.shape[-1])
        log_mass = self.log_mass.new_full((len(places), num_data), -math.inf)
        num_evaluations = self.num_evaluations.new_zeros(num_data)
        places[:, rows], log_mass[:, rows], num_evaluations[rows] = self
        return Summits(places, log_mass, num_evaluations)


@torch.no_grad()
def seek_summits(
    view: Unconstrained, around: FullNormal, prior: Tensor, log_prob: Callable[[Tensor], Tensor], log_evidence: Tensor
) -> Summits:
    r"""Climb from draws of the prior, to find mass that draws of a density q around a Gaussian cannot have seen.

    Climbs start from a few draws of the prior, and from those that are farthest from the Gaussian and from each other.
    They climb in its metric. A summit is new if it lies away from the Gaussian, if a draw of q there would have had a
    weight well above p(x), and if its mass, $\log p(x, u) + \frac12 |\nabla|^2_{H^{-1}} + \frac12 \log |2 \pi H^{-1}|$,
    is no negligible share of p(x). So a datum whose posterior has one mode costs the climbs alone.

    Args:
        view: the posterior.
        around: where the draws of q lie.
        prior: draws from the prior, `(K, N, D)`.
        log_prob: log q(u).
        log_evidence: log p(x) as q's draws found it, `(N,)`.
    """
    starts = _far_starts(around, prior)
    end = climb(log_density(view), around, starts, NUM_CLIMBING)
    spent = torch.full_like(log_evidence, NUM_CLIMBING * len(starts), dtype=torch.int64)
    is_away = (around.whitened(end.position).norm(dim=-1) > away(view.dim)) & (end.gain < view.dim)
    is_new = is_away & (end.value - log_prob(end.position) > log_evidence + UNCOVERED)
    log_mass = torch.full_like(end.value, -math.inf)
    floor = smallest_curvature(prior)
    for place, new, mass in zip(end.position, is_new, log_mass, strict=True):
        rows = new.nonzero().flatten()
        if len(rows):
            mass[rows] = _log_mass(view.at(rows), place[rows], floor[rows])
            spent[rows] += 1 + 2 * view.dim
    is_large = log_mass > log_evidence + math.log(SHARE_ELSEWHERE)
    return Summits(end.position, log_mass.where(is_large, -math.inf), spent)


def _far_starts(around: FullNormal, prior: Tensor) -> Tensor:
    """Select draws of the prior, those farthest from a Gaussian and each other, and its mirror image at their mean."""
    middle, _ = moments(prior)
    far = farthest(around, prior, around.whitened(prior).norm(dim=-1), NUM_FAR_STARTS)
    found = torch.cat([prior[:NUM_PRIOR_STARTS], (2 * middle - around.loc)[None], far])
    return found.where(found.isfinite(), around.loc)


def _log_mass(view: Unconstrained, place: Tensor, floor: Tensor) -> Tensor:
    """Return Laplace's approximation of the mass about a place near a mode, `(N,)`."""
    density = with_second_derivatives(view)
    value, gradient = with_gradient(density, place[None])
    gaussian = FullNormal(place, scale_tril_of(hessian_of(density, place), floor))
    return value[0] + 0.5 * gaussian.scaled_transposed(gradient)[0].square().sum(-1) + gaussian.log_volume
