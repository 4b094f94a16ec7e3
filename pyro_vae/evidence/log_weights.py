"""The log weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae.program.inspect import program_of
from pyro_vae.program.tiles import tiles

__all__ = ["log_weights"]


@refusing_unknown_options
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Tensor,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1,
    seed: int = 0,
    plate: str | None = None,
) -> Tensor:
    r"""Return log weights $\log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn}|x_n)$ of draws $z_{kn}$ from the guide.

    Objectives and evaluations all reduce this tensor: its mean over k is the ELBO, its log-mean-exp the
    importance-sampled log p(x).

    Args:
        model, guide: a Pyro program and its guide, with one plate over data.
        args: what both are called with: tensors of one row a datum, x first.
        num_samples: the number K of draws for each datum.
        seed: fixes the draws, whatever the state of torch's generator, which is left as it was.
        plate: the name of the plate over data; needed only where several hold all sites.
        kwargs: keyword arguments of both, by name.

    Shapes: `(K, N)`, float64, in nats.

    Raises:
        TypeError, ValueError: as `importance_sampling`.

    Examples:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, so that all weights of a datum are its p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> log_weights(model, guide, x, num_samples=3).allclose(dist.Normal(0.0, 2**0.5).log_prob(x))
        True
    """
    num_samples = _checks.whole_number("num_samples", num_samples)
    seed = _checks.seed(seed)
    program = program_of(model, guide, args, kwargs, plate)
    weights = torch.empty(num_samples, program.num_data, dtype=torch.float64)
    for block, tile in tiles(program, num_samples, seed):
        weights[tile.draws, block.rows[0] : block.rows[-1] + 1] = tile.densities.weight.cpu()
    return weights
