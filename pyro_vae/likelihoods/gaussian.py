"""Real-valued pixels with Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.likelihoods._base import Form, ScaledLikelihood

__all__ = ["Gaussian"]


class Gaussian(ScaledLikelihood):
    r"""Independent real-valued pixels, $p(x|z) = \prod_d N(x_d; \mu_d(z), \sigma_d^2)$, with the scale in three forms.

    - `scale=0.1`, a number: the same constant for all pixels. The loss is then least squares, up to a constant:
      $-\log p(x|z) = \|x - \mu(z)\|^2 / 2 \sigma^2 + D \log \sigma + \frac{D}{2} \log 2 \pi$.
    - `scale="learned"`: one number for all pixels, learned with the weights, or one for each, with `scale_shape` the
      shape of x: with an affine network that is factor analysis.
    - `scale="per-pixel"`: $\sigma_d(z)$ from the network, which gives twice as many channels, $\mu$ first.

    A learned scale is $\sigma = \sigma_{min} + \mathrm{softplus}(\rho)$. Without the floor the likelihood has no upper
    bound: a pixel that never changes lets $\sigma \to 0$. The best log p(x) depends on this floor, so report it:
    `repr` shows it.

    Args:
        network: any module from z (and context, where the VAE has any) to the mean of each pixel (`"per-pixel"`: mean
            and raw scale, stacked along the first dimension of the output).
        scale: a positive number, `"learned"` or `"per-pixel"`.
        min_scale: the floor of a learned scale; a constant scale needs none.
        scale_shape: how many scales are learned: `()`, one for all, or the shape of x.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Raises:
        TypeError, ValueError: for a scale that is neither positive nor one of the names; an odd number of channels.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix C.2; for the missing bound, Mattei and
        Frellsen (2018), Leveraging the exact likelihood of deep latent variable models.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> Gaussian(MLP(2, [8], 2 * 784), scale="per-pixel")(torch.zeros(3, 2)).event_shape
        torch.Size([784])
    """

    def __init__(
        self,
        network: nn.Module,
        scale: Form = 1.0,
        min_scale: float = 1e-2,
        scale_shape: int | Sequence[int] = (),
    ) -> None:
        super().__init__(network, scale, min_scale, scale_shape)

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """Return p(x|z)."""
        return self.independent(dist.Normal(*self.loc_and_scale(z, *context)), z)
