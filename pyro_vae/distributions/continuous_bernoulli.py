"""Numbers between 0 and 1, by the formula of Bernoulli."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ContinuousBernoulli"]


SERIES_BELOW = 0.05
"""Where a series of three terms is exact to rounding, in float64 too."""


class ContinuousBernoulli(TorchDistribution):
    r"""Numbers between 0 and 1, $p(x) = C(\eta)\, e^{\eta (x - 1/2)}$, $C(\eta) = \frac{\eta / 2}{\sinh(\eta / 2)}$.

    With $\eta$ the logits: Bernoulli's formula, made to integrate to one. $\log C$ is written so that no digit is lost
    near $\eta = 0$, where torch's distribution switches to a series, nor far out, where $\sinh$ overflows.

    Shapes: logits `(...)`.

    References:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
        autoencoders.

    Examples:
        >>> uniform = ContinuousBernoulli(torch.tensor(0.0))
        >>> uniform.log_prob(torch.tensor(0.3)).exp().item(), uniform.mean.item()
        (1.0, 0.5)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Expand the parameters."""
        return type(self)(self.logits.expand(torch.Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - _log_sinhc(self.logits / 2)

    @property
    def mean(self) -> Tensor:
        r"""$\frac12 + \frac12 (\coth \frac{\eta}{2} - \frac{2}{\eta})$."""
        return 0.5 + 0.5 * _langevin(self.logits / 2)

    @property
    def variance(self) -> Tensor:
        r"""$\frac{1}{\eta^2} - \frac{1}{4 \sinh^2 (\eta / 2)}$, the derivative of the mean."""
        # In float64, since both terms are large and nearly equal where eta is small.
        return 0.25 * _langevin_slope(self.logits.double() / 2).to(self.logits.dtype)

    @property
    def mode(self) -> Tensor:
        """The likelier end."""
        return (self.logits > 0).to(self.logits.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function, which is precise for negative logits; mirror the others."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        negative = -self.logits.abs()
        is_flat = negative > -1e-4
        slope = torch.where(is_flat, -torch.ones_like(negative), negative)
        drawn = torch.where(is_flat, uniform, torch.log1p(uniform * torch.expm1(slope)) / slope).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - drawn, drawn)


def _log_sinhc(u: Tensor) -> Tensor:
    """Return log(sinh(u) / u): by a series near zero, by its formula, and by one that does not overflow far out."""
    size = u.abs()
    near, far = size.clamp(max=SERIES_BELOW), size.clamp(min=1.0)
    between = size.clamp(SERIES_BELOW, 1.0)
    square = near.square()
    series = square * (1 / 6 + square * (-1 / 180 + square * (1 / 2835 - square / 37800)))
    formula = torch.log(torch.sinh(between) / between)
    without_overflow = far - math.log(2) - far.log() + torch.log1p(-torch.exp(-2 * far))
    return torch.where(size < SERIES_BELOW, series, torch.where(size < 1, formula, without_overflow))


def _langevin(u: Tensor) -> Tensor:
    """Return coth(u) - 1 / u, the derivative of log(sinh(u) / u)."""
    is_small = u.abs() < SERIES_BELOW
    far, near = torch.where(is_small, torch.ones_like(u), u), torch.where(is_small, u, torch.zeros_like(u))
    series = near * (1 / 3 + near.square() * (-1 / 45 + near.square() * (2 / 945 - near.square() / 4725)))
    return torch.where(is_small, series, 1 / torch.tanh(far) - 1 / far)


def _langevin_slope(u: Tensor) -> Tensor:
    """Return 1 / u^2 - 1 / sinh(u)^2, the derivative of coth(u) - 1 / u."""
    is_small = u.abs() < SERIES_BELOW
    far, square = torch.where(is_small, torch.ones_like(u), u), torch.where(is_small, u, torch.zeros_like(u)).square()
    series = 1 / 3 + square * (-1 / 15 + square * (2 / 189 - square / 675))
    return torch.where(is_small, series, far.square().reciprocal() - torch.sinh(far).square().reciprocal())
