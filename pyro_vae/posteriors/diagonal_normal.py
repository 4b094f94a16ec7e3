"""A Gaussian with independent dimensions."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import bounded
from pyro_vae.posteriors._base import AmortizedPosterior

__all__ = ["DiagonalNormal"]


class DiagonalNormal(AmortizedPosterior):
    r"""A Gaussian with independent dimensions, $q(z|x) = N(z; \mu(x), \mathrm{diag}\,\sigma^2(x))$.

    The network gives $(\mu, \rho)$, and $\log \sigma = c \tanh(\rho / c)$ with $c$ = `max_log_scale`: smooth, nearly
    $\rho$ around zero, and bounded, so that no step of an optimizer can make a scale of zero or infinity.

    Args:
        network: any module from x (and context, where the VAE has any) to `2 * latent_dim` numbers, loc first. Inside
            several plates it sees as many leading dimensions; `pv.nn.Batched` makes them one.
        max_log_scale: the bound c on $|\log \sigma|$.

    Shapes: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        ValueError: for a bound that is not positive, or a network whose output has an odd width.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, equation 9.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> posterior = DiagonalNormal(MLP(784, [200, 200], 2 * 50))
        >>> posterior(torch.zeros(3, 784)).event_shape
        torch.Size([50])
    """

    numbers_per_latent = 2

    def __init__(self, network: nn.Module, max_log_scale: float = 7.0) -> None:
        super().__init__(network)
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        out = self.network(x, *context)
        if out.shape[-1] % 2:
            raise ValueError(
                f"posterior: expected a network with 2 * latent_dim outputs (loc and log scale); got {out.shape[-1]}; "
                "change its last layer."
            )
        loc, raw = out.chunk(2, -1)
        return dist.Normal(loc, bounded(raw, self.max_log_scale).exp()).to_event(1)

    def extra_repr(self) -> str:
        return f"max_log_scale={self.max_log_scale}"
