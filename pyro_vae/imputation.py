"""Missing entries of data, given those that were observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae import _checks
from pyro_vae._random import seed_for, seeded
from pyro_vae.distributions import Incomplete, entries_of
from pyro_vae.evidence.auto import log_evidence
from pyro_vae.evidence.result import Evidence
from pyro_vae.vae import VAE
from pyro_vae.vae.datum import any_parameter

__all__ = ["Imputation", "impute"]

NUM_ROUNDS = 10
"""Of filling in, so that the encoder sees complete data."""


@dataclass(frozen=True, repr=False)
class Imputation:
    """What data say of their missing entries.

    Attributes:
        x: `(N, ...)`: the data, with the mean of each missing number in its place, and of a level (`Categorical`), the
            likeliest.
        sd: `(N, ...)`: the standard deviation of each missing number, 0 where it was observed; NaN for a missing level.
        probability: `(N, ...)`: of each level that was filled in, 1 where it was observed; NaN for a missing number.
        missing: `(N, ...)` of bool.
        rows: `(M,)`: which data have missing entries.
        evidence: log p(observed entries) of these M data. Where it is not `reliable`, neither are mean and sd. Its
            `draws` hold z of these: `vae.decode(z, *context).sample()` draws missing entries together.
    """

    x: Tensor
    sd: Tensor
    probability: Tensor
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
    for the datum. The mean is then that of $E(x_d|z)$ over draws, and the variance that of $\mathrm{Var}(x_d|z)$ and of
    the spread of $E(x_d|z)$. A VAE of incomplete data (`likelihoods.Incomplete`) is taken as it is. Another was trained
    on complete data: its likelihood is then that of what was observed, and its encoder, only a proposal, sees entries
    that alternate draws of p(x|z) and q(z|x) have filled in.
    That an entry is missing is taken to say nothing of its value beyond what the observed entries say (missing at
    random).

    Args:
        vae: whose likelihood has independent entries.
        x: `(N, ...)`, NaN where an entry is missing.
        context: the further arguments of a conditional VAE, complete.
        num_draws: of z, for each datum, taken by weight from what the estimator evaluated: some may be the same.
        tolerance, progress: as in `log_evidence`.
        max_evaluations: the most to spend on a datum. None depends on the others.
        seed: fixes the noise.

    Returns:
        `Imputation`.

    Raises:
        TypeError, ValueError: where nothing is missing, for a likelihood whose entries depend on each other given z, or
            have neither variance nor levels; and as `log_evidence`.

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
    if given.ndim < 2:
        raise ValueError(f"x: expected rows of entries, (N, ...); got shape {tuple(given.shape)}; add a dimension.")
    missing = torch.isnan(given)
    rows = missing.flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        raise ValueError(
            f"x: expected NaN where an entry is missing; got {len(given):,} complete data; there is nothing to impute."
        )
    some = tuple(_rows_of(f"context[{i}]", value, len(given), rows) for i, value in enumerate(context))
    _refuse_without_moments(vae, len(rows), some)
    with seeded(given.device, seed_for(seed, "filling in") % 2**32):
        model, guide, data = _of_observed(vae, given[rows], some)
    evidence = log_evidence(
        model, guide, *data, *some, tolerance=tolerance, max_evaluations=max_evaluations, max_evaluations_of="datum",
        num_posterior_draws=num_draws, seed=seed, progress=progress,
    )  # fmt: skip
    assert evidence.draws is not None
    z = evidence.draws.latents[vae.model.site("z")]
    found = _averages(vae, z.to(data[0]), some)
    completed, sd, probability = (
        _put(guess, at=missing, of=rows, into=before)
        for guess, before in zip(found, (given, torch.zeros_like(given), torch.ones_like(given)), strict=True)
    )
    return Imputation(completed, sd, probability, missing, rows, evidence)


def _refuse_without_moments(vae: VAE, num_rows: int, context: tuple[Tensor, ...]) -> None:
    """Look at the likelihood of one latent, before anything is evaluated."""
    z, like = torch.zeros(1, num_rows, *vae.model.datum.latent_shape), any_parameter(vae)
    _averages(vae, z if like is None else z.to(like), context)


def _rows_of(name: str, value: Any, num_data: int, rows: Tensor) -> Tensor:
    tensor = _checks.tensor(name, value)
    if not tensor.ndim or len(tensor) != num_data:
        raise ValueError(
            f"{name}: expected a row for each of {num_data} data; got shape {tuple(tensor.shape)}; add them."
        )
    return tensor[rows]


def _put(guess: Tensor, at: Tensor, of: Tensor, into: Tensor) -> Tensor:
    """Replace the entries of some rows that are missing."""
    done = into.clone()
    done[of] = torch.where(at[of], guess.reshape(into[of].shape), into[of])
    return done


def _of_observed(vae: VAE, x: Tensor, context: tuple[Tensor, ...]) -> tuple[Any, Any, tuple[Tensor, ...]]:
    """Return a model and a guide of what was observed, and their data beside the context."""
    if vae.model.datum.may_be_incomplete:
        return vae.model, vae.guide, (vae.check(x),)
    filled = _filled_in(vae, x, context)
    observed = filled.masked_fill(x.isnan().reshape(filled.shape), torch.nan)
    return _observing(vae), _guessing(vae), (observed, filled)


@torch.no_grad()
def _filled_in(vae: VAE, x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
    """Draw missing entries from p(x|z) and z from q(z|x), in turn: `(M, *event_shape)`."""
    draw = vae.sample(len(x), *context)
    like = any_parameter(vae)  # rather than the draw, which may be whole numbers, of which none is NaN
    x = x.reshape(draw.shape)
    x = x if like is None else x.to(like)
    missing = x.isnan()
    known = vae.check(torch.where(missing, draw, x))
    filled = known
    for _ in range(NUM_ROUNDS):
        draw = vae.decode(vae.encode(filled, *context).sample(), *context).sample()
        filled = torch.where(missing, draw, known)
    return filled


def _observing(vae: VAE) -> Any:
    def model(x: Tensor, filled: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(vae.model.site("z"), vae.prior(*context))
            pyro.sample("x", Incomplete(vae.likelihood(z, *context)), obs=x)

    return model


def _guessing(vae: VAE) -> Any:
    def guide(x: Tensor, filled: Tensor, *context: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(vae.model.site("z"), vae.posterior(filled, *context))

    return guide


class _Numbers:
    """Mean and variance of numbers over draws of z, in float64."""

    def __init__(self) -> None:
        self.total = self.squares = self.within = torch.zeros((), dtype=torch.float64)

    def add(self, entries: Any) -> None:
        """Take the distribution given another draw."""
        try:
            mean, variance = entries.mean.double(), entries.variance.double()
        except NotImplementedError as error:
            raise _without_moments(entries) from error
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise _without_moments(entries)
        self.total = self.total + mean
        self.squares = self.squares + mean.square()
        self.within = self.within + variance

    def found(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation, and no probability."""
        mean = self.total / num_draws
        variance = self.within / num_draws + (self.squares / num_draws - mean.square()).clamp_min(0)
        dtype = torch.get_default_dtype()
        return mean.to(dtype), variance.sqrt().to(dtype), torch.full_like(mean, torch.nan, dtype=dtype)


def _without_moments(entries: Any) -> ValueError:
    return ValueError(
        f"vae: expected a likelihood whose entries have a mean and a variance, or are levels; got "
        f"{type(entries).__name__} without; draw from it instead."
    )


class _Levels:
    """Levels over draws of z."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def add(self, entries: Any) -> None:
        """Take the distribution given another draw."""
        self.total = self.total + entries.probs

    def found(self, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the likeliest level, no deviation, and its probability."""
        probability, level = (self.total / num_draws).max(-1)
        return level.to(probability), torch.full_like(probability, torch.nan), probability


@torch.no_grad()
def _averages(vae: VAE, z: Tensor, context: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what stands for each entry, its deviation and its probability, each `(M, *event_shape)`.

    Of draws z `(S, M, D)`, one at a time.
    """
    pieces: list[_Numbers | _Levels] = []
    for each in z:
        entries = entries_of(vae.likelihood(each, *context))
        pieces = pieces or [_Levels() if isinstance(one, Categorical) else _Numbers() for one in entries]
        for piece, one in zip(pieces, entries, strict=True):
            piece.add(one)
    found = [piece.found(len(z)) for piece in pieces]
    value, sd, probability = (
        parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in zip(*found, strict=True)
    )
    return value, sd, probability
