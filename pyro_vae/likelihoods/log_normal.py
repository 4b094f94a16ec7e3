"""Positive numbers whose logarithm is normal."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.likelihoods._base import ScaledLikelihood
from pyro_vae.nn._shared import bounded

__all__ = ["LogNormal"]

MAX_LOC, MAX_SCALE = 60.0, 5.0
"""The bounds on what the network gives: mean and mode then are float32 numbers above zero."""


class LogNormal(ScaledLikelihood):
    r"""Independent positive numbers, $\log x_d \sim N(\mu_d(z), \sigma_d^2)$, with the density of x, not of log x.

    $\mu$ is bounded smoothly by 60, and a scale that is no constant by 5, so that the mean is never infinite, nor the
    mode zero.

    Args:
        network: any module from z (and context) to the mean of each logarithm (`"per-pixel"`: mean and raw scale).
        scale: a positive number, `"learned"` or `"per-pixel"`: that of the logarithm.
        min_scale: the floor of a learned scale.
        scale_shape: how many scales are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> LogNormal(MLP(2, [8], 30))(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    remedy = "a logarithm needs positive numbers: use likelihoods.Gaussian, or model zeros apart (likelihoods.Product)"

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        loc, scale = self.loc_and_scale(z, *context)
        scale = bounded(scale, MAX_SCALE) if isinstance(scale, Tensor) else scale
        return self.independent(dist.LogNormal(bounded(loc, MAX_LOC), scale), z)
