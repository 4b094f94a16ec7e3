"""Gaussians whose dimensions depend on each other."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import bounded
from pyro_vae.posteriors._base import AmortizedPosterior

__all__ = ["FullRankNormal", "LowRankNormal"]

MAX_FACTOR = 100.0
"""The bound on other entries of a factor, in units of its row's scale: it allows correlations of 0.99995."""


class FullRankNormal(AmortizedPosterior):
    r"""A Gaussian with a full covariance, $q(z|x) = N(z; \mu(x), L(x) L(x)^T)$, L lower triangular.

    The network gives $\mu$, the logarithms of L's diagonal (bounded as in `DiagonalNormal`), and the D (D - 1) / 2
    numbers below it, each in units of the diagonal of its row, and bounded as smoothly by 100.

    Args:
        network: any module from x (and context) to `latent_dim * (latent_dim + 3) // 2` numbers.
        latent_dim: D.
        max_log_scale: the bound on $|\log L_{dd}|$.

    Shapes: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers, or a network of another width.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> posterior = FullRankNormal(MLP(784, [200], 10 * 13 // 2), latent_dim=10)
        >>> posterior(torch.zeros(3, 784)).event_shape
        torch.Size([10])
    """

    def __init__(self, network: nn.Module, latent_dim: int, max_log_scale: float = 7.0) -> None:
        super().__init__(network)
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def num_outputs(self, latent_dim: int) -> int:
        """Return how many numbers the network has to give."""
        return latent_dim * (latent_dim + 3) // 2

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        dim = self.latent_dim
        loc, raw, below = self.outputs(x, *context).split([dim, dim, dim * (dim - 1) // 2], -1)
        scale = bounded(raw, self.max_log_scale).exp()
        rows, columns = torch.tril_indices(dim, dim, offset=-1, device=below.device)
        unit = torch.eye(dim, dtype=loc.dtype, device=loc.device).expand(*loc.shape, dim).clone()
        unit[..., rows, columns] = bounded(below, MAX_FACTOR)
        return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * unit)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, max_log_scale={self.max_log_scale}"


class LowRankNormal(AmortizedPosterior):
    r"""A Gaussian of covariance $\mathrm{diag}\,\sigma^2(x) + W(x) W(x)^T$, W of size D by R.

    The entries of W are in units of the $\sigma$ of their row, and bounded smoothly by 100.

    Args:
        network: any module from x (and context) to `latent_dim * (2 + rank)` numbers: loc, log scale, then W.
        latent_dim: D.
        rank: R.
        max_log_scale: the bound on $|\log \sigma|$.

    Shapes: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers, or a network of another width.

    References:
        Rezende, Mohamed and Wierstra (2014), Stochastic backpropagation and approximate inference in deep generative
        models, section 4.3.

    Examples:
        >>> from pyro_vae.nn import MLP
        >>> posterior = LowRankNormal(MLP(784, [200], 10 * 4), latent_dim=10, rank=2)
        >>> posterior(torch.zeros(3, 784)).event_shape
        torch.Size([10])
    """

    def __init__(self, network: nn.Module, latent_dim: int, rank: int = 1, max_log_scale: float = 7.0) -> None:
        super().__init__(network)
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        self.rank = _checks.whole_number("rank", rank)
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def num_outputs(self, latent_dim: int) -> int:
        """Return how many numbers the network has to give."""
        return latent_dim * (2 + self.rank)

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        dim = self.latent_dim
        loc, raw, factor = self.outputs(x, *context).split([dim, dim, dim * self.rank], -1)
        scale = bounded(raw, self.max_log_scale).exp()
        factor = scale[..., None] * bounded(factor, MAX_FACTOR).unflatten(-1, (dim, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, rank={self.rank}, max_log_scale={self.max_log_scale}"
