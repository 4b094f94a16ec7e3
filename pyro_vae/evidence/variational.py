"""A Gaussian of full covariance for each datum, fitted by variational inference from Laplace's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.derivatives import LogDensity, log_density, lower_factor, with_gradient
from pyro_vae.evidence.gaussians import FullNormal, NormalMixture
from pyro_vae.program.tiles import Noise
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["fit_normal", "num_evaluations", "refined"]

NUM_PAIRS = 32
NUM_TURNS, MOST_TURNS = 5, 16  # the first evaluates the start
STILL_RISING = 0.3  # nats that the ELBO gained in the last three turns, above which a fit goes on
RIDGE = 0.3  # of the regression, towards the precision that is known
SMALLEST_FACTOR, LARGEST_FACTOR = 0.5, 20.0  # by which a step changes a precision: to narrow is safe, to widen is not
LONGEST_STEP = 2.0  # of the mean, in standard deviations
STEEPEST = 1e6  # a gradient in units of q's own width: beyond, it is that of a pole
WIDER = 0.6  # by which variances are raised in the end, over the dimension: the best q is narrower than p(z|x)
EXACT = 0.02  # nats: the standard deviation of log weights below which q is p(z|x), and needs no fit
DOUBT = 2.0  # standard errors by which the ELBO may fall before a step is taken back

Densities = Callable[[Tensor], LogDensity]
"""Return log p(x, u) of some data, given by index."""


def refined(
    laplace: NormalMixture, view: Unconstrained, noise: Noise, spare: Tensor | None = None
) -> tuple[NormalMixture, Tensor]:
    """Fit each of Laplace's Gaussians further, and widen it a little. It consumes noise of the block.

    Returns what it took too, in evaluations of log p(x, z), `(N,)`: `num_evaluations`, and no more than what each datum
    has to spare where its fit goes on.
    """
    parts, spent = [], torch.zeros_like(laplace.num_parts)
    most_turns = _most_turns(laplace, spare)
    for part, log_share in zip(laplace.parts, laplace.log_shares, strict=True):
        rows = log_share.isfinite().nonzero().flatten()
        if not len(rows):  # a mode of data that are not asked for
            parts.append(part)
            continue
        fit = fit_normal(_densities(view, rows), part.at(rows), noise.at(rows), most_turns[rows])
        wider = torch.where(fit.is_exact, 1.0, (1 + WIDER / view.dim) ** 0.5)
        found = fit.gaussian._replace(scale_tril=fit.gaussian.scale_tril * wider[:, None, None])
        parts.append(FullNormal(*(old.index_copy(0, rows, new) for old, new in zip(part, found, strict=True))))
        spent = spent.index_add(0, rows, fit.num_turns * 2 * NUM_PAIRS)
    return laplace._replace(parts=tuple(parts)), spent


def num_evaluations(gaussians: NormalMixture) -> Tensor:
    """Return what `refined` costs each datum, in evaluations of log p(x, z), `(N,)`, where no fit goes on."""
    return NUM_TURNS * 2 * NUM_PAIRS * gaussians.num_parts


def _most_turns(gaussians: NormalMixture, spare: Tensor | None) -> Tensor:
    """Return how many turns each Gaussian of a datum may take, `(N,)`."""
    if spare is None:
        return torch.full_like(gaussians.num_parts, MOST_TURNS)
    more = torch.div(spare, 2 * NUM_PAIRS * gaussians.num_parts.clamp(min=1), rounding_mode="floor").long()
    return NUM_TURNS + more.clamp(0, MOST_TURNS - NUM_TURNS)


def _densities(view: Unconstrained, rows: Tensor) -> Densities:
    return lambda some: log_density(view.at(rows[some]))


def fit_normal(densities: Densities, start: FullNormal, noise: Noise, most_turns: int | Tensor = MOST_TURNS) -> Fit:
    r"""Climb the ELBO of $q = N(m, L L^T)$, each datum for itself, by steps of the natural gradient.

    In coordinates v with u = m + L v, the best q has $E_q \nabla_v \log p(x, u) = 0$ and $-E_q \nabla_v^2 \log p = I$.
    Both are read off a regression of the gradients on v, at pairs of draws v and -v, with a ridge towards the precision
    that q has already. A step at most halves a precision, or makes it twenty times as large, and moves the mean by at
    most two standard deviations. Where the ELBO then falls by more than two standard errors, the step is taken back,
    and tried at half its size. Four steps are enough for most; where the ELBO still rises, more are taken. Where
    log p(x, u) - log q(u) is the same at all draws of the start, that is the answer.

    Args:
        densities: log p(x, u) of some of the data, with gradients.
        start: q at first.
        noise: of the fit alone; what is measured by draws of q must not share it.
        most_turns: that each datum may take, at least 5.

    References:
        Opper and Archambeau (2009), The variational Gaussian approximation revisited; Khan and Rue (2023), The Bayesian
        learning rule.
    """
    fit = Fit.begin(start)
    for turn in range(MOST_TURNS):
        v = noise.normal(NUM_PAIRS)  # drawn for those too that do not go on: noise does not depend on who does
        goes_on = ~fit.is_exact & (fit.is_rising | (turn < NUM_TURNS)) & (turn < most_turns)
        rows = goes_on.nonzero().flatten()
        if len(rows):
            fit = fit.replaced(rows, fit.at(rows).turned(densities(rows), v[:, rows]))
    return fit


class Fit(NamedTuple):
    """The best Gaussian that was found for each datum so far, and how far its fit has come."""

    gaussian: FullNormal
    elbo: _Elbo
    step: _Step
    size: Tensor
    """Of the step that is tried next, `(N,)`."""
    earlier: Tensor
    """ELBOs of three, two and one turns ago, `(N, 3)`."""
    is_exact: Tensor
    """Whether the start was found to be the density itself, `(N,)`."""
    num_turns: Tensor
    """`(N,)`, of `2 * NUM_PAIRS` evaluations each."""

    @classmethod
    def begin(cls, start: FullNormal) -> Fit:
        one = torch.ones_like(start.loc[:, 0])
        earlier = torch.full_like(one, -torch.inf)[:, None].repeat(1, 3)
        return cls(start, _Elbo.none(start), _Step.none(start), one, earlier, one < 0, torch.zeros_like(one).long())

    @property
    def is_rising(self) -> Tensor:
        return self.elbo.value - self.earlier[:, 0] > STILL_RISING

    def turned(self, density: LogDensity, v: Tensor) -> Fit:
        """Evaluate the step that was found last, and find the next one."""
        q = self.step.applied(self.gaussian, self.size)
        v = torch.cat([v, -v])
        u = q.rsample(v)
        value, gradient = with_gradient(density, u)
        log_weights = value - q.log_prob(u)
        found = _Elbo.of(log_weights)
        kept = found.is_no_less_than(self.elbo)
        return Fit(
            gaussian=_choose(kept, q, self.gaussian),
            elbo=_choose(kept, found, self.elbo),
            step=_choose(kept, _Step.of(v, q.scaled_transposed(gradient)), self.step),
            size=torch.where(kept, 1.0, self.size / 2),
            earlier=torch.cat([self.earlier[:, 1:], self.elbo.value[:, None]], 1),
            is_exact=(log_weights.std(0) < EXACT) & (self.num_turns == 0),
            num_turns=self.num_turns + 1,
        )

    def at(self, rows: Tensor) -> Fit:
        """Select rows by index."""
        return _each(lambda old: old[rows], self)

    def replaced(self, rows: Tensor, new: Fit) -> Fit:
        """Put others in the place of these rows."""
        return _each(lambda old, later: old.index_copy(0, rows, later), self, new)


class _Elbo(NamedTuple):
    """An ELBO and its standard error, `(N,)` each."""

    value: Tensor
    error: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> _Elbo:
        """Estimate it from log weights of pairs, `(K, N)`."""
        of_pairs = torch.stack(log_weights.chunk(2)).mean(0)
        return cls(of_pairs.mean(0), of_pairs.std(0) / len(of_pairs) ** 0.5)

    @classmethod
    def none(cls, q: FullNormal) -> _Elbo:
        value = torch.full_like(q.loc[:, 0], -torch.inf)
        return cls(value, torch.zeros_like(value))

    def is_no_less_than(self, other: _Elbo) -> Tensor:
        """Tell where it did not fall significantly; False where it is not a number."""
        doubt = DOUBT * (self.error.square() + other.error.square()).sqrt()
        return self.value.isfinite() & (self.value >= other.value - doubt - 1e-6)


class _Step(NamedTuple):
    """A change of a Gaussian, in its own coordinates v."""

    shift: Tensor
    """Of the mean, `(N, D)`."""
    vectors: Tensor
    """`(N, D, D)`, the columns of which the precision changes along."""
    log_factor: Tensor
    """By which it does, `(N, D)`."""

    @classmethod
    def none(cls, q: FullNormal) -> _Step:
        identity = torch.eye(q.loc.shape[1], dtype=q.loc.dtype, device=q.loc.device).expand_as(q.scale_tril)
        return cls(torch.zeros_like(q.loc), identity, torch.zeros_like(q.loc))

    @classmethod
    def of(cls, v: Tensor, gradient: Tensor) -> _Step:
        """Find it from gradients with regard to v, `(K, N, D)` both. Those at a pole are bounded."""
        gradient = gradient.nan_to_num(nan=0.0).clamp(-STEEPEST, STEEPEST)
        identity = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        second = torch.einsum("kni,knj->nij", v, v) / len(v) + RIDGE * identity
        slope = torch.linalg.solve(second, RIDGE * identity - torch.einsum("kni,knj->nij", v, gradient) / len(v))
        precision, vectors = torch.linalg.eigh((slope + slope.mT) / 2)
        precision = precision.clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
        along = torch.einsum("nji,nj->ni", vectors, gradient.mean(0)) / precision
        shift = torch.einsum("nij,nj->ni", vectors, along)
        too_long = (shift.norm(dim=-1, keepdim=True) / LONGEST_STEP).clamp(min=1.0)
        return cls(shift / too_long, vectors, precision.log())

    def applied(self, q: FullNormal, size: Tensor) -> FullNormal:
        """Go so far of the way, `(N,)`."""
        root = self.vectors * (-0.5 * size[:, None] * self.log_factor).exp()[:, None]
        loc = q.loc + q.scaled((size[:, None] * self.shift)[None])[0]
        return FullNormal(loc, q.scale_tril @ lower_factor(root))


def _choose(chosen: Tensor, new: Any, old: Any) -> Any:
    """Take the new one for the chosen data, each field by itself."""
    return _each(lambda one, other: torch.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), one, other), new, old)


def _each(function: Callable[..., Tensor], *states: Any) -> Any:
    """Apply a function to tensors, or to those in tuples of tuples, field by field."""
    if isinstance(states[0], Tensor):
        return function(*states)
    return type(states[0])(*(_each(function, *fields) for fields in zip(*states, strict=True)))
