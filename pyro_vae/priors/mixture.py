"""Mixtures: of Gaussians, and of the posteriors of pseudo-inputs."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_vae import _checks

__all__ = ["GaussianMixture", "VampPrior"]


class GaussianMixture(nn.Module):
    r"""A mixture of K Gaussians, $p(z) = \sum_k \pi_k N(z; \mu_k, \mathrm{diag}\,\sigma_k^2)$, learned with the VAE.

    Locations start from N(0, I), scales at 1.

    Args:
        latent_dim: the number D of latent dimensions.
        num_components: K.
        min_scale: the floor of the scales: without one a component could collapse onto a point.

    Shapes: the distribution has batch shape `()` and event shape `(latent_dim,)`.

    Raises:
        TypeError, ValueError: for numbers that are not positive.

    References:
        Dilokthanakul et al. (2016), Deep unsupervised clustering with Gaussian mixture variational autoencoders.

    Examples:
        >>> GaussianMixture(50, num_components=10)().event_shape
        torch.Size([50])
    """

    def __init__(self, latent_dim: int, num_components: int, min_scale: float = 1e-2) -> None:
        super().__init__()
        self.latent_dim = _checks.whole_number("latent_dim", latent_dim)
        self.num_components = _checks.whole_number("num_components", num_components)
        self.min_scale = _checks.positive("min_scale", min_scale)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(torch.randn(self.num_components, self.latent_dim))
        self.raw_scale = nn.Parameter(torch.full((self.num_components, self.latent_dim), 0.5413))  # softplus of it is 1

    def forward(self, *context: Tensor) -> dist.Distribution:
        """Return p(z), whatever the context is."""
        scale = self.min_scale + functional.softplus(self.raw_scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), dist.Normal(self.loc, scale).to_event(1))

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, num_components={self.num_components}, min_scale={self.min_scale}"


class VampPrior(nn.Module):
    r"""A mixture of the posteriors of K pseudo-inputs, $p(z) = \sum_k \pi_k\, q(z|u_k)$, learned with the VAE.

    The posterior is the VAE's own module, passed to both: what it learns moves the prior as well.

    Args:
        posterior: the module whose `forward(x)` is q(z|x).
        pseudo_inputs: `(K, *event_shape)`: where they start; data, for instance `dataset.x[:500]`.
        learn_shares: whether the shares $\pi_k$ are learned; otherwise each is 1 / K, as in the paper.

    Shapes: the distribution has batch shape `()` and event shape that of q(z|x).

    Raises:
        TypeError, ValueError: for a posterior that is no module, for pseudo-inputs that are no finite tensor with a row
            for each, or that the posterior cannot be called with.

    References:
        Tomczak and Welling (2018), VAE with a VampPrior.

    Examples:
        >>> import pyro_vae as pv
        >>> posterior = pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [16], 2 * 2))
        >>> vae = pv.VAE(
        ...     prior=VampPrior(posterior, torch.rand(10, 784)),
        ...     likelihood=pv.likelihoods.Bernoulli(pv.nn.MLP(2, [16], 784)),
        ...     posterior=posterior,
        ... )
        >>> vae.prior().event_shape
        torch.Size([2])
    """

    def __init__(self, posterior: nn.Module, pseudo_inputs: Any, learn_shares: bool = False) -> None:
        super().__init__()
        if not isinstance(posterior, nn.Module):
            raise TypeError(
                f"posterior: expected the module whose forward(x) is q(z|x); got {posterior!r}; pass the VAE's own."
            )
        values = _checks.finite("pseudo_inputs", _checks.tensor("pseudo_inputs", pseudo_inputs))
        if values.ndim < 2 or not len(values):
            raise ValueError(
                f"pseudo_inputs: expected one row or more, each like a datum; got shape {tuple(values.shape)}; pass "
                "some of the data."
            )
        self.learn_shares = learn_shares
        self.posterior = posterior
        dtypes = (weight.dtype for weight in posterior.parameters() if weight.is_floating_point())
        dtype = next(dtypes, torch.get_default_dtype())
        self.pseudo_inputs = nn.Parameter(values.detach().clone().to(dtype))
        logits = torch.zeros(len(values), dtype=dtype)
        self.logits: Tensor
        if learn_shares:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)
        self._refuse_another_shape()

    @torch.no_grad()
    def _refuse_another_shape(self) -> None:
        try:
            found = self.posterior(self.pseudo_inputs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(
                "pseudo_inputs: expected rows that the posterior takes as data; got shape "
                f"{tuple(self.pseudo_inputs.shape)}, for which it raises {str(error).rstrip('.')}; pass some of the "
                "data."
            ) from error
        if found.batch_shape != self.pseudo_inputs.shape[:1]:
            raise ValueError(
                f"pseudo_inputs: expected a distribution for each row from the posterior; got batch shape "
                f"{tuple(found.batch_shape)} for {len(self.pseudo_inputs)} rows; pass rows of the data's shape."
            )

    def forward(self, *context: Tensor) -> dist.Distribution:
        """Return p(z), whatever the context is."""
        components = self.posterior(self.pseudo_inputs)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    def extra_repr(self) -> str:
        return f"num_components={len(self.pseudo_inputs)}, learn_shares={self.learn_shares}"
