"""Positive numbers whose logarithm is normal."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.likelihoods._base import ScaledLikelihood

__all__ = ["LogNormal"]


class LogNormal(ScaledLikelihood):
    r"""Independent positive numbers, $\log x_d \sim N(\mu_d(z), \sigma_d^2)$, with the density of x, not of log x.

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
        return self.independent(dist.LogNormal(*self.loc_and_scale(z, *context)), z)
