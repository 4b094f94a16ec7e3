"""Temperatures and step sizes of annealing, found for each datum by a pilot run."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence import hmc
from pyro_vae.evidence.path import Path
from pyro_vae.program.tiles import Noise

__all__ = ["PILOT_CHAINS", "PILOT_TEMPERATURES", "SCHEDULES", "Pilot", "pilot", "schedule_of"]

SCHEDULES = ("adaptive", "linear", "sigmoid")
TARGET_ACCEPTANCE = 0.8
PILOT_TEMPERATURES = 20
PILOT_CHAINS = 8
STUCK = 2.0  # by which the variance of weights may exceed that of independent temperatures, before it counts


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

    @property
    def variance(self) -> Tensor:
        r"""The variance of the log weights of so many temperatures, `(N,)`.

        Were the chains independent from one temperature to the next, it would be $\sum_t (\Delta \beta_t s_t)^2$, with
        s the spread. Few chains show that far less roughly than the variance of their weights, which only tells where
        they are stuck: there it is larger by more than chance.
        """
        of_steps = (self.betas.diff(dim=0) * self.spreads).square().sum(0)
        return torch.maximum(of_steps, self.log_weights.var(0) / STUCK)

    def at(self, rows: Tensor) -> Pilot:
        """Select rows by index."""
        return Pilot(*(each[:, rows] for each in self))

    def frozen(self, num_temperatures: int, schedule: str) -> tuple[Tensor, Tensor]:
        """Return temperatures and step sizes for a measured run, `(T + 1, N)` each."""
        if schedule == "adaptive":
            betas = _equal_speed(self.spreads, self.betas, num_temperatures)
        else:
            betas = schedule_of(schedule, num_temperatures, self.betas.shape[1], self.betas.device)
        return betas, _interpolated(betas, self.betas[1:], _smoothed(self.log_sizes)).exp()


def pilot(path: Path, noise: Noise, num_temperatures: int, num_chains: int, num_leapfrog: int) -> Pilot:
    """Find step sizes: after each transition, adapt each datum's by how far its acceptance is from 0.8.

    Trajectories are at most a quarter turn long: beyond that, those of a Gaussian come back.
    """
    longest = math.log(min(1.5, math.pi / 2 / num_leapfrog))
    betas = schedule_of("linear", num_temperatures, len(path.gaussian.loc), path.gaussian.loc.device)
    state = path.begin(path.draw(num_chains))[0]
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


def schedule_of(name: str, num_temperatures: int, num_data: int, device: torch.device) -> Tensor:
    """Return the temperatures of a "linear" or "sigmoid" schedule, `(T + 1, N)`."""
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
