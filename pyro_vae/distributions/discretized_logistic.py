"""Levels, each with the share of a logistic distribution that is nearest to it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional

from pyro_vae import _checks

__all__ = ["DiscretizedLogistic"]


class DiscretizedLogistic(TorchDistribution):
    r"""Whole numbers 0 to L - 1: a logistic variable, rounded to the nearest level.

    Level k lies at $u_k = 2 k / (L - 1) - 1$, and has the mass of the bin of width $2 / (L - 1)$ around it; the first
    and the last bin take the tails, so that all levels sum to one:
    $p(k) = \sigma((u_k + h - \mu) / s) - \sigma((u_k - h - \mu) / s)$, $h = 1 / (L - 1)$.

    Args:
        loc: $\mu$, where -1 is the first level and 1 the last.
        scale: $s > 0$, in the same units.
        num_levels: L.

    Shapes: loc and scale `(...)`.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with inverse
        autoregressive flow, appendix B.

    Examples:
        >>> levels = DiscretizedLogistic(torch.tensor(0.1), torch.tensor(0.2), num_levels=8)
        >>> round(levels.log_prob(torch.arange(8.0)).exp().sum().item(), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    has_enumerate_support = True

    def __init__(
        self, loc: Tensor, scale: Tensor | float, num_levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = _checks.whole_number("num_levels", num_levels, minimum=2)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Whole numbers 0 to L - 1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Expand the parameters."""
        shape = torch.Size(batch_shape)
        return type(self)(self.loc.expand(shape), self.scale.expand(shape), self.num_levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return log p(value), nats, by $\sigma(b) - \sigma(a) = \sigma(b) \sigma(-a) (1 - e^{a - b})$."""
        if self._validate_args:
            self._validate_sample(value)
        half_bin = 1 / (self.num_levels - 1)
        centre = 2 * half_bin * value - 1 - self.loc
        below_upper = functional.logsigmoid((centre + half_bin) / self.scale)
        above_lower = functional.logsigmoid(-(centre - half_bin) / self.scale)
        inside = below_upper + above_lower + _log1mexp(2 * half_bin / self.scale)
        return torch.where(value <= 0, below_upper, torch.where(value >= self.num_levels - 1, above_lower, inside))

    @property
    def mean(self) -> Tensor:
        r"""The sum over levels of $P(x \ge k)$."""
        half_bin = 1 / (self.num_levels - 1)
        return sum(
            (
                torch.sigmoid((self.loc - (2 * level - 1) * half_bin + 1) / self.scale)
                for level in range(1, self.num_levels)
            ),
            torch.zeros_like(self.loc),
        )

    @property
    def variance(self) -> Tensor:
        """The sum over levels of their squared distance from the mean, each with its mass."""
        mean = self.mean
        return sum(
            (
                (level - mean).square() * self.log_prob(torch.full_like(mean, level)).exp()
                for level in range(self.num_levels)
            ),
            torch.zeros_like(mean),
        )

    @property
    def mode(self) -> Tensor:
        """The likeliest of the level at loc and the two ends."""
        last = self.num_levels - 1
        nearest = ((self.loc + 1) * last / 2).round().clamp(0, last)
        candidates = torch.stack([nearest, torch.zeros_like(nearest), torch.full_like(nearest, last)])
        return candidates.gather(0, self.log_prob(candidates).argmax(0, keepdim=True))[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a logistic variable, and round it."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            drawn = self.loc + self.scale * torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)
            return ((drawn + 1) * (self.num_levels - 1) / 2).round().clamp(0, self.num_levels - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all levels, `(L, 1, ...)`, or `(L, *batch)` if expanded."""
        levels = torch.arange(self.num_levels, dtype=self.loc.dtype, device=self.loc.device)
        levels = levels.reshape(-1, *[1] * len(self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels


def _log1mexp(positive: Tensor) -> Tensor:
    """Return log(1 - exp(-positive)), by whichever of two formulas keeps the digits."""
    is_small = positive < math.log(2)
    small, large = positive.clamp(max=1.0), positive.clamp(min=0.5)
    return torch.where(is_small, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))
