"""HMC chains along a path of densities, and estimates from their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import seed_for
from pyro_vae.evidence import hmc
from pyro_vae.evidence.hmc import Metric, State
from pyro_vae.evidence.laplace import FullNormal, NormalMixture, moments
from pyro_vae.evidence.result import Draws
from pyro_vae.evidence.survey import NUM_POINTS, Elsewhere, Region, find_modes, survey
from pyro_vae.evidence.weights import Estimate, estimate, resampled
from pyro_vae.program.core import Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.tiles import Block, Noise, noise, tile_size
from pyro_vae.program.unconstrained import Unconstrained

__all__ = [
    "PILOT_CHAINS",
    "PILOT_TEMPERATURES",
    "SCHEDULES",
    "STARTS",
    "START_NAMES",
    "Annealing",
    "Path",
    "Prepared",
    "Settings",
    "Trajectory",
    "anneal",
    "annealed",
    "block_size",
    "draws_of",
    "end_draws",
    "end_positions",
    "laplace_path",
    "path_from",
    "pilot",
]


START_NAMES = {"laplace": "Laplace's Gaussian", "guide": "the guide", "prior": "the prior"}
STARTS = tuple(START_NAMES)
SCHEDULES = ("adaptive", "linear", "sigmoid")
TARGET_ACCEPTANCE = 0.8
PILOT_TEMPERATURES = 20
PILOT_CHAINS = 8
NUM_DRAWS = 64  # from the start, to measure its width
LARGEST_VARIANCE = 4.0
"""Of log weights that are taken for normal; one weight counts then for all."""
RELIABLE_SHARE = 0.75  # of the number of chains, which the effective sample size must exceed


@dataclass(frozen=True)
class Path:
    """The geometric path $f_0^{1 - \\beta} f_1^\\beta$ from a density that can be drawn from to p(x, u)."""

    view: Unconstrained
    draw: Callable[[int], Tensor]
    evaluate: hmc.Evaluate
    start_precision: Tensor | None
    """Diagonal precision of the start, `(N, D)`; None where the start is Laplace's Gaussian: the metric is constant."""
    gaussian: FullNormal
    """Laplace's Gaussian at the posterior's main mode."""

    def metric(self, beta: Tensor) -> Metric:
        """Return L at $\\beta$ `(N,)`: L L^T is the inverse of the weighted mean of both precisions."""
        if self.start_precision is None:
            return self.gaussian
        end = torch.cholesky_inverse(self.gaussian.scale_tril)
        precision = (1 - beta)[:, None, None] * self.start_precision.diag_embed() + beta[:, None, None] * end
        factor, failed = torch.linalg.cholesky_ex(precision)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        scale = torch.linalg.solve_triangular(factor, identity, upper=False).mT
        return FullNormal(self.gaussian.loc, scale.where(failed[:, None, None] == 0, self.gaussian.scale_tril))


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
    state: State
    acceptance: Tensor
    """The mean over chains and temperatures, `(N,)`."""


def path_from(start: str, region: Region, gaussians: NormalMixture) -> Path:
    """Build the path from "laplace", "guide" or "prior"; its metric ends at that of Laplace's Gaussian."""
    view, main = region.view, gaussians.main
    if start == "laplace":
        return laplace_path(region, gaussians)
    if start == "guide":

        def from_guide(u: Tensor) -> tuple[Tensor, Tensor]:
            return view.log_guide(u), torch.stack(region.log_joint(u)).sum(0)

        precision = 1 / moments(region.draw_guide(NUM_DRAWS))[1]
        return Path(view, region.draw_guide, hmc.evaluating(from_guide), precision, main)

    def from_prior(u: Tensor) -> tuple[Tensor, Tensor]:
        prior, likelihood = region.log_joint(u)
        return prior, prior + likelihood

    precision = 1 / moments(region.draw_prior(NUM_DRAWS))[1]
    return Path(view, region.draw_prior, hmc.evaluating(from_prior), precision, main)


def laplace_path(region: Region, gaussians: NormalMixture) -> Path:
    """Build the path from Laplace's Gaussian, or from a mixture of several."""

    def from_laplace(u: Tensor) -> tuple[Tensor, Tensor]:
        return gaussians.log_prob(u), torch.stack(region.log_joint(u)).sum(0)

    component = region.gaussian(gaussians)
    return Path(region.view, component.draw, hmc.evaluating(from_laplace), None, gaussians.main)


def anneal(path: Path, noise: Noise, settings: Settings, start: Tensor | None = None) -> Trajectory:
    r"""Run weighted chains along the path: $\log w = \sum_t (\beta_t - \beta_{t-1}) (\log f_1 - \log f_0)(u_{t-1})$.

    Forwards, from draws of $f_0$, $E w = p(x)$. Given `start` `(K, N, D)`, exact draws from the posterior, the run goes
    backwards, and $E 1 / w = 1 / p(x)$.
    """
    betas, step_sizes, num_chains, num_leapfrog = settings
    backwards = start is not None
    u = path.draw(num_chains) if start is None else start
    state, inside = _begin(path, u)
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


