"""Draws from the posterior p(z|x), and how they are resampled from those of a proposal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evidence.weights import resampled
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Noise, tile_size
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["Draws", "Reservoir", "draws_of"]


@dataclass(frozen=True)
class Draws:
    """S draws from the posterior p(z|x) for each of N data, with equal weights.

    Attributes:
        latents: for each latent site, `(S, N, ...)`.
        log_prior: log p(z), `(S, N)`, nats.
        log_likelihood: log p(x|z), `(S, N)`, nats.
    """

    latents: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Draws | None], columns: Sequence[Any] | None = None) -> Draws | None:
        """Join draws along the data, taking some columns of each part, or all."""
        columns = columns or [slice(None)] * len(parts)
        known = [(draws, each) for draws, each in zip(parts, columns, strict=True) if draws is not None]
        if not known:
            return None
        first = known[0][0]

        def cat(of_draws: Callable[[Draws], Tensor]) -> Tensor:
            return torch.cat([of_draws(draws)[:, each].cpu() for draws, each in known], dim=1)

        return cls(
            {
                name: torch.cat([draws.latents[name][:, each].cpu() for draws, each in known], 1)
                for name in first.latents
            },
            cat(lambda draws: draws.log_prior),
            cat(lambda draws: draws.log_likelihood),
        )


def draws_of(view: Unconstrained, u: Tensor) -> Draws:
    """Return the latents of u `(S, N, D)`, with their densities."""
    latents, _ = view.unpack(u)
    prior, likelihood = joint_of(tile_size(view.program))(view.program, latents)
    values = {name: view.program.draws_first(value).cpu() for name, value in latents.items()}
    return Draws(values, prior.cpu(), likelihood.cpu())


class Reservoir:
    """Draws from the posterior, resampled by weight in one pass over the proposal's draws.

    Each of S slots holds one of the draws seen so far, with probability in proportion to its weight.
    """

    def __init__(self, num_draws: int, noise: Noise) -> None:
        self.num_draws, self.noise = num_draws, noise
        self.log_sum: Tensor | None = None

    def add(self, program: Program, densities: LogDensities, latents: Latents) -> None:
        weight = densities.weight
        index = resampled(weight, self.noise.uniform(self.num_draws))
        log_sum = weight.logsumexp(0)
        values = {name: _rows(program.draws_first(latents[name]), index) for name in program.latents_of(latents)}
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
