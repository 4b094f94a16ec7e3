"""Counts of several kinds, each datum with a total of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Multinomial"]


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
