"""Data of which some entries may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyro_vae.distributions.concatenated import Concatenated

__all__ = ["Incomplete", "entries_of", "or_missing"]


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
        >>> import pyro.distributions as dist
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
    """Return numbers in the support: its least, if it is discrete; without a look at values, which a graph has not."""
    zero = torch.zeros_like(like)
    if support.is_discrete:
        return zero + getattr(support, "lower_bound", 0)
    return transform_to(support)(zero)


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
