"""Distributions that Pyro lacks, or has in a form that is not precise enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional

from pyro_vae import _checks

__all__ = [
    "Beta",
    "Concatenated",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Incomplete",
    "Multinomial",
    "entries_of",
]


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


SERIES_BELOW = 0.05
"""Where a series of three terms is exact to rounding, in float64 too."""


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


class _OpenUnitInterval(constraints.Constraint):
    """Numbers between 0 and 1, without the ends."""

    def check(self, value: Tensor) -> Tensor:
        """Tell which numbers lie inside."""
        return (value > 0) & (value < 1)


class Beta(dist.Beta):
    """A Beta distribution whose support is open: at 0 and 1 the density is zero or infinite.

    Examples:
        >>> Beta(torch.tensor(2.0), torch.tensor(2.0)).support.check(torch.tensor([0.0, 0.5, 1.0]))
        tensor([False,  True, False])
    """

    support = _OpenUnitInterval()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Beta:
        """Expand the parameters."""
        return super().expand(batch_shape, self._get_checked_instance(Beta, _instance))

    @property
    def mode(self) -> Tensor:
        """The largest density inside; the mean, where it is largest at an end."""
        has_mode = (self.concentration1 > 1) & (self.concentration0 > 1)
        inside = (self.concentration1 - 1) / (self.concentration1 + self.concentration0 - 2)
        return torch.where(has_mode, inside, self.mean)


class Multinomial(TorchDistribution):
    r"""Counts of D kinds among n, $\log p(x) = \log n! + \sum_d (x_d \log \pi_d - \log x_d!)$, $\pi$ a softmax.

    The total n may be another for each datum. Counts that do not add up to it have no probability.

    Shapes: total_count `(...)`, logits `(..., D)`; the event is `(D,)`.

    Examples:
        >>> counts = Multinomial(torch.tensor([3.0, 5.0]), torch.zeros(2, 4))
        >>> counts.sample().sum(-1)
        tensor([3., 5.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "total_count": constraints.nonnegative_integer,
        "logits": constraints.independent(constraints.real, 1),
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, total_count: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(total_count.shape, logits.shape[:-1])
        self.total_count, self.logits = total_count.expand(shape), logits.expand(*shape, -1)
        super().__init__(shape, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multinomial:
        """Expand the parameters."""
        shape = torch.Size(batch_shape)
        return type(self)(self.total_count.expand(shape), self.logits.expand(*shape, -1), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = (value * self.logits.log_softmax(-1) - torch.lgamma(value + 1)).sum(-1)
        total = value.sum(-1)
        return torch.where(total == self.total_count, torch.lgamma(total + 1) + log_probs, -math.inf)

    @property
    def mean(self) -> Tensor:
        r"""$n \pi$."""
        return self.total_count[..., None] * self.logits.softmax(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one kind after the other, each from what is left."""
        with torch.no_grad():
            batch = torch.Size(sample_shape) + self.batch_shape
            probs = self.logits.softmax(-1).expand(*batch, -1)
            rest = probs.flip(-1).cumsum(-1).flip(-1)
            share = torch.where(rest > 0, probs / rest, 1.0).clamp(0, 1)
            share[..., -1] = 1
            left, counts = self.total_count.expand(batch).clone(), []
            for kind in range(share.shape[-1]):
                counts.append(torch.binomial(left, share[..., kind].contiguous()))
                left = left - counts[-1]
            return torch.stack(counts, -1)


class Concatenated(TorchDistribution):
    """Independent vectors laid one behind the other, each with a distribution of its own.

    Args:
        parts: distributions with event shapes `(D_1,)`, `(D_2,)`, ... and equal batch shapes.

    Shapes: the event is `(D_1 + D_2 + ...,)`.

    Examples:
        >>> real, binary = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Bernoulli(torch.ones(3) / 2).to_event(1)
        >>> Concatenated([real, binary]).event_shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[Any], validate_args: bool | None = None) -> None:
        self.parts = list(parts)
        self.widths = [part.event_shape[0] for part in self.parts]
        super().__init__(self.parts[0].batch_shape, torch.Size([sum(self.widths)]), validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> Any:
        """The parts' supports, side by side."""
        inner = [getattr(part.support, "base_constraint", part.support) for part in self.parts]
        return constraints.independent(constraints.cat(inner, -1, self.widths), 1)

    @property
    def has_rsample(self) -> bool:
        """Whether all parts are reparametrized."""
        return all(part.has_rsample for part in self.parts)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Concatenated:
        """Expand the parts."""
        return type(self)([part.expand(batch_shape) for part in self.parts], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats."""
        pieces = value.split(self.widths, -1)
        return sum((part.log_prob(piece) for part, piece in zip(self.parts, pieces, strict=True)), torch.zeros(()))

    @property
    def mean(self) -> Tensor:
        """The parts' means; NaN where one has none."""
        return torch.cat([_mean_or_nan(part) for part in self.parts], -1)

    @property
    def mode(self) -> Tensor:
        """The parts' modes."""
        return torch.cat([part.mode for part in self.parts], -1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from each part."""
        return torch.cat([part.rsample(sample_shape) for part in self.parts], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from each part."""
        with torch.no_grad():
            drawn = [part.sample(sample_shape) for part in self.parts]
            return torch.cat([each.to(torch.promote_types(each.dtype, drawn[0].dtype)) for each in drawn], -1)


def _mean_or_nan(part: Any) -> Tensor:
    try:
        return part.mean
    except NotImplementedError:
        return torch.full_like(part.mode, math.nan)


class Incomplete(TorchDistribution):
    r"""Data of which some entries may be missing, NaN in their place: $\log p(x_o) = \sum_{d \in o} \log p(x_d)$.

    Entries are independent, so that a missing one integrates to 1 and leaves the sum. Its gradient is zero. Draws,
    mean, variance and mode are those of complete data.

    Args:
        base_dist: a distribution of independent entries: `to_event` of one over single numbers, or `Concatenated`.

    Shapes: those of `base_dist`.

    Raises:
        ValueError: for entries that depend on each other.

    References:
        Little and Rubin (2002), Statistical analysis with missing data, section 6.2: under which conditions the
        likelihood of what was observed is all that counts.

    Examples:
        >>> entries = dist.Normal(torch.zeros(2), 1.0)
        >>> half = Incomplete(entries.to_event(1)).log_prob(torch.tensor([0.3, torch.nan]))
        >>> bool(half == entries.log_prob(torch.tensor(0.3))[0])
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, validate_args: bool | None = None) -> None:
        self.base_dist, self.entries = base_dist, entries_of(base_dist)
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        """The base's, and NaN."""
        return or_missing(self.base_dist.support)

    @property
    def has_rsample(self) -> bool:
        """Whether the base is reparametrized."""
        return self.base_dist.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> Incomplete:
        """Expand the base."""
        return type(self)(self.base_dist.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p of the entries that are not NaN, nats."""
        log_probs = [_where_observed(*pair) for pair in zip(self.entries, self.split(value), strict=True)]
        return sum_rightmost(torch.cat(log_probs, -1) if len(log_probs) > 1 else log_probs[0], self.event_dim)

    def split(self, value: Tensor) -> Sequence[Tensor]:
        """Return the pieces of a value that belong to each of `entries`."""
        if len(self.entries) == 1:
            return [value]
        return value.split([each.batch_shape[-1] for each in self.entries], -1)

    @property
    def mean(self) -> Tensor:
        """The base's mean."""
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The base's variance."""
        return self.base_dist.variance

    @property
    def mode(self) -> Tensor:
        """The base's mode."""
        return self.base_dist.mode

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete data."""
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete data."""
        return self.base_dist.sample(sample_shape)


def entries_of(distribution: Any) -> list[Any]:
    """Return p(x) as one distribution over single entries, or as several whose entries lie one behind the other.

    Raises:
        ValueError: for entries that depend on each other.
    """
    if isinstance(distribution, Concatenated):
        return [each for part in distribution.parts for each in entries_of(part)]
    if isinstance(distribution, (Incomplete, torch.distributions.Independent)):
        return entries_of(distribution.base_dist)
    if distribution.event_shape:
        raise ValueError(
            "likelihood: expected one whose entries are independent given z; got "
            f"{type(distribution).__name__}, of event shape {tuple(distribution.event_shape)}; its entries cannot be "
            "missing one by one, so drop the data that are incomplete, or take another likelihood."
        )
    return [distribution]


def _where_observed(entries: Any, value: Tensor) -> Tensor:
    """Return log p of each entry, 0 for NaN. It is replaced before, for a gradient through NaN is NaN."""
    missing = value.isnan()
    return torch.where(missing, 0.0, entries.log_prob(torch.where(missing, _inside(entries.support, value), value)))


def _inside(support: Any, like: Tensor) -> Tensor:
    """Return 0, 1/2 or 1, the first that lies in the support; without a look at values, which a graph has not."""
    zero, half, one = (torch.full_like(like, number) for number in (0.0, 0.5, 1.0))
    return torch.where(support.check(zero), zero, torch.where(support.check(half), half, one))


class _OrMissing(constraints.Constraint):
    """Numbers that another constraint allows, and NaN."""

    def __init__(self, of_number: Any) -> None:
        self.of_number = of_number
        self.is_discrete = of_number.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Tell which numbers are allowed."""
        return self.of_number.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.of_number} or NaN"


def or_missing(support: Any) -> Any:
    """Allow NaN in the place of each number of a support."""
    if isinstance(support, _OrMissing):
        return support
    if isinstance(support, constraints.independent):
        return constraints.independent(or_missing(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.cat):
        return constraints.cat([or_missing(each) for each in support.cseq], support.dim, support.lengths)
    return _OrMissing(support)
