"""The importance-weighted bounds L_k, as means over groups of k draws; the ELBO is L_1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Bound", "Groups", "std_error_of_mean"]


@dataclass(frozen=True, repr=False)
class Bound:
    r"""The importance-weighted bound $L_k = E \log \frac{1}{k} \sum_{i \le k} w_i$ for each datum, nats.

    Attributes:
        k: the number of draws in each average.
        value: the mean over groups of k draws, `(N,)` float64.
        std_error: its standard error, `(N,)` float64; NaN where unknown.
    """

    k: int
    value: Tensor
    std_error: Tensor

    @property
    def mean(self) -> float:
        """The mean over data."""
        return self.value.mean().item()

    @property
    def mean_std_error(self) -> float:
        """The Monte Carlo standard error of `mean`."""
        return std_error_of_mean(self.std_error)

    def __repr__(self) -> str:
        return f"Bound(k={self.k}, mean={self.mean:.3f} +- {self.mean_std_error:.3f} nats, {len(self.value)} data)"


class Groups:
    """Mean and variance over groups of k draws of log(sum w / k)."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.num_groups = 0
        self.num_open = 0  # draws in the group that is not yet full, and the log of their sum
        self.open = torch.tensor(-math.inf, dtype=torch.float64)

    def add(self, log_weight: Tensor) -> None:
        """Add log weights `(draws, data)`; a group may go on in the next call."""
        head = -self.num_open % self.k
        full = max(0, len(log_weight) - head) // self.k
        tail = head + full * self.k
        self._extend(log_weight[:head])
        if full:
            groups = log_weight[head:tail].unflatten(0, (full, self.k))
            self._close(groups.logsumexp(1) if self.k > 1 else groups[:, 0])
        self._extend(log_weight[tail:])

    def _extend(self, log_weight: Tensor) -> None:
        if not len(log_weight):
            return
        log_sum = log_weight.logsumexp(0)
        self.open = torch.logaddexp(self.open, log_sum) if self.num_open else log_sum
        self.num_open += len(log_weight)
        if self.num_open == self.k:
            self._close(self.open[None])
            self.num_open = 0

    def _close(self, log_sums: Tensor) -> None:
        values = log_sums - math.log(self.k)
        if not self.num_groups:
            # Sums are relative to the first value, so that equal weights have a variance of exactly zero.
            self.origin = values[0].nan_to_num(neginf=0.0)
            self.sum = self.sum_of_squares = torch.zeros_like(self.origin)
        self.num_groups += len(values)
        self.sum = self.sum + (values - self.origin).sum(0)
        self.sum_of_squares = self.sum_of_squares + (values - self.origin).square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.origin + self.sum / self.num_groups

    @property
    def std_error(self) -> Tensor:
        if self.num_groups < 2:
            return torch.full_like(self.origin, math.nan)
        squares = (self.sum_of_squares - self.sum.square() / self.num_groups).clamp(min=0)
        return (squares / (self.num_groups - 1) / self.num_groups).sqrt()


def std_error_of_mean(std_error: Tensor) -> float:
    """Return the standard error of the mean over data with independent noise."""
    return std_error.square().sum().sqrt().item() / len(std_error)