class Pilot(NamedTuple):
    """The record of a pilot run: each datum's step size and spread at each temperature."""

    betas: Tensor
    """`(P + 1, N)`."""
    log_sizes: Tensor
    """`(P, N)`."""
    spreads: Tensor
    """The standard deviation over chains of log f_1 - log f_0 before each transition, `(P, N)`."""
    log_weights: Tensor
    """`(K, N)`; no estimate of log p(x), for the step sizes were still adapting."""

    def at(self, rows: Tensor) -> Pilot:
        """Select rows by index."""
        return Pilot(*(each[:, rows] for each in self))

    def settings(self, annealing: Annealing) -> Settings:
        """Return frozen settings for a measured run."""
        num_temperatures, schedule = annealing.num_temperatures, annealing.schedule
        if schedule == "adaptive":
            betas = _equal_speed(self.spreads, self.betas, num_temperatures)
        else:
            betas = _schedule(schedule, num_temperatures, self.betas.shape[1], self.betas.device)
        sizes = _interpolated(betas, self.betas[1:], _smoothed(self.log_sizes)).exp()
        return Settings(betas, sizes, annealing.num_chains, annealing.num_leapfrog)


def pilot(path: Path, noise: Noise, num_temperatures: int, num_chains: int, num_leapfrog: int) -> Pilot:
    """Find step sizes: after each transition, adapt each datum's by how far its acceptance is from 0.8.

    Trajectories are at most a quarter turn long: beyond that, those of a Gaussian come back.
    """
    longest = math.log(min(1.5, math.pi / 2 / num_leapfrog))
    betas = _schedule("linear", num_temperatures, len(path.gaussian.loc), path.gaussian.loc.device)
    state = _begin(path, path.draw(num_chains))[0]
    log_size = torch.full_like(betas[0], min(longest, math.log(0.5)))
    log_weights, sizes, spreads = torch.zeros_like(state.log_end), [], []
    for t in range(1, len(betas)):
        difference = (state.log_end - state.log_start).nan_to_num(nan=-1e10, neginf=-1e10)
        log_weights = log_weights + (betas[t] - betas[t - 1]) * difference
        spreads.append(difference.std(0))
        state, accepted = hmc.step(
            state, path.evaluate, noise, path.metric(betas[t]), betas[t], log_size.exp(), num_leapfrog
        )
        log_size = (log_size + accepted.mean(0) - TARGET_ACCEPTANCE).clamp(-8, longest)
        sizes.append(log_size)
    return Pilot(betas, torch.stack(sizes), torch.stack(spreads), log_weights)


def _begin(path: Path, u: Tensor) -> tuple[State, Tensor]:
    """Evaluate the chains at u, and tell which lie in the prior's support; the others get weight zero."""
    inside = u.isfinite().all(-1)
    return path.evaluate(u.where(inside[..., None], 0.0)), inside


def _schedule(name: str, num_temperatures: int, num_data: int, device: torch.device) -> Tensor:
    t = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device=device)
    if name == "sigmoid":
        curve = torch.sigmoid(4 * (2 * t - 1))
        t = (curve - curve[0]) / (curve[-1] - curve[0])
    return t[:, None].expand(-1, num_data)


def _equal_speed(spreads: Tensor, betas: Tensor, num_temperatures: int) -> Tensor:
    """Choose temperatures of equal spread: cut the integral of the log weights' spread into equal parts.

    Spreads are those before each of the pilot's transitions, `(T, N)`, raised to at least a fifth of their mean.
    """
    speed = _smoothed(spreads)
    speed = torch.maximum(speed, 0.2 * speed.mean(0)).clamp(min=1e-12)
    length = torch.cat([torch.zeros_like(speed[:1]), (speed * betas.diff(dim=0)).cumsum(0)])
    length = length / length[-1]
    targets = torch.linspace(0, 1, num_temperatures + 1, dtype=betas.dtype, device=betas.device)
    found = _interpolated(targets[:, None].expand(-1, betas.shape[1]), length, betas)
    found[0], found[-1] = 0.0, 1.0
    return found


def _smoothed(values: Tensor) -> Tensor:
    """Take the moving mean over five neighbours along the first dimension."""
    padded = torch.cat([values[:1], values[:1], values, values[-1:], values[-1:]])
    return padded.unfold(0, 5, 1).mean(-1)


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate each column of y over x linearly at each of `at`; constant beyond the ends."""
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x.gather(0, right - 1), x.gather(0, right), y.gather(0, right - 1), y.gather(0, right)
    return y0 + (y1 - y0) * ((at - x0) / (x1 - x0).clamp(min=1e-300)).clamp(0, 1)


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

    start: str = "laplace"
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
            path = path_from(self.start, region, fit.gaussians)
        with noise(block.program, seed_for(seed, "pilot"), block.place):
            settings = self._settings(path, region.noise)
        num_evaluations = NUM_POINTS + fit.num_evaluations + self.num_pilot_evaluations + self.num_evaluations
        return Prepared(path, region.noise, settings, seen.against(None), fit.converged, num_evaluations)

    def _settings(self, path: Path, numbers: Noise) -> Settings:
        if self.num_temperatures > 1:
            return pilot(path, numbers, self.num_pilot_temperatures, PILOT_CHAINS, self.num_leapfrog).settings(self)
        betas = _schedule("linear", 1, len(numbers.columns), numbers.columns.device)  # no transition
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


def draws_of(view: Unconstrained, u: Tensor) -> Draws:
    """Return the latents of u `(S, N, D)`, with their densities."""
    latents, _ = view.unpack(u)
    prior, likelihood = joint_of(tile_size(view.program))(view.program, latents)
    values = {name: view.program.draws_first(value).cpu() for name, value in latents.items()}
    return Draws(values, prior.cpu(), likelihood.cpu())
