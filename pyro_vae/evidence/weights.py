"""Reduce log weights in one pass: sums, the largest ones, and means over groups."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.bounds import Groups
from pyro_vae.evidence.psis import MIN_SAMPLES, khat_of_top, khat_threshold, tail_length

__all__ = ["Estimate", "Totals", "estimate", "resampled"]


MAX_WAITING = 65_536
ALL_KEPT = 512  # draws, up to which the jackknife is exact


class Estimate(NamedTuple):
    """An estimate of log p(x) from the weights of K draws; each `(N,)`."""

    log_evidence: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor
    reliable: Tensor
    jackknife: Tensor

    def at(self, rows: Tensor) -> Estimate:
        """Select rows by index."""
        return Estimate(*(each[rows] for each in self))


def estimate(log_weights: Tensor) -> Estimate:
    """Estimate log p(x) from all log weights `(K, N)` at once."""
    totals = Totals(len(log_weights))
    totals.add(log_weights)
    return totals.estimate()


class Totals:
    """Sums of weights, and the largest of them: a tail of about 3 sqrt(K), and 512 at least."""

    def __init__(self, num_samples: int, ks: tuple[int, ...] = ()) -> None:
        self.num_samples = num_samples
        self.num_kept = max(tail_length(num_samples) + 1, ALL_KEPT)
        self.groups = [Groups(k) for k in ks]
        self.waiting: list[Tensor] = []
        self.top = self.rest = self.rest_of_squares = torch.empty(0, dtype=torch.float64)

    @classmethod
    def joined(cls, parts: list[Totals]) -> Totals:
        """Join parts along the data, without groups: one estimate of all is quicker than one of each."""
        whole = cls(parts[0].num_samples)
        for part in parts:
            part._work_off()
        for name in ("top", "rest", "rest_of_squares"):
            setattr(whole, name, torch.cat([getattr(part, name) for part in parts], dim=-1))
        return whole

    def add(self, log_weight: Tensor) -> None:
        """Add log weights `(draws, data)`; they are processed in batches."""
        self.waiting.append(log_weight.cpu())
        if sum(each.numel() for each in self.waiting) >= MAX_WAITING:
            self._work_off()

    def _work_off(self) -> None:
        if not self.waiting:
            return
        log_weight = torch.cat(self.waiting)
        self.waiting = []
        if not len(self.top):
            nothing = torch.full_like(log_weight[0], -math.inf)
            self.top, self.rest, self.rest_of_squares = log_weight[:0], nothing, nothing
        ordered = torch.cat([self.top, log_weight]).sort(0, descending=True).values
        self.top, others = ordered[: self.num_kept], ordered[self.num_kept :]
        if len(others):
            self.rest = torch.logaddexp(self.rest, others.logsumexp(0))
            self.rest_of_squares = torch.logaddexp(self.rest_of_squares, (2 * others).logsumexp(0))
        for group in self.groups:
            group.add(log_weight)

    @property
    def log_sum(self) -> Tensor:
        return torch.logaddexp(self.top.logsumexp(0), self.rest)

    def bounds(self) -> Tensor:
        """Return the means over groups, and their standard errors, `(number of ks, 2, N)`."""
        self._work_off()
        return torch.stack([torch.stack([group.mean, group.std_error]) for group in self.groups])

    def estimate(self) -> Estimate:
        """Estimate log p(x) from the weights so far."""
        self._work_off()
        num = self.num_samples
        log_evidence = self.log_sum - math.log(num)
        log_sum_of_squares = torch.logaddexp((2 * self.top).logsumexp(0), self.rest_of_squares)
        ess = (2 * self.log_sum - log_sum_of_squares).exp().nan_to_num(nan=0.0)
        excess = (num / ess - 1).clamp(min=0)
        std_error = (excess / (num - 1)).sqrt() if num > 1 else torch.full_like(ess, math.nan)
        std_error = std_error.where(ess > 0, torch.nan)
        khat = khat_of_top(self.top[: tail_length(num) + 1]) if num >= MIN_SAMPLES else torch.full_like(ess, math.nan)
        return Estimate(log_evidence, std_error, ess, khat, khat < khat_threshold(num), self._jackknife())

    def _jackknife(self) -> Tensor:
        """Return $K L_K - (K - 1) \\overline{L_{K-1}}$, with a mean over all ways to leave one draw out.

        Weights that are kept enter exactly, and the sum without the largest is formed without subtraction. The others,
        each a small part of the sum, enter by two terms of the series of log(1 - w / sum).
        """
        num, log_sum = self.num_samples, self.log_sum
        if num < 2:
            return torch.full_like(log_sum, math.nan)
        without_largest = torch.logaddexp(self.top[1:].logsumexp(0), self.rest) - log_sum
        without_others = torch.log1p(-(self.top[1:] - log_sum).exp()).sum(0)
        without_rest = -(self.rest - log_sum).exp() - (self.rest_of_squares - 2 * log_sum).exp() / 2
        mean = (without_largest + without_others + without_rest) / num
        value = log_sum - num * math.log(num) + (num - 1) * (math.log(num - 1) - mean)
        return value.where(value.isfinite(), torch.nan)


def resampled(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Choose draws `(S, N)`, each with a probability in proportion to its weight, from log weights `(K, N)`.

    By inversion: each of the uniform numbers `(S, N)` chooses one. If all weights are zero, any may be chosen.
    """
    cumulative = log_weights.softmax(0).nan_to_num(nan=1.0).cumsum(0)
    targets = uniform * cumulative[-1]
    return torch.searchsorted(cumulative.T.contiguous(), targets.T.contiguous()).clamp(max=len(log_weights) - 1).T
