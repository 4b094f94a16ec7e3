"""Binary pixels."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.likelihoods._base import Likelihood

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""Independent binary pixels, $\log p(x|z) = \sum_d x_d \log \pi_d(z) + (1 - x_d) \log(1 - \pi_d(z))$.

    The network gives logits, $\pi = 1 / (1 + e^{-\text{logits}})$, so that the log-probability of an unlikely pixel is
    not rounded off. The data are zeros and ones: a grey pixel has no probability under a Bernoulli, and is refused.

    Args:
        network: any module from z (and context, where the VAE has any) to one logit for each pixel.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape as the network's output.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix C.1.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> Bernoulli(MLP(50, [200], 784))(torch.zeros(3, 50)).event_shape
        torch.Size([784])
    """

    remedy = "binarize them (pyro_vae.data.from_tensor), or use a likelihood for grey such as likelihoods.Gaussian"

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        return self.independent(dist.Bernoulli(logits=self.output(z, *context)), z)
