"""Several Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.nn._shared import bounded
from pyro_vae.posteriors._base import AmortizedPosterior

__all__ = ["NormalMixture"]


class _Mixture(dist.MixtureSameFamily):
    r"""A mixture of diagonal Gaussians whose draws carry a gradient.

    Given its noise, a draw is $F^{-1}$ of it, where $F_d(z)$ is the distribution function of the d-th number given
    those before. So $dz/d\theta = -(\partial F / \partial z)^{-1} \partial F / \partial \theta$, a triangular system.
    """

    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.logits, self.loc, self.scale = logits.log_softmax(-1), loc, scale
        components = dist.Normal(loc, scale, validate_args=False).to_event(1)
        super().__init__(dist.Categorical(logits=logits, validate_args=False), components, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Mixture:
        """Expand the parameters."""
        shape = torch.Size(batch_shape)
        event = self.loc.shape[-2:]
        return type(self)(
            self.logits.expand(*shape, -1), self.loc.expand(*shape, *event), self.scale.expand(*shape, *event)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, and give the draw its derivative."""
        with torch.no_grad():
            z = self._drawn(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        distribution, jacobian = self._distribution(z)
        change = distribution - distribution.detach()  # zero, with a gradient
        return z - torch.linalg.solve_triangular(jacobian, change[..., None], upper=False)[..., 0]

    def _drawn(self, sample_shape: torch.Size) -> Tensor:
        index = self.mixture_distribution.sample(sample_shape)[..., None, None]
        of_each = (each.expand(*index.shape[:-2], *each.shape[-2:]) for each in (self.loc, self.scale))
        loc, scale = (each.take_along_dim(index, -2).squeeze(-2) for each in of_each)
        return loc + scale * dist.Normal(torch.zeros_like(loc), 1.0, validate_args=False).rsample()

    def _distribution(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return $F(z)$, `(..., D)`, and $\partial F / \partial z$, lower triangular and without gradient."""
        white = (z[..., None, :] - self.loc) / self.scale  # (..., K, D)
        log_density = -white.square() / 2 - self.scale.log() - math.log(2 * math.pi) / 2
        log_share = self.logits[..., None] + log_density.cumsum(-1) - log_density  # given the numbers before
        share = log_share.softmax(-2)
        below = torch.special.ndtr(white)
        distribution = (share * below).sum(-2)
        with torch.no_grad():
            score = -white / self.scale
            jacobian = (share * below).mT @ score - distribution[..., None] * (share.mT @ score)
            density = (share * log_density.exp()).sum(-2)
            tiny = torch.finfo(density.dtype).tiny
            return distribution, jacobian.tril(-1) + density.clamp(min=tiny).diag_embed()


class NormalMixture(AmortizedPosterior):
    r"""A mixture of K Gaussians, $q(z|x) = \sum_k \pi_k(x) N(z; \mu_k(x), \mathrm{diag}\,\sigma_k^2(x))$.

    Its draws carry a gradient, by the implicit function theorem, to shares as well as to locations and scales.

    Args:
        network: any module from x (and context) to `num_components * (1 + 2 * latent_dim)` numbers: K logits of shares,
            K D locations, K D log scales.
        latent_dim: D.
        num_components: K.
        max_log_scale: the bound on $|\log \sigma|$.

    Shapes: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers, or a network of another width.

    References:
        Graves (2016), Stochastic backpropagation through mixture density distributions.

    Examples:
        >>> import torch
        >>> from pyro_vae.nn import MLP
        >>> posterior = NormalMixture(MLP(784, [200], 2 * (1 + 2 * 10)), latent_dim=10, num_components=2)
        >>> posterior(torch.zeros(3, 784)).event_shape
        torch.Size([10])
    """

    def __init__(
        self, network: nn.Module, latent_dim: int, num_components: int = 2, max_log_scale: float = 7.0
    ) -> None:
        super().__init__(network)
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        self.num_components = _checks.whole_number("num_components", num_components)
        self.max_log_scale = _checks.positive("max_log_scale", max_log_scale)

    def num_outputs(self, latent_dim: int) -> int:
        """Return how many numbers the network has to give."""
        return self.num_components * (1 + 2 * latent_dim)

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        shape = self.num_components, self.latent_dim
        size = self.num_components * self.latent_dim
        logits, loc, raw = self.outputs(x, *context).split([self.num_components, size, size], -1)
        scale = bounded(raw, self.max_log_scale).exp().unflatten(-1, shape)
        return _Mixture(logits, loc.unflatten(-1, shape), scale)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, num_components={self.num_components}, max_log_scale={self.max_log_scale}"
