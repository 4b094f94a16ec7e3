"""A Beta distribution with an open support."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import SigmoidTransform

__all__ = ["Beta"]


class _OpenUnitInterval(constraints.Constraint):
    """Numbers between 0 and 1, without the ends."""

    def check(self, value: Tensor) -> Tensor:
        """Tell which numbers lie inside."""
        return (value > 0) & (value < 1)


@transform_to.register(_OpenUnitInterval)
@biject_to.register(_OpenUnitInterval)
def _to_open_unit_interval(_: Any) -> SigmoidTransform:
    return SigmoidTransform()


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
