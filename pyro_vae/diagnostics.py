"""Diagnose the terms of the ELBO, and what the latents are used for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for
from pyro_vae.distributed import shared
from pyro_vae.program.core import Program
from pyro_vae.program.identity import agree
from pyro_vae.program.inspect import program_of
from pyro_vae.program.masks import elements_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Block, block_width, blocks, noise, tiles_of_guide

__all__ = ["LatentUse", "RateDistortion", "latent_use", "rate_distortion", "terms_of"]

NUM_ACTIVITY_DRAWS = 256
MAX_PAIRS = 262_144  # (draw, datum) pairs for which the guide's density is evaluated together


class RateDistortion(NamedTuple):
    """Rate and distortion of each datum, two tensors `(N,)` of float64, nats."""

    rate: Tensor
    """KL(q(z|x) || p(z)), by draws; what the latent says about x."""
    distortion: Tensor
    """-E log p(x|z), what it leaves out."""

    @property
    def elbo(self) -> Tensor:
        """-(rate + distortion)."""
        return -(self.rate + self.distortion)


@refusing_unknown_options
def rate_distortion(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 1,
    seed: int = 0,
    plate: str | None = None,
) -> RateDistortion:
    r"""Return the two terms of the ELBO, $\mathrm{ELBO} = -D - R$, of each datum.

    $R = E_q \log q(z|x) - \log p(z)$ and $D = -E_q \log p(x|z)$, both averaged over the same draws, so that the
    identity holds in the numbers returned.

    Arguments and errors are those of `importance_sampling`.

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
    num_samples, seed = _checks.whole_number("num_samples", num_samples), _checks.seed(seed)
    program = program_of(model, guide, args, kwargs, plate)
    agree(program, num_samples=num_samples, seed=seed)
    return terms_of(program, num_samples, seed)


def terms_of(program: Program, num_samples: int = 1, seed: int = 0) -> RateDistortion:
    """Return rate and distortion of a pair that was inspected before; its parameters may have changed since."""

    def of_block(block: Block) -> Tensor:
        rate, distortion = terms = torch.zeros(2, len(block.rows), dtype=torch.float64)
        for tile in tiles_of_guide(block, num_samples, seed):
            prior, likelihood, log_q = (each.sum(0).cpu() / num_samples for each in tile.densities)
            rate += log_q - prior
            distortion -= likelihood
        return terms

    return RateDistortion(*torch.cat(shared(blocks(program, block_width(program, num_samples)), of_block), -1))


@dataclass(frozen=True)
class LatentUse:
    r"""What q(z|x) says about x over a data set, nats.

    Attributes:
        activity: for each latent site, the variance over data of E(z|x), of each latent number.
        num_active: how many latent numbers have an activity above `threshold`.
        threshold: 0.01 by default.
        rate: $E_x \mathrm{KL}(q(z|x) \| p(z))$.
        mutual_information: I(x; z) under q, $E \log q(z|x) - \log q(z)$ with $q(z) = \frac{1}{N} \sum_n q(z|x_n)$;
            log N at most; near it, N is too small to tell.
        mutual_information_std_error: from the draws of z, for these data.
        aggregate_kl: $\mathrm{KL}(q(z) \| p(z))$ = rate - mutual information: how far the codes together are from the
            prior.
        total_correlation: $\mathrm{KL}(q(z) \| \prod_d q(z_d))$, how far latent numbers are from being independent over
            these data, (D - 1) log N at most; near it, N is too small to tell. None for a guide with several latent
            sites, or whose numbers depend on each other given x.
    """

    activity: dict[str, Tensor]
    num_active: int
    threshold: float
    rate: float
    mutual_information: float
    mutual_information_std_error: float
    aggregate_kl: float
    total_correlation: float | None

    @property
    def dimension_wise_kl(self) -> float | None:
        r"""$\sum_d \mathrm{KL}(q(z_d) \| p(z_d))$, aggregate KL less total correlation, if p(z) is a product."""
        return None if self.total_correlation is None else self.aggregate_kl - self.total_correlation


