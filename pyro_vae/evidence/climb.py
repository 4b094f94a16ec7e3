"""Climbs to a mode by quasi-Newton steps, for many data at once."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.derivatives import LogDensity, with_gradient
from pyro_vae.evidence.gaussians import FullNormal

__all__ = ["Climbed", "climb"]

MEMORY = 8
SMALLEST_CURVATURE = 1e-8  # of a step, as a share of the largest that its change of the gradient allows


class Climbed(NamedTuple):
    """Where K climbs ended for each of N data."""

    position: Tensor
    value: Tensor
    gain: Tensor
    """The squared length of the gradient there, in the metric."""

    def at(self, index: int) -> Climbed:
        """Select one of the K."""
        return Climbed(*(each[index] for each in self))


def climb(density: LogDensity, metric: FullNormal, start: Tensor, num_evaluations: int) -> Climbed:
    """Climb from `(K, N, D)` by L-BFGS, in coordinates in which a Gaussian is standard.

    A step that gains nothing is halved, and shortened faster from the fifth time on: where a density falls like an
    exponential function, a first step can be a thousand times too long. From a start of no density there is no climb;
    its gain is infinite.

    References:
        Liu and Nocedal (1989).
    """
    best = start
    value, gradient = _in_metric(density, metric, best)
    step, misses = gradient, torch.zeros_like(value)[..., None]
    memory = _Memory(torch.ones_like(misses))
    for _ in range(num_evaluations - 1):
        size = (-misses * (misses / 4).clamp(min=1)).exp2()
        proposed = best + metric.scaled(size * step)
        new_value, new_gradient = _in_metric(density, metric, proposed)
        is_better = new_value > value
        better = is_better[..., None]
        memory.add((size * step).where(better, 0.0), (gradient - new_gradient).where(better, 0.0))
        best, gradient = proposed.where(better, best), new_gradient.where(better, gradient)
        value = new_value.where(is_better, value)
        step = memory.uphill(gradient).where(better, step)
        misses = torch.where(better, 0.0, misses + 1)
    return Climbed(best, value, gradient.square().sum(-1).where(value.isfinite(), torch.inf))


def _in_metric(density: LogDensity, metric: FullNormal, u: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = with_gradient(density, u)
    return value.where(value.isfinite(), -torch.inf), metric.scaled_transposed(gradient)


class _Memory:
    """The last steps of climbs, and by how much the gradient fell along them: what is known of the curvature."""

    def __init__(self, scale: Tensor) -> None:
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
        self.scale = scale
        """The inverse of the curvature, as a number: `(K, N, 1)`."""

    def add(self, step: Tensor, fall: Tensor) -> None:
        """Take in steps `(K, N, D)`; those along which the density bends upwards, and zeros, say nothing."""
        product, square = (step * fall).sum(-1, keepdim=True), fall.square().sum(-1, keepdim=True)
        bends_down = product > SMALLEST_CURVATURE * square
        self.scale = (product / square).where(bends_down, self.scale)
        self.pairs.append((step, fall, product.reciprocal().where(bends_down, 0.0)))

    def uphill(self, gradient: Tensor) -> Tensor:
        """Return the quasi-Newton step; the gradient itself where that would not lead up."""
        direction, shares = gradient, []
        for step, fall, inverse in reversed(self.pairs):
            share = inverse * (step * direction).sum(-1, keepdim=True)
            direction = direction - share * fall
            shares.append(share)
        direction = self.scale * direction
        for (step, fall, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            direction = direction + (share - inverse * (fall * direction).sum(-1, keepdim=True)) * step
        leads_up = (direction * gradient).sum(-1, keepdim=True) > 0
        return direction.where(leads_up & direction.isfinite().all(-1, keepdim=True), gradient)
