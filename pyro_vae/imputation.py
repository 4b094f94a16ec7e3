"""Missing entries of data, given those that were observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import seed_for, seeded
from pyro_vae.evidence.auto import log_evidence
from pyro_vae.evidence.result import Evidence
from pyro_vae.vae import VAE

__all__ = ["Imputation", "impute"]

NUM_ROUNDS = 10
"""Of filling in, so that the encoder sees complete data."""


@dataclass(frozen=True, repr=False)
class Imputation:
    """What data say of their missing entries.

    Attributes:
        x: `(N, ...)`: the data, with the mean of each missing entry in its place.
        sd: `(N, ...)`: the standard deviation of each missing entry, 0 where it was observed.
        missing: `(N, ...)` of bool.
        rows: `(M,)`: which data have missing entries.
        evidence: log p(observed entries) of these M data. Where it is not `reliable`, neither are mean and sd.
    """

    x: Tensor
    sd: Tensor
    missing: Tensor
    rows: Tensor
    evidence: Evidence

    def __repr__(self) -> str:
        return (
            f"Imputation({int(self.missing.sum()):,} entries of {len(self.rows):,} data, reliable for "
            f"{int(self.evidence.reliable.sum()):,} of them)"
        )


def impute(
    vae: VAE,
    x: Any,
    *context: Any,
    num_draws: int = 200,
    tolerance: float = 0.1,
    max_evaluations: int = 6000,
    seed: int = 0,
    progress: bool = False,
) -> Imputation:
    r"""Return mean and standard deviation of missing entries, under p(missing | observed) of a VAE.

    Draws of z come from $p(z|x_o) \propto p(z) \prod_{d \in o} p(x_d|z)$, by the estimator that `log_evidence` picks
    for the datum, with the likelihood masked by what was observed. The mean is then that of $E(x_d|z)$ over draws, and
    the variance that of $\mathrm{Var}(x_d|z)$ and of the spread of $E(x_d|z)$. The guide is only a proposal: its
    encoder sees entries that alternate draws of p(x|z) and q(z|x) have filled in.

    Args:
        vae: whose likelihood has independent entries.
        x: `(N, ...)`, NaN where an entry is missing.
        context: the further arguments of a conditional VAE, complete.
        num_draws: of z, for each datum.
        tolerance, max_evaluations, progress: as in `log_evidence`.
        seed: fixes the noise.

    Returns:
        `Imputation`.

    Raises:
        TypeError, ValueError: where nothing is missing, for a likelihood whose entries depend on each other given z, or
            have no variance; and as `log_evidence`.

    References:
        Rezende, Mohamed and Wierstra (2014), Stochastic backpropagation and approximate inference in deep generative
        models, for the alternate draws; Mattei and Frellsen (2018), Leveraging the exact likelihood of deep latent
        variable models.

    Examples:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
        ... )
        >>> x = torch.tensor([[0.5, 1.0, torch.nan], [0.0, 1.0, 2.0]])
        >>> done = impute(vae, x)
        >>> done.rows, bool(done.sd[0, 2] > 1)
        (tensor([0]), True)
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"vae: expected a VAE; got {vae!r}; pass one.")
    num_draws = _checks.whole_number("num_draws", num_draws)
    seed = _checks.seed(seed)
    given = _checks.tensor("x", x)
    missing = torch.isnan(given)
    rows = missing.flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        raise ValueError(
            f"x: expected NaN where an entry is missing; got {len(given):,} complete data; there is nothing to impute."
        )
    some = tuple(_checks.tensor(f"context[{i}]", value)[rows] for i, value in enumerate(context))
    with seeded(given.device, seed_for(seed, "filling in") % 2**32):
        x_of_rows = _filled_in(vae, given[rows], missing[rows], some)
    observed = ~missing[rows].reshape(x_of_rows.shape)
    evidence = log_evidence(
        _observing(vae), _guessing(vae), x_of_rows, observed, *some, tolerance=tolerance,
        max_evaluations=max_evaluations, num_posterior_draws=num_draws, seed=seed, progress=progress,
    )  # fmt: skip
    assert evidence.draws is not None
    mean, sd = _moments(vae, evidence.draws.latents["z"].to(x_of_rows), some)
    completed, spread = given.clone(), torch.zeros_like(given)
    completed[rows] = torch.where(missing[rows], mean.reshape(given[rows].shape), given[rows])
    spread[rows] = torch.where(missing[rows], sd.reshape(given[rows].shape), 0.0)
    return Imputation(completed, spread, missing, rows, evidence)


@torch.no_grad()
def _filled_in(vae: VAE, x: Tensor, missing: Tensor, context: tuple[Tensor, ...]) -> Tensor:
    """Draw missing entries from p(x|z) and z from q(z|x), in turn: `(M, *event_shape)`."""
    draw = vae.sample(len(x), *context)
    missing = missing.reshape(draw.shape)
    known = vae.check(torch.where(missing, draw, x.reshape(draw.shape).to(draw)))
    filled = known
    for _ in range(NUM_ROUNDS):
        draw = vae.decode(vae.encode(filled, *context).sample(), *context).sample()
        filled = torch.where(missing, draw, known)
    return filled


def _elements(vae: VAE, z: Tensor, context: tuple[Tensor, ...]) -> Any:
    """Return p(x|z) as one distribution for each entry."""
    likelihood = vae.likelihood(z, *context)
    while isinstance(likelihood, torch.distributions.Independent):
        likelihood = likelihood.base_dist
    if likelihood.event_shape:
        raise ValueError(
            "vae: expected a likelihood whose entries are independent given z; got "
            f"{type(likelihood).__name__}, of event shape {tuple(likelihood.event_shape)}; its entries cannot be "
            "missing one by one."
        )
    return likelihood


def _observing(vae: VAE) -> Any:
    def model(x: Tensor, observed: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior(*context))
            pyro.sample("x", _elements(vae, z, context).mask(observed).to_event(len(vae.event_shape)), obs=x)

    return model


def _guessing(vae: VAE) -> Any:
    def guide(x: Tensor, observed: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.posterior(x, *context))

    return guide


@torch.no_grad()
def _moments(vae: VAE, z: Tensor, context: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of x over draws z `(S, N, D)`, one draw at a time: `(N, *event_shape)`."""
    total = squares = within = torch.zeros(())
    for each in z:
        entries = _elements(vae, each, context)
        total = total + entries.mean
        squares = squares + entries.mean.square()
        within = within + entries.variance
    mean = total / len(z)
    variance = within / len(z) + (squares / len(z) - mean.square()).clamp_min(0)
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise ValueError(
            "vae: expected a likelihood whose entries have a mean and a variance; got one without; draw from "
            "it instead."
        )
    return mean, variance.sqrt()
