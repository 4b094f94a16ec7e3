"""Networks of incomplete data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae import _checks

__all__ = ["WithMask"]


class WithMask(nn.Module):
    r"""A network that sees which entries of x are missing: $h(m \odot x + (1 - m) \odot c, m)$, m 1 where observed.

    For the encoder of a VAE with `likelihoods.Incomplete`. NaN in x becomes c, and the mask lies beside it.

    Args:
        network: takes twice the width of x, or, for images, twice the channels: filled data first, then the mask.
        fill: c, one number, or one for each entry, such as the mean of what was observed, `x.nanmean(0)`.
        event_dim: how many dimensions a datum has: 1 for `(D,)`, 3 for `(C, H, W)`.

    Shapes: `(..., D)` to `(..., *out)`, by a network of `(..., 2 D)`; images `(..., C, H, W)`, by one of
    `(..., 2 C, H, W)`.

    Raises:
        TypeError, ValueError: for a `fill` that is not finite, or an `event_dim` that is no positive whole number.

    References:
        Collier, Nazabal and Williams (2020), VAEs in the presence of missing data; Mattei and Frellsen (2019), MIWAE,
        where an encoder sees filled data alone.

    Examples:
        >>> seen = WithMask(nn.Identity())(torch.tensor([[0.5, torch.nan]]))
        >>> seen
        tensor([[0.5000, 0.0000, 1.0000, 0.0000]])
    """

    fill: Tensor

    def __init__(self, network: nn.Module, fill: Tensor | float = 0.0, event_dim: int = 1) -> None:
        super().__init__()
        self.network = network
        self.event_dim = _checks.whole_number("event_dim", event_dim)
        values = torch.as_tensor(fill, dtype=torch.get_default_dtype()).clone()
        _checks.finite("fill", values.flatten())
        self.register_buffer("fill", values)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the network's output, `(..., *out)`."""
        missing = x.isnan()
        both = torch.where(missing, self.fill, x), (~missing).to(x.dtype)
        return self.network(torch.cat(both, -self.event_dim), *context)

    def extra_repr(self) -> str:
        return f"event_dim={self.event_dim}"
