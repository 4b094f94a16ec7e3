"""Grey levels between 0 and 1."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods._base import Likelihood

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(Likelihood):
    r"""Independent grey levels in [0, 1], $p(x|z) = \prod_d C(\eta_d)\, e^{\eta_d (x_d - 1/2)}$.

    What a Bernoulli likelihood on grey levels means to be: with the factor that makes it a density. The network gives
    logits $\eta$; see `pyro_vae.distributions.ContinuousBernoulli`.

    Args:
        network: any module from z (and context) to one logit for each pixel.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape as the network's output.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> ContinuousBernoulli(MLP(2, [8], 784))(torch.zeros(3, 2)).event_shape
        torch.Size([784])
    """

    remedy = "scale grey levels to 0 to 1 (divide bytes by 255)"

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        return self.independent(distributions.ContinuousBernoulli(self.output(z, *context)), z)
