"""Independent vectors laid one behind the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Concatenated"]


class _SideBySide(constraints.cat):
    """Constraints of which some have bounds with a batch of their own, as a binomial's total is."""

    def check(self, value: Tensor) -> Tensor:
        """Check each part, and bring all to one batch."""
        pieces = value.split(self.lengths, self.dim)
        parts = [constraint.check(piece) for constraint, piece in zip(self.cseq, pieces, strict=True)]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, -1) for part in parts], -1)


class Concatenated(TorchDistribution):
    """Independent vectors laid one behind the other, each with a distribution of its own.

    Args:
        parts: distributions with event shapes `(D_1,)`, `(D_2,)`, ... and equal batch shapes.

    Shapes: the event is `(D_1 + D_2 + ...,)`.

    Examples:
        >>> import pyro.distributions as dist
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
        beside = _SideBySide if any(each.is_discrete for each in inner) else constraints.cat
        return constraints.independent(beside(inner, -1, self.widths), 1)

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
        return self._moment("mean")

    @property
    def variance(self) -> Tensor:
        """The parts' variances, side by side; NaN where a part has none."""
        return self._moment("variance")

    @property
    def mode(self) -> Tensor:
        """The parts' modes."""
        return torch.cat([part.mode for part in self.parts], -1)

    def _moment(self, name: str) -> Tensor:
        return torch.cat([_or_nan(part, name) for part in self.parts], -1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from each part."""
        return torch.cat([part.rsample(sample_shape) for part in self.parts], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from each part."""
        with torch.no_grad():
            drawn = [part.sample(sample_shape) for part in self.parts]
            return torch.cat([each.to(torch.promote_types(each.dtype, drawn[0].dtype)) for each in drawn], -1)


def _or_nan(part: Any, moment: str) -> Tensor:
    """Return the mean or the variance of a part, NaN where its distribution does not say."""
    try:
        return getattr(part, moment)
    except NotImplementedError:
        return torch.full_like(part.mode, math.nan)
