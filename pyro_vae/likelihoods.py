"""Likelihoods p(x|z): modules whose `forward(z)` returns a Pyro distribution over one datum x."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import _checks
from pyro_vae.nn import over_leading_dims

__all__ = ["Bernoulli", "Gaussian"]


class Bernoulli(nn.Module):
    r"""Independent binary pixels, $\log p(x|z) = \sum_d x_d \log \pi_d(z) + (1 - x_d) \log(1 - \pi_d(z))$.

    The network gives logits, $\pi = 1 / (1 + e^{-\text{logits}})$, so that an unlikely pixel keeps its full price.
    The data are zeros and ones: a grey pixel has no probability under a Bernoulli, and is refused.

    Args:
        network: any module from z (and context, where the VAE has any) to one logit for each pixel.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape as the network's output.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix C.1.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> Bernoulli(MLP(50, [200], 784))(torch.zeros(3, 50)).event_shape
        torch.Size([784])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """p(x|z)."""
        logits = over_leading_dims(self.network, z, *context)
        return dist.Bernoulli(logits=logits).to_event(logits.ndim - z.ndim + 1)


class Gaussian(nn.Module):
    r"""Independent real-valued pixels, $p(x|z) = \prod_d N(x_d; \mu_d(z), \sigma_d^2)$, with the scale in three forms.

    - `scale=0.1`, a number: the same constant for all pixels. The loss is then least squares, up to a constant:
      $-\log p(x|z) = \|x - \mu(z)\|^2 / 2 \sigma^2 + D \log \sigma + \frac{D}{2} \log 2 \pi$.
    - `scale="learned"`: one number for all pixels, learned with the weights.
    - `scale="per-pixel"`: $\sigma_d(z)$ from the network, which gives twice as many channels, $\mu$ first.

    A learned scale is $\sigma = \sigma_{min} + \mathrm{softplus}(\rho)$. Without the floor the likelihood has no upper
    bound: a pixel that never changes lets $\sigma \to 0$. The floor decides the figure reached, so it belongs with it:
    it shows in the module's `repr`.

    Args:
        network: any module from z (and context, where the VAE has any) to the mean of each pixel (`"per-pixel"`: mean
            and raw scale, stacked along the first dimension of the output).
        scale: a positive number, `"learned"` or `"per-pixel"`.
        min_scale: the floor of a learned scale; a constant scale needs none.

    Shapes: z `(..., D)` to a distribution of batch shape `(...)` and event shape of one datum.

    Raises:
        TypeError, ValueError: for a scale that is neither positive nor one of the names; an odd number of channels.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix C.2; for the missing bound, Mattei and
        Frellsen (2018), Leveraging the exact likelihood of deep latent variable models.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> Gaussian(MLP(2, [8], 2 * 784), scale="per-pixel")(torch.zeros(3, 2)).event_shape
        torch.Size([784])
    """

    def __init__(
        self, network: nn.Module, scale: float | Literal["learned", "per-pixel"] = 1.0, min_scale: float = 1e-2
    ) -> None:
        super().__init__()
        self.network = network
        self.min_scale = _checks.positive("min_scale", min_scale)
        self.scale: Any
        if isinstance(scale, str):
            self.scale = _checks.choice("scale", scale, ("learned", "per-pixel"))
        else:
            self.scale = _checks.positive("scale", scale)
        self.raw_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None

    def forward(self, z: Tensor, *context: Tensor) -> dist.Distribution:
        """p(x|z)."""
        loc = over_leading_dims(self.network, z, *context)
        scale = self.scale
        if self.raw_scale is not None:
            scale = self._above_floor(self.raw_scale)
        elif scale == "per-pixel":
            loc, raw_scale = _halves(loc, z.ndim - 1)
            scale = self._above_floor(raw_scale)
        return dist.Normal(loc, scale).to_event(loc.ndim - z.ndim + 1)

    def _above_floor(self, raw_scale: Tensor) -> Tensor:
        return self.min_scale + functional.softplus(raw_scale)

    def extra_repr(self) -> str:
        floor = f", min_scale={self.min_scale}" if isinstance(self.scale, str) else ""
        return f"scale={self.scale!r}{floor}"


def _halves(out: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if out.shape[dim] % 2:
        raise ValueError(
            f"likelihood: expected a network with twice the channels of x (mean and scale); got {out.shape[dim]}; "
            "change its last layer."
        )
    loc, raw_scale = out.chunk(2, dim)
    return loc, raw_scale
