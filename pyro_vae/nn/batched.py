"""Networks that take one batch dimension only."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["Batched", "over_leading_dims"]


def over_leading_dims(network: nn.Module, x: Tensor, *context: Tensor, event_dim: int = 1) -> Tensor:
    """Call `network(x, *context)` for a network that takes one batch dimension only, as most convolutional ones do.

    Shapes: x `(..., *event)`, its last `event_dim` dimensions being the event's, and context with the same leading
    dimensions, to `(..., *out)`; the network sees `(prod(...), *event)`.

    Examples:
        >>> import torch
        >>> over_leading_dims(nn.Linear(2, 3), torch.zeros(5, 4, 2)).shape
        torch.Size([5, 4, 3])
    """
    batch = x.shape[: x.ndim - event_dim]
    if len(batch) == 1:
        return network(x, *context)
    out = network(*(value.reshape(-1, *value.shape[len(batch) :]) for value in (x, *context)))
    return out.reshape(*batch, *out.shape[1:])


class Batched(nn.Module):
    """A network that takes one batch dimension only, made to take any leading dimensions.

    For the encoder of images inside plates to the left of that over data. Likelihoods do it themselves.

    Args:
        network: a module of x, and of further arguments.
        event_dim: how many dimensions a datum has: 3 for `(C, H, W)`.

    Shapes: `(..., *event)` to `(..., *out)`.

    Raises:
        TypeError, ValueError: for an `event_dim` that is no positive whole number.

    Examples:
        >>> import torch
        >>> Batched(nn.Conv2d(1, 4, 3), event_dim=3)(torch.zeros(5, 2, 1, 8, 8)).shape
        torch.Size([5, 2, 4, 6, 6])
    """

    def __init__(self, network: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.network = network
        self.event_dim = _checks.whole_number("event_dim", event_dim)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, `(..., *out)`."""
        return over_leading_dims(self.network, x, *context, event_dim=self.event_dim)

    def extra_repr(self) -> str:
        return f"event_dim={self.event_dim}"
