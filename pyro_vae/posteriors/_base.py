"""What all posteriors share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

__all__ = ["AmortizedPosterior"]


class AmortizedPosterior(nn.Module):
    """A module whose `forward(x, *context)` returns q(z|x), as a Pyro distribution over one latent z.

    x is `(..., *event_shape)`, and its leading dimensions are the distribution's batch shape. A VAE takes any module
    that keeps this contract. This base adds what posteriors with one network share.

    Args:
        network: any module from x (and context) to the distribution's parameters.
    """

    numbers_per_latent = 1
    """How many outputs the network has for each latent number."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def remedy(self, latent_shape: Sequence[int]) -> str:
        """Return the advice given in the error about a latent of another shape."""
        return f"give its network {self.numbers_per_latent * prod(latent_shape)} outputs, or change the prior"
