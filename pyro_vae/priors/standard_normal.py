"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import _checks

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    r"""The standard normal prior, $p(z) = N(z; 0, I)$.

    Args:
        latent_dim: the number D of latent dimensions.

    Shapes: the distribution has batch shape `()` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for a `latent_dim` that is no positive whole number.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, section 3.

    Examples:
        >>> StandardNormal(50)().event_shape
        torch.Size([50])
    """

    loc: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        # A buffer, so that the prior follows the module to its device and dtype.
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def forward(self, *context: torch.Tensor) -> dist.Distribution:
        """Return p(z), whatever the context is."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}"
