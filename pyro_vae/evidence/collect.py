"""Reduce draws tile by tile: to log p(x), to the ELBO with its halves, and to draws from the posterior."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae._random import seed_for
from pyro_vae.distributed import shared
from pyro_vae.evidence.bounds import Bound, Groups
from pyro_vae.evidence.draws import Reservoir
from pyro_vae.evidence.weights import Totals
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.tiles import (
    Block,
    Noise,
    Tile,
    block_width,
    blocks,
    noise,
    tiles_of_guide,
)

__all__ = ["NUM_ELBO_SAMPLES", "Collected", "GuideTerms", "Terms", "collected", "guide_terms"]


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

    def of_block(block: Block) -> GuideTerms:
        terms = GuideTerms()
        for tile in tiles_of_guide(block, num_samples, seed_for(seed, "ELBO")):
            terms.add(tile.densities)
        return terms

    width = block_width(program, num_samples)
    return GuideTerms.joined(shared(blocks(program, width, first_index), of_block))


class Collected(NamedTuple):
    """What is kept of the draws for some columns of a block."""

    totals: Totals
    terms: GuideTerms
    """The ELBO of what was drawn from."""
    reservoir: Reservoir


def collected(
    part: Block,
    tiles: Iterable[Tile],
    num_samples: int,
    seed: int,
    numbers: Noise,
    num_posterior_draws: int = 0,
    ks: tuple[int, ...] = (),
) -> Collected:
    """Keep sums of the draws; `numbers` is the noise of the columns of which the part of a block consists."""
    kept = Collected(Totals(num_samples, ks), GuideTerms(), Reservoir(num_posterior_draws, numbers))
    seed_of_draws = seed_for(seed, "resampling")
    for tile in tiles:
        kept.totals.add(tile.densities.weight)
        kept.terms.add(tile.densities)
        if num_posterior_draws:
            _resample(kept.reservoir, part, tile, seed_of_draws, num_samples)
    return kept


def _resample(reservoir: Reservoir, part: Block, tile: Tile, seed: int, num_samples: int) -> None:
    for strip in tile.strips():
        with noise(part.program, seed, part.place * num_samples + strip.draws.start):
            reservoir.add(part.program, strip.densities, strip.latents)
