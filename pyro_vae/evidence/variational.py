"""A Gaussian of full covariance for each datum, fitted by variational inference from Laplace's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.derivatives import LogDensity, log_density, lower_factor, with_gradient
from pyro_vae.evidence.gaussians import FullNormal, NormalMixture
from pyro_vae.program.tiles import Noise
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["fit_normal", "num_evaluations", "refined"]

NUM_STEPS, NUM_PAIRS = 5, 32
NUM_DRAWS = (NUM_STEPS + 1) * 2 * NUM_PAIRS
RIDGE = 0.3  # of the regression, towards the precision that is known
SMALLEST_FACTOR, LARGEST_FACTOR = 0.5, 20.0  # by which a step changes a precision: to narrow is safe, to widen is not
LONGEST_STEP = 2.0  # of the mean, in standard deviations
STEEPEST = 1e6  # a gradient in units of q's own width: beyond, it is that of a pole
WIDER = 0.6  # by which variances are raised in the end, over the dimension: the best q is narrower than p(z|x)
EXACT = 0.02  # nats: the standard deviation of log weights below which q is p(z|x), and needs no fit
DOUBT = 2.0  # standard errors by which the ELBO may fall before a step is taken back


def refined(laplace: NormalMixture, view: Unconstrained, noise: Noise) -> NormalMixture:
    """Fit each of Laplace's Gaussians further, and widen it a little. It consumes noise of the block."""
    parts = []
    for part, log_share in zip(laplace.parts, laplace.log_shares, strict=True):
        rows = log_share.isfinite().nonzero().flatten()
        if not len(rows):  # a mode of data that are not asked for
            parts.append(part)
            continue
        found, is_exact = fit_normal(log_density(view.at(rows)), part.at(rows), noise.at(rows))
        wider = torch.where(is_exact, 1.0, (1 + WIDER / view.dim) ** 0.5)
        found = found._replace(scale_tril=found.scale_tril * wider[:, None, None])
        parts.append(FullNormal(*(old.index_copy(0, rows, new) for old, new in zip(part, found, strict=True))))
    return laplace._replace(parts=tuple(parts))


def num_evaluations(gaussians: NormalMixture) -> Tensor:
    """Return what `refined` costs each datum, in evaluations of log p(x, z), `(N,)`."""
    return NUM_DRAWS * gaussians.log_shares.isfinite().sum(0)


class Fit(NamedTuple):
    """Gaussians, and which of them were found to be the density itself."""

    gaussian: FullNormal
    is_exact: Tensor


def fit_normal(density: LogDensity, start: FullNormal, noise: Noise) -> Fit:
    r"""Climb the ELBO of $q = N(m, L L^T)$, each datum for itself, by steps of the natural gradient.

    In coordinates v with u = m + L v, the best q has $E_q \nabla_v \log p(x, u) = 0$ and $-E_q \nabla_v^2 \log p = I$.
    Both are read off a regression of the gradients on v, at pairs of draws v and -v, with a ridge towards the precision
    that q has already. A step at most halves a precision, or makes it twenty times as large, and moves the mean by at
    most two standard deviations. Where the ELBO then falls by more than two standard errors, the step is taken back,
    and tried at half its size. Where log p(x, u) - log q(u) is the same at all draws of the start, that is the answer.

    Args:
        density: log p(x, u), with gradients.
        start: q at first.
        noise: of the fit alone; what is measured by draws of q must not share it.

    References:
        Opper and Archambeau (2009), The variational Gaussian approximation revisited; Khan and Rue (2023), The Bayesian
        learning rule.
    """
    best, elbo = start, _Elbo.none(start)
    step, size = _Step.none(start), torch.ones_like(start.loc[:, 0])
    is_exact = torch.zeros_like(size, dtype=torch.bool)
    for turn in range(NUM_STEPS + 1):
        q = step.applied(best, size)
        v = noise.normal(NUM_PAIRS)
        v = torch.cat([v, -v])
        u = q.rsample(v)
        value, gradient = with_gradient(density, u)
        log_weights = value - q.log_prob(u)
        found = _Elbo.of(log_weights)
        is_exact = log_weights.std(0) < EXACT if turn == 0 else is_exact
        kept = found.is_no_less_than(elbo)
        best, elbo = _choose(kept, q, best), _choose(kept, found, elbo)
        step = _choose(kept, _Step.of(v, q.scaled_transposed(gradient)), step)
        size = torch.where(kept, 1.0, size / 2)
    return Fit(_choose(is_exact, start, best), is_exact)


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
    return type(new)(
        *(
            torch.where(chosen.reshape(-1, *[1] * (one.ndim - 1)), one, other)
            for one, other in zip(new, old, strict=True)
        )
    )
