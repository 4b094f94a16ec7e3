"""What the ELBO is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.program import Program, tiles

__all__ = ["RateDistortion", "rate_distortion"]


class RateDistortion(NamedTuple):
    """Rate and distortion of each datum, two tensors `(N,)` of float64, nats."""

    rate: Tensor
    """E KL(q(z|x) || p(z)), by draws: what the latent says of x."""
    distortion: Tensor
    """-E log p(x|z): what it leaves out."""

    @property
    def elbo(self) -> Tensor:
        """-(rate + distortion)."""
        return -(self.rate + self.distortion)


def rate_distortion(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1,
    seed: int = 0,
    plate: str | None = None,
    **kwargs: Any,
) -> RateDistortion:
    r"""The two terms of the ELBO, $\mathrm{ELBO} = -D - R$, of each datum.

    $R = E_q \log q(z|x) - \log p(z)$ and $D = -E_q \log p(x|z)$, both averaged over the same draws, so that the
    identity holds in the numbers returned.

    Args and errors are those of `importance_sampling`.

    References:
        Alemi et al. (2018), Fixing a broken ELBO.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # knows nothing of x: q(z|x) = p(z)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> rate_distortion(model, guide, torch.zeros(2)).rate
        tensor([0., 0.], dtype=torch.float64)
    """
    num_samples = _checks.whole_number("num_samples", num_samples)
    program = Program.of(model, guide, args, kwargs, plate)
    rate, distortion = torch.zeros(2, program.num_data, dtype=torch.float64)
    for (_, rows), densities in tiles(program, num_samples, _checks.seed(seed)):
        rate[rows] += (densities.guide - densities.prior).sum(0).cpu() / num_samples
        distortion[rows] -= densities.likelihood.sum(0).cpu() / num_samples
    return RateDistortion(rate, distortion)
