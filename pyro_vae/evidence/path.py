"""The path of densities along which chains are annealed, and its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evidence import hmc
from pyro_vae.evidence.gaussians import FullNormal, NormalMixture, moments
from pyro_vae.evidence.region import Component, Region
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["STARTS", "START_NAMES", "Path", "gaussian_path", "path_from", "path_from_both"]

START_NAMES = {
    "laplace": "Laplace's Gaussian", "gaussian": "a fitted Gaussian", "guide": "the guide", "prior": "the prior"
}  # fmt: skip
STARTS = tuple(START_NAMES)
NUM_DRAWS = 64  # from the start, to measure its width


@dataclass(frozen=True)
class Path:
    """The geometric path $f_0^{1 - \\beta} f_1^\\beta$ from a density that can be drawn from to p(x, u)."""

    view: Unconstrained
    draw: Callable[[int], Tensor]
    evaluate: hmc.Evaluate
    start_precision: Tensor | None
    """Diagonal precision of the start, `(N, D)`; None where it is that of the Gaussian: the metric is constant."""
    gaussian: FullNormal
    """The Gaussian at the posterior's main mode: Laplace's, or a fitted one."""

    def metric(self, beta: Tensor) -> hmc.Metric:
        """Return L at $\\beta$ `(N,)`: L L^T is the inverse of the weighted mean of both precisions."""
        if self.start_precision is None:
            return self.gaussian
        end = torch.cholesky_inverse(self.gaussian.scale_tril)
        precision = (1 - beta)[:, None, None] * self.start_precision.diag_embed() + beta[:, None, None] * end
        factor, failed = torch.linalg.cholesky_ex(precision)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        scale = torch.linalg.solve_triangular(factor, identity, upper=False).mT
        return FullNormal(self.gaussian.loc, scale.where(failed[:, None, None] == 0, self.gaussian.scale_tril))

    def begin(self, u: Tensor) -> tuple[hmc.State, Tensor]:
        """Evaluate the chains at u, and tell which lie in the prior's support; the others get weight zero."""
        inside = u.isfinite().all(-1)
        return self.evaluate(u.where(inside[..., None], 0.0)), inside


def path_from(start: str, region: Region, gaussians: NormalMixture) -> Path:
    """Build the path from "laplace", "gaussian", "guide" or "prior"; its metric ends at that of the main Gaussian."""
    if start in ("laplace", "gaussian"):
        return gaussian_path(region, gaussians)
    if start == "guide":
        precision = 1 / moments(region.draw_guide(NUM_DRAWS))[1]
        return _from(region, Component(region.draw_guide, region.view.log_guide), precision, gaussians.main)

    def both_ends(u: Tensor) -> tuple[Tensor, Tensor]:
        prior, likelihood = region.log_joint(u)
        return prior, prior + likelihood

    precision = 1 / moments(region.draw_prior(NUM_DRAWS))[1]
    return Path(region.view, region.draw_prior, hmc.evaluating(both_ends), precision, gaussians.main)


def gaussian_path(region: Region, gaussians: NormalMixture) -> Path:
    """Build the path from a Gaussian, or from a mixture of several."""
    return _from(region, region.gaussian(gaussians), None, gaussians.main)


def path_from_both(region: Region, guide: Component, gaussians: NormalMixture) -> Path:
    """Build the path from the guide and Gaussians in equal parts."""
    return _from(region, region.half_and_half(guide, region.gaussian(gaussians)), None, gaussians.main)


def _from(region: Region, start: Component, precision: Tensor | None, main: FullNormal) -> Path:
    def both_ends(u: Tensor) -> tuple[Tensor, Tensor]:
        return start.log_prob(u), torch.stack(region.log_joint(u)).sum(0)

    return Path(region.view, start.draw, hmc.evaluating(both_ends), precision, main)
