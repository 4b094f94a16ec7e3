"""Several Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.posteriors._base import AmortizedPosterior, bounded_log

__all__ = ["NormalMixture"]


class _Mixture(dist.MixtureOfDiagNormals):
    """Pyro's, which of a batch draws one sample each and refuses to draw more."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.expand(shape + self.batch_shape).rsample() if shape else super().rsample()


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
        scale = bounded_log(raw, self.max_log_scale).exp().unflatten(-1, shape)
        return _Mixture(loc.unflatten(-1, shape), scale, logits)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, num_components={self.num_components}, max_log_scale={self.max_log_scale}"
