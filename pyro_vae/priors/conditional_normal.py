"""A prior that depends on the context."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import bounded

__all__ = ["ConditionalNormal"]


class ConditionalNormal(nn.Module):
    r"""A Gaussian given the context c, $p(z|c) = N(z; \mu(c), \mathrm{diag}\,\sigma^2(c))$.

    Args:
        network: any module from the context to `2 * latent_dim` numbers, loc first, then log scale.
        max_log_scale: the bound on $|\log \sigma|$.

    Shapes: context `(..., C)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`; a scalar
    context `(...)` for a network of scalars, `MLP((), ...)`.

    Raises:
        ValueError: for a bound that is not positive, for a call without context, or a network with an odd width.

    References:
        Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> ConditionalNormal(MLP(10, [], 2 * 5))(torch.eye(10)[:3]).event_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, max_log_scale: float = 7.0) -> None:
        super().__init__()
        self.network = network
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def forward(self, *context: Tensor) -> dist.Distribution:
        """Return p(z|c)."""
        if not context:
            raise ValueError(
                "context: expected what the prior depends on; got none; build the VAE with context_shapes."
            )
        out = self.network(*context)
        if out.shape[-1] % 2:
            raise ValueError(
                f"prior: expected a network with 2 * latent_dim outputs (loc and log scale); got {out.shape[-1]}; "
                "change its last layer."
            )
        loc, raw = out.chunk(2, -1)
        return dist.Normal(loc, bounded(raw, self.max_log_scale).exp()).to_event(1)

    def extra_repr(self) -> str:
        return f"max_log_scale={self.max_log_scale}"