@refusing_unknown_options
def latent_use(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 10,
    threshold: float = 0.01,
    seed: int = 0,
    plate: str | None = None,
) -> LatentUse:
    r"""Estimate active units, mutual information I(x; z), and the aggregate posterior's KL to the prior.

    The rate is the sum of the last two: $E_x \mathrm{KL}(q(z|x) \| p(z)) = I(x; z) + \mathrm{KL}(q(z) \| p(z))$. The
    last is, for latent numbers that are independent in the prior and given x, a sum again: of the total correlation
    $\mathrm{KL}(q(z) \| \prod_d q(z_d))$ and of $\sum_d \mathrm{KL}(q(z_d) \| p(z_d))$.

    Args:
        model, guide: a Pyro program and its guide, whose density can be evaluated at any z.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first; the more, the better.
        num_samples: draws of z for each datum.
        threshold: the activity above which a latent number counts as active.
        seed: fixes the draws.
        plate, kwargs: as in `importance_sampling`.

    Returns:
        `LatentUse`.

    Raises:
        TypeError, ValueError: as `importance_sampling`; for a guide with auxiliary sites.

    References:
        Burda, Grosse and Salakhutdinov (2016), section 5.1 (active units); Hoffman and Johnson (2016), ELBO surgery;
        Chen, Li, Grosse and Duvenaud (2018), Isolating sources of disentanglement (total correlation).

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # z says nothing of x
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> use = latent_use(model, guide, torch.randn(50))
        >>> abs(round(use.mutual_information, 6)), abs(round(use.aggregate_kl, 6))
        (0.0, 0.0)
    """
    num_samples = _checks.whole_number("num_samples", num_samples, minimum=2)
    threshold = _checks.positive("threshold", threshold)
    seed = _checks.seed(seed)
    program = program_of(model, guide, args, kwargs, plate).with_masked_latents
    num_data = program.num_data
    information = torch.zeros(num_samples, num_data, dtype=torch.float64)
    rate = 0.0
    elements = _independent_elements(program, seed)
    correlations = []
    for k in range(num_samples):
        with noise(program, seed_for(seed, "latent use"), k):
            latents, log_q = program.draw(1)
            prior, _ = program.log_joint(latents)
            log_aggregate = _log_aggregate(program, latents)
            information[k] = (log_q[0] - log_aggregate).cpu()
        if elements is not None:
            correlations.append((log_aggregate - _log_product(program, elements, *latents.values())).mean().item())
        rate += (log_q - prior).mean().item() / num_samples
    activity = _activity(program, seed)
    mutual_information = information.mean().item()
    return LatentUse(
        activity=activity,
        num_active=sum(int((value > threshold).sum()) for value in activity.values()),
        threshold=threshold,
        rate=rate,
        mutual_information=mutual_information,
        mutual_information_std_error=information.mean(1).std().item() / math.sqrt(num_samples),
        aggregate_kl=rate - mutual_information,
        total_correlation=sum(correlations) / num_samples if correlations else None,
    )


def _independent_elements(program: Program, seed: int) -> Any:
    """Return q(z|x) of all data as a distribution of independent numbers; None if it is none."""
    with noise(program, seed_for(seed, "latent use"), 0):
        sites = program.guide_sites(1)
    if len(sites) != 1 or program.structure.latents != sites.keys():
        return None
    fn, mask = elements_of(*sites.values())
    return None if fn.event_shape or mask is not None else fn


def _log_product(program: Program, elements: Any, value: Tensor) -> Tensor:
    r"""Return $\sum_d \log \frac{1}{N} \sum_j q(z_{id}|x_j)$ for the one draw of each datum i, `(N,)`."""
    axis, num_data = program.structure.data_axis, program.num_data
    draws = value.movedim(axis, 0).unsqueeze(axis + 1)
    rows = max(1, MAX_PAIRS // max(1, math.prod(value.shape)))
    found = [elements.log_prob(some).logsumexp(axis + 1) - math.log(num_data) for some in draws.split(rows)]
    return torch.cat(found).double().flatten(1).sum(1)


def _activity(program: Program, seed: int) -> dict[str, Tensor]:
    """Estimate the variance over data of E(z|x) from means of draws, less what the noise of the means adds."""
    means: dict[str, list[Tensor]] = {}
    variances: dict[str, list[Tensor]] = {}
    for block in blocks(program, block_width(program, NUM_ACTIVITY_DRAWS)):
        with noise(program, seed_for(seed, "activity"), block.place):
            latents, _ = block.program.draw(NUM_ACTIVITY_DRAWS)
        for name in program.latents_of(latents):
            draws = program.draws_first(latents[name])[:, block.columns].double().cpu()
            means.setdefault(name, []).append(draws.mean(0))
            variances.setdefault(name, []).append(draws.var(0))
    return {
        name: torch.cat(means[name]).var(0) - torch.cat(variances[name]).mean(0) / NUM_ACTIVITY_DRAWS for name in means
    }


def _log_aggregate(program: Program, latents: Latents) -> Tensor:
    """Return $\\log \\frac{1}{N} \\sum_j q(z_i|x_j)$ for the one draw of each datum i, `(N,)`."""
    num_data = program.num_data
    axis = program.structure.data_axis
    first = {name: program.draws_first(value)[0] for name, value in latents.items()}
    pieces = []
    for some in torch.arange(num_data, device=program.device).split(max(1, MAX_PAIRS // num_data)):
        spread = {
            name: value[some][:, None].expand(-1, num_data, *value.shape[1:]).movedim(1, axis)
            for name, value in first.items()
        }
        pieces.append(program.log_guide(spread).logsumexp(1) - math.log(num_data))
    return torch.cat(pieces)
