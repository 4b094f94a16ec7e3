"""Real numbers with Laplace's noise."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.likelihoods._base import ScaledLikelihood

__all__ = ["Laplace"]


class Laplace(ScaledLikelihood):
    r"""Independent real numbers, $p(x|z) = \prod_d \frac{1}{2 b_d} e^{-|x_d - \mu_d(z)| / b_d}$: absolute errors.

    The scale b has the three forms of `Gaussian`.

    Args:
        network: any module from z (and context) to the location of each number (`"per-pixel"`: location and raw scale).
        scale: a positive number, `"learned"` or `"per-pixel"`.
        min_scale: the floor of a learned scale.
        scale_shape: how many scales are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> Laplace(MLP(2, [8], 30))(torch.zeros(3, 2)).event_shape
        torch.Size([30])
    """

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        return self.independent(dist.Laplace(*self.loc_and_scale(z, *context)), z)
