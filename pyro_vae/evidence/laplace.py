"""Laplace's Gaussians of each datum's posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence import variational
from pyro_vae.evidence.derivatives import smallest_curvature
from pyro_vae.evidence.gaussians import NormalMixture
from pyro_vae.evidence.modes import NUM_EXPLORING, KnownModes
from pyro_vae.evidence.summits import SHARE_ELSEWHERE, Summits
from pyro_vae.program.tiles import Noise
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["EXPLORING", "LaplaceFit", "fit_laplace"]

NUM_PRIOR_STARTS, NUM_FAR_STARTS = 4, 4  # a mode that a third of them leads to is missed once in 25
EXPLORING = (NUM_PRIOR_STARTS + NUM_FAR_STARTS) * NUM_EXPLORING
"""Evaluations to look for other modes."""
MAX_STARTS_ELSEWHERE = 2
NUM_MORE_STARTS = 16  # where climbs found several modes, of which there may be more


class LaplaceFit(NamedTuple):
    """Laplace's Gaussians of each datum's posterior, and what it took to find them."""

    gaussians: NormalMixture
    converged: Tensor
    """Whether the search for the main mode converged, `(N,)`."""
    num_evaluations: Tensor
    """Evaluations of log p(x, z), `(N,)`, int64. A product with the Hessian counts as two."""

    def refined(self, view: Unconstrained, noise: Noise) -> LaplaceFit:
        """Fit the Gaussians further, by variational inference. It consumes noise of the block."""
        gaussians, spent = variational.refined(self.gaussians, view, noise)
        return self._replace(gaussians=gaussians, num_evaluations=self.num_evaluations + spent)


def fit_laplace(
    view: Unconstrained,
    start: Tensor,
    prior: Tensor,
    places: Tensor | None = None,
    log_ratio: Tensor | None = None,
    summits: Summits | None = None,
    allowance: Tensor | None = None,
) -> LaplaceFit:
    r"""Fit N(m, H^{-1}), with m a mode of $\log p(x, u)$ over u and $H = -\nabla^2 \log p(x, m)$; or a mixture.

    Each round forms H, takes the step $m \leftarrow m + |H|^{-1} \nabla$, where $|H|$ has the absolute eigenvalues of
    H, and climbs on by L-BFGS in the metric $|H|$. So it climbs even away from a mode, and where the density bends
    upwards. There are at most seven rounds; they end when that step is a tenth of a standard deviation long.
    Eigenvalues are kept above that of a Gaussian ten times as wide as the prior.

    Searches for other modes start from four draws of the prior, from four that are farthest from all that is
    known and from each other, and from where draws of a wider density g show that
    some of p(x) lies away from the known modes. They climb in the metric of the first mode; where that ends away from
    the known modes, rounds follow. What they find becomes one more part of the mixture, in proportion to its mass.
    Where there are several parts, there may be others, for which 16 more draws of the prior are starts.

    Args:
        view: the posterior.
        start: where to begin, `(N, D)`.
        prior: draws from the prior, `(K, N, D)`.
        summits: where former climbs ended, from which searches start too.
        allowance: how many evaluations each datum's search may take with the 16 more starts, `(N,)`.
        places, log_ratio: draws of g `(M, N, D)`, and log p / g of them `(M, N)`.

    References:
        Tierney and Kadane (1986); Dauphin et al. (2014), on |H|.
    """
    known = KnownModes.found_from(start, view, smallest_curvature(prior))
    if summits is not None:
        _go_on_from_summits(known, summits)
    everyone = torch.arange(len(start), device=start.device)
    known.look_around(everyone, torch.cat([prior[:NUM_PRIOR_STARTS], known.farthest(prior, NUM_FAR_STARTS)]))
    if places is not None and log_ratio is not None:
        _go_on_elsewhere(known, places, log_ratio.softmax(0).nan_to_num())
    can_go_on = True if allowance is None else known.num_evaluations + NUM_MORE_STARTS * NUM_EXPLORING <= allowance
    rows = (known.are_several & can_go_on).nonzero().flatten()
    known.look_around(rows, prior[-NUM_MORE_STARTS:, rows])
    return LaplaceFit(known.mixture, known.first.converged, known.num_evaluations)


def _go_on_from_summits(known: KnownModes, summits: Summits) -> None:
    for place, log_mass in zip(summits.places, summits.log_mass, strict=True):
        rows = log_mass.isfinite().nonzero().flatten()
        known.look_around(rows, place[None, rows])


def _go_on_elsewhere(known: KnownModes, places: Tensor, share: Tensor) -> None:
    """Search from the places `(M, N, D)` of the largest share of p(x), `(M, N)`, that lie away from known modes."""
    for _ in range(MAX_STARTS_ELSEWHERE):
        share = share.where(known.are_away(places), 0.0)
        left = (share.sum(0) > SHARE_ELSEWHERE).nonzero().flatten()
        if not len(left):
            return
        index = share[:, left].argmax(0)
        known.look_around(left, places[index, left][None])
        share[index, left] = 0.0
