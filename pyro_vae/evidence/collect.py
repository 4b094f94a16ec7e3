"""Collect the ELBO with its halves, and draws from the posterior, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae._random import seed_for
from pyro_vae.evidence.result import Bound, Draws
from pyro_vae.evidence.weights import Groups, resampled
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Noise, tiles

__all__ = ["NUM_ELBO_SAMPLES", "GuideTerms", "Reservoir", "Terms", "guide_terms"]


NUM_ELBO_SAMPLES = 100  # from the guide, where it is not the proposal


class GuideTerms:
    """The ELBO of draws from the guide, and its two halves, rate and distortion."""

    def __init__(self) -> None:
        self.num_samples = 0
        self.sums = torch.zeros((), dtype=torch.float64)
        self.weights = Groups(1)

    def add(self, densities: LogDensities) -> None:
        prior, likelihood, guide = (each.cpu() for each in densities)
        self.num_samples += len(prior)
        self.sums = self.sums + torch.stack([(guide - prior).sum(0), -likelihood.sum(0)])
        self.weights.add(densities.weight.cpu())

    @classmethod
    def joined(cls, parts: list[GuideTerms]) -> Terms:
        """Join parts along the data."""

        def cat(of_part: Callable[[GuideTerms], Tensor]) -> Tensor:
            return torch.cat([of_part(part) for part in parts], dim=-1)

        rate, distortion = cat(lambda part: part.sums / part.num_samples)
        return Terms(Bound(1, cat(lambda p: p.weights.mean), cat(lambda p: p.weights.std_error)), rate, distortion)


class Terms(NamedTuple):
    """The ELBO of the guide with its error, and its two halves, `(N,)` each, nats."""

    elbo: Bound
    rate: Tensor
    distortion: Tensor


def guide_terms(program: Program, num_samples: int, seed: int, first_index: int = 0) -> Terms:
    """Estimate the ELBO from separate draws."""
    parts: dict[int, GuideTerms] = {}
    for block, tile in tiles(program, num_samples, seed_for(seed, "ELBO"), first_index):
        parts.setdefault(block.place, GuideTerms()).add(tile.densities)
    return GuideTerms.joined(list(parts.values()))


class Reservoir:
    """Draws from the posterior, resampled by weight in one pass over the proposal's draws.

    Each of S slots holds one of the draws seen so far, with probability in proportion to its weight.
    """

    def __init__(self, num_draws: int, noise: Noise) -> None:
        self.num_draws, self.noise = num_draws, noise
        self.log_sum: Tensor | None = None

    def add(self, program: Program, densities: LogDensities, latents: Latents) -> None:
        if not self.num_draws:
            return
        weight = densities.weight
        index = resampled(weight, self.noise.uniform(self.num_draws))
        log_sum = weight.logsumexp(0)
        values = {name: _rows(program.draws_first(value), index) for name, value in latents.items()}
        prior, likelihood = _rows(densities.prior, index), _rows(densities.likelihood, index)
        if self.log_sum is None:
            self.log_sum, self.values, self.prior, self.likelihood = log_sum, values, prior, likelihood
            return
        self.log_sum = torch.logaddexp(self.log_sum, log_sum)
        taken = self.noise.uniform(self.num_draws) < (log_sum - self.log_sum).exp()
        self.values = {name: _where(taken, value, self.values[name]) for name, value in values.items()}
        self.prior, self.likelihood = _where(taken, prior, self.prior), _where(taken, likelihood, self.likelihood)

    @property
    def draws(self) -> Draws | None:
        return Draws(self.values, self.prior, self.likelihood) if self.num_draws else None


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """Select draws by index `(S, N)` for each datum, from `(K, N, ...)`."""
    return value[index, torch.arange(index.shape[1], device=index.device)]


def _where(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition.reshape(*condition.shape, *(1,) * (one.ndim - 2)), one, other)
