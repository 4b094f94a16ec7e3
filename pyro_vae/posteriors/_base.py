"""What all posteriors share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

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

    latent_dim: int

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def num_outputs(self, latent_dim: int) -> int:
        """Return how many numbers the network has to give."""
        return self.numbers_per_latent * latent_dim

    def outputs(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, checked to be as wide as `latent_dim` needs."""
        out, expected = self.network(x, *context), self.num_outputs(self.latent_dim)
        if out.shape[-1] != expected:
            raise ValueError(
                f"posterior: expected a network with {expected} outputs for latent_dim={self.latent_dim}; got "
                f"{out.shape[-1]}; change its last layer, or latent_dim."
            )
        return out

    def remedy(self, latent_shape: Sequence[int]) -> str:
        """Return the advice given in the error about a latent of another shape."""
        dim = prod(latent_shape)
        also = f" and pass latent_dim={dim}" if hasattr(self, "latent_dim") else ""
        return f"give its network {self.num_outputs(dim)} outputs{also}, or change the prior"
