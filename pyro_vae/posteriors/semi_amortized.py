"""A Gaussian that is refined for each datum, in training as well."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import _checks
from pyro_vae.posteriors.diagonal_normal import DiagonalNormal

__all__ = ["SemiAmortizedNormal"]

LARGEST_STEP = 1.0
"""In standard deviations for a mean, and for a log standard deviation."""


class SemiAmortizedNormal(nn.Module):
    r"""A Gaussian with independent dimensions that a network starts, and steps on each datum's own ELBO refine.

    From the network's $(\mu, \log \sigma)$, each step climbs the ELBO of the datum alone by its natural gradient,

    $\mu \leftarrow \mu + a\, \sigma^2 \nabla_\mu, \quad \log \sigma \leftarrow \log \sigma + \tfrac{a}{2} \nabla_{\log
    \sigma}$,

    no step being longer than one. The ELBO is that of `num_points` fixed points
    $z = \mu + \sigma \epsilon$, a point and its mirror image in turn, so that q(z|x) is a function of x and has a
    density. Gradients go through the steps: the network learns where to start, and the likelihood that it will be
    refined for. It narrows the amortization gap at `num_steps` times the cost.

    Args:
        initial: the posterior to start from.
        prior, likelihood: those of the VAE, which shares them.
        latent_dim: the number of latent dimensions.
        num_steps: how many steps.
        step_size: a, above 0.
        num_points: how many points, an even number.

    Shapes: as `initial`: x `(..., *event)` to a distribution of batch shape `(...)` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for impossible numbers, or another posterior to start from.

    References:
        Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-amortized variational autoencoders; Marino, Yue and Mandt
        (2018), Iterative amortized inference.

    Examples:
        >>> from pyro_vae import VAE, likelihoods, nn, posteriors, priors
        >>> prior, likelihood = priors.StandardNormal(2), likelihoods.Gaussian(nn.MLP(2, [], 5))
        >>> initial = posteriors.DiagonalNormal(nn.MLP(5, [], 4))
        >>> vae = VAE(prior, likelihood, SemiAmortizedNormal(initial, prior, likelihood, 2))
        >>> vae.posterior(torch.zeros(3, 5)).event_shape
        torch.Size([2])
    """

    points: Tensor

    def __init__(
        self,
        initial: DiagonalNormal,
        prior: nn.Module,
        likelihood: nn.Module,
        latent_dim: int,
        num_steps: int = 5,
        step_size: float = 0.3,
        num_points: int = 8,
    ) -> None:
        super().__init__()
        if not isinstance(initial, DiagonalNormal):
            raise TypeError(f"initial: expected a DiagonalNormal; got {type(initial).__name__}; pass one.")
        self.initial, self.prior, self.likelihood = initial, prior, likelihood
        self.num_steps = _checks.whole_number("num_steps", num_steps)
        self.step_size = _checks.positive("step_size", step_size)
        self.num_points = _checks.whole_number("num_points", num_points, minimum=2)
        if num_points % 2:
            raise ValueError(f"num_points: expected an even number; got {num_points}; pass {num_points + 1}.")
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        half = torch.randn(num_points // 2, self.latent_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("points", torch.cat([half, -half]).to(torch.get_default_dtype()))

    def remedy(self, latent_shape: Sequence[int]) -> str:
        """Return the advice given in the error about a latent of another shape."""
        return self.initial.remedy(latent_shape)

    def forward(self, x: Tensor, *context: Tensor) -> dist.Distribution:
        """Return q(z|x)."""
        keeps_graph = torch.is_grad_enabled()
        start = self.initial(x, *context).base_dist
        loc, log_scale = start.loc, start.scale.log()
        with torch.enable_grad():
            for _ in range(self.num_steps):
                loc, log_scale = self._stepped(loc, log_scale, x, context, keeps_graph)
        if not keeps_graph:
            loc, log_scale = loc.detach(), log_scale.detach()
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def _stepped(
        self, loc: Tensor, log_scale: Tensor, x: Tensor, context: tuple[Tensor, ...], keeps_graph: bool
    ) -> tuple[Tensor, Tensor]:
        if not keeps_graph:
            loc, log_scale = loc.detach(), log_scale.detach()
        for numbers in (loc, log_scale):
            if not numbers.requires_grad:
                numbers.requires_grad_()
        elbo = self._elbo(loc, log_scale, x, context).sum()
        by_loc, by_log_scale = torch.autograd.grad(elbo, (loc, log_scale), create_graph=keeps_graph)
        scale = log_scale.exp()
        by_loc = (self.step_size * scale * by_loc).clamp(-LARGEST_STEP, LARGEST_STEP)
        by_log_scale = (self.step_size / 2 * by_log_scale).clamp(-LARGEST_STEP, LARGEST_STEP)
        return loc + scale * by_loc.nan_to_num(), log_scale + by_log_scale.nan_to_num()

    def _elbo(self, loc: Tensor, log_scale: Tensor, x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Return the ELBO of each datum but for a constant, from the fixed points."""
        points = self.points.reshape(self.num_points, *(1,) * (loc.ndim - 1), -1)
        z = loc + log_scale.exp() * points
        each = [value.expand(self.num_points, *value.shape) for value in context]
        log_joint = self.prior(*each).log_prob(z) + self.likelihood(z, *each).log_prob(x)
        return log_joint.mean(0) + log_scale.sum(-1)

    def extra_repr(self) -> str:
        return (
            f"latent_dim={self.latent_dim}, num_steps={self.num_steps}, step_size={self.step_size}, "
            f"num_points={self.num_points}"
        )
