"""HMC chains along a path of densities, and estimates from their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import seed_for
from pyro_vae.evidence import hmc
from pyro_vae.evidence.draws import Draws, draws_of
from pyro_vae.evidence.elsewhere import Elsewhere
from pyro_vae.evidence.path import STARTS, Path, path_from
from pyro_vae.evidence.pilot import PILOT_CHAINS, PILOT_TEMPERATURES, SCHEDULES, Pilot, pilot, schedule_of
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.survey import NUM_POINTS, find_modes, survey
from pyro_vae.evidence.weights import Estimate, estimate, resampled
from pyro_vae.program.core import Program
from pyro_vae.program.tiles import Block, Noise, noise, tile_size
from pyro_vae.program.unconstrained import Unconstrained

__all__ = [
    "Annealing",
    "Prepared",
    "Settings",
    "Trajectory",
    "anneal",
    "annealed",
    "block_size",
    "end_draws",
    "end_positions",
]

LARGEST_VARIANCE = 4.0
"""Of log weights that are taken for normal; one weight counts then for all."""
RELIABLE_SHARE = 0.75  # of the number of chains, which the effective sample size must exceed


class Settings(NamedTuple):
    """Frozen settings of a measured run, found by a pilot run with separate noise."""

    betas: Tensor
    """`(T + 1, N)`, from 0 to 1."""
    step_sizes: Tensor
    """`(T + 1, N)`."""
    num_chains: int
    num_leapfrog: int


class Trajectory(NamedTuple):
    """The result of a run along the path."""

    log_weights: Tensor
    """`(K, N)`."""
    state: hmc.State
    acceptance: Tensor
    """The mean over chains and temperatures, `(N,)`."""


def anneal(path: Path, noise: Noise, settings: Settings, start: Tensor | None = None) -> Trajectory:
    r"""Run weighted chains along the path: $\log w = \sum_t (\beta_t - \beta_{t-1}) (\log f_1 - \log f_0)(u_{t-1})$.

    Forwards, from draws of $f_0$, $E w = p(x)$. Given `start` `(K, N, D)`, exact draws from the posterior, the run goes
    backwards, and $E 1 / w = 1 / p(x)$.
    """
    betas, step_sizes, num_chains, num_leapfrog = settings
    backwards = start is not None
    u = path.draw(num_chains) if start is None else start
    state, inside = path.begin(u)
    log_weights = torch.where(inside, 0.0, -torch.inf)
    acceptance = torch.zeros_like(betas[0])
    order = range(1, len(betas)) if not backwards else range(len(betas) - 1, 0, -1)
    for number, t in enumerate(order, start=1):
        difference = state.log_end - state.log_start
        # Weigh before the transition: the chain has to be where the last temperature left it.
        log_weights = log_weights + (betas[t] - betas[t - 1]) * difference
        if number < len(betas) - 1:
            at = t - 1 if backwards else t
            state, accepted = hmc.step(
                state, path.evaluate, noise, path.metric(betas[at]), betas[at], step_sizes[at], num_leapfrog
            )
            acceptance = acceptance + accepted.mean(0) / (len(betas) - 2)
    return Trajectory(log_weights, state, acceptance)


def annealed(log_weights: Tensor) -> Estimate:
    r"""Estimate log p(x) from the log weights of chains.

    Chains are too few to fit a tail: the estimate is reliable where the ESS exceeds three quarters of them. The error
    is (K - 1) / (K - 3) times the usual one. The root of that would match the spread of Student's t, but the largest
    weights are the rarest, and most runs lack them (benchmarks/practice.py shows the coverage). For the same reason the
    error is no less than $\sqrt{(e^{s^2} - 1) / K}$, that of log-normal weights with the variance $s^2$ of these: log
    weights of annealing are sums over temperatures, and about normal (Neal (2001)).
    """
    found, num_chains = estimate(log_weights.cpu()), len(log_weights)
    log_normal = (log_weights.cpu().double().var(0).clamp(max=LARGEST_VARIANCE).expm1() / num_chains).sqrt()
    widened = (num_chains - 1) / (num_chains - 3) if num_chains > 3 else math.nan
    reliable = (found.ess > RELIABLE_SHARE * num_chains) & (num_chains > 3)
    return found._replace(std_error=widened * found.std_error.maximum(log_normal.nan_to_num()), reliable=reliable)


@dataclass(frozen=True)
class Annealing:
    """How to anneal all data; the pilot adds each datum's settings."""

    start: str = "gaussian"
    num_temperatures: int = 100
    num_chains: int = 16
    num_leapfrog: int = 3
    schedule: str = "adaptive"

    def __post_init__(self) -> None:
        _checks.choice("start", self.start, STARTS)
        _checks.choice("schedule", self.schedule, SCHEDULES)
        for name, minimum in (("num_temperatures", 1), ("num_leapfrog", 1), ("num_chains", 2)):
            object.__setattr__(self, name, _checks.whole_number(name, getattr(self, name), minimum))

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the measured run for each datum, without those of the posterior draws."""
        return self.num_chains * (1 + (self.num_temperatures - 1) * self.num_leapfrog)

    @property
    def work(self) -> int:
        """Evaluations for each datum, pilots included, each counted twice for its gradient."""
        return 2 * (self.num_evaluations + self.num_pilot_evaluations)

    @property
    def num_pilot_temperatures(self) -> int:
        return max(PILOT_TEMPERATURES, self.num_temperatures // 5) if self.num_temperatures > 1 else 0

    @property
    def num_pilot_evaluations(self) -> int:
        return PILOT_CHAINS * (1 + self.num_pilot_temperatures * self.num_leapfrog) if self.num_temperatures > 1 else 0

    def prepared(self, block: Block, region: Region, seed: int) -> Prepared:
        """Find path and frozen settings for the data of a block, with noise that the measured run does not share."""
        with noise(block.program, seed_for(seed, "where to start"), block.place):
            if self.start == "guide":
                region.view.log_guide(region.draw_guide(1))  # raises if its density is not known
            seen = survey(region, [region.guide])
            fit = find_modes(region, seen)
            if self.start == "gaussian":
                fit = fit.refined(region.view, region.noise)
            path = path_from(self.start, region, fit.gaussians)
        with noise(block.program, seed_for(seed, "pilot"), block.place):
            settings = self._settings(path, region.noise)
        num_evaluations = NUM_POINTS + fit.num_evaluations + self.num_pilot_evaluations + self.num_evaluations
        return Prepared(path, region.noise, settings, seen.against(None), fit.converged, num_evaluations)

    def settings_from(self, seen: Pilot) -> Settings:
        """Return frozen settings for a measured run, from what a pilot run saw."""
        return Settings(*seen.frozen(self.num_temperatures, self.schedule), self.num_chains, self.num_leapfrog)

    def _settings(self, path: Path, numbers: Noise) -> Settings:
        if self.num_temperatures > 1:
            return self.settings_from(
                pilot(path, numbers, self.num_pilot_temperatures, PILOT_CHAINS, self.num_leapfrog)
            )
        betas = schedule_of("linear", 1, len(numbers.columns), numbers.columns.device)  # no transition
        return Settings(betas, torch.ones_like(betas), self.num_chains, self.num_leapfrog)


class Prepared(NamedTuple):
    """What a measured run takes for the data of a block that were asked for."""

    path: Path
    noise: Noise
    settings: Settings
    seen: Elsewhere
    """What draws from wider than the guide say of p(x)."""
    converged: Tensor
    """Whether the search for the mode converged, `(N,)`."""
    num_evaluations: Tensor
    """All evaluations, those of the measured run included, `(N,)`."""


def block_size(program: Program, num_chains: int) -> int:
    """Return how many data are annealed together."""
    return max(1, tile_size(program) // num_chains)


def end_draws(view: Unconstrained, trajectory: Trajectory, noise: Noise, num_draws: int) -> Draws | None:
    """Draw from the posterior: resample the chains' ends by weight."""
    return draws_of(view, end_positions(trajectory, noise, num_draws)) if num_draws else None


def end_positions(trajectory: Trajectory, noise: Noise, num_draws: int) -> Tensor:
    """Return u `(S, N, D)` of such draws."""
    index = resampled(trajectory.log_weights, noise.uniform(num_draws))
    return trajectory.state.position[index, torch.arange(index.shape[1], device=index.device)]
