"""What draws from elsewhere say of a proposal: the error of its estimate, and whether it missed some of p(x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.weights import Estimate

__all__ = ["Elsewhere", "checked"]

LARGEST_ERROR = 0.25  # nats, beyond which the delta method from p(x) to log p(x) fails
WORSE = 1.5  # factor by which the survey's error must be larger: from few draws, it is itself uncertain by a fifth
ROUNDING = 1e-4  # nats
UNCHECKED_KHAT = 0.4  # the largest for proposals whose density elsewhere is not known


class Elsewhere(NamedTuple):
    """What M draws z from a mixture g say about a proposal q, each `(M, N)` of float64, nats."""

    log_ratio: Tensor
    """log p(x, z) - log g(z)."""
    log_weight: Tensor
    """log p(x, z) - log q(z), the weight that z would have had: +inf where q is zero, NaN where it is unknown."""

    @classmethod
    def joined(cls, parts: Sequence[Elsewhere]) -> Elsewhere:
        """Join parts along the data."""
        return cls(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def at(self, rows: Tensor) -> Elsewhere:
        """Select rows by index."""
        return Elsewhere(*(each[:, rows] for each in self))

    @property
    def log_evidence(self) -> Tensor:
        """log p(x) by importance sampling from g, `(N,)`."""
        return _log_mean(self.log_ratio)

    @property
    def std_error(self) -> Tensor:
        """The standard error of `log_evidence`, `(N,)`; infinite where no draw has a weight."""
        share = (self.log_ratio - self.log_ratio.logsumexp(0)).exp()
        num, ess = len(share), 1 / share.square().sum(0)
        return ((num / ess - 1).clamp(min=0) / (num - 1)).sqrt().nan_to_num(nan=math.inf)

    def std_error_of(self, log_evidence: Tensor, num_samples: int) -> Tensor:
        r"""Return the error of K draws of q in log p(x), as judged by draws that go where those of q rarely do, `(N,)`.

        Weights up to t have the second moment $v = E_g[\frac{p}{g} \frac{p}{q}; w \le t] / p(x)^2$; those above hold a
        share m of p(x) that K draws may miss. The error is $\sqrt{\log(1 + (v - (1 - m)^2) / K)} + m$, at the best t,
        and zero where all weights are p(x).
        """
        variance, mass = self._cut(log_evidence)
        error = ((variance / max(num_samples - 1, 1)).log1p().sqrt() + mass).amin(0)
        is_exact = ((self.log_weight - log_evidence).abs() < ROUNDING).all(0)
        return error.where(~is_exact, 0.0)

    def relative_variance(self, log_evidence: Tensor, negligible: float) -> Tensor:
        """Return the variance of q's weights over p(x)^2, without weights that hold a negligible share of p(x)."""
        variance, mass = self._cut(log_evidence)
        return variance.where(mass <= negligible, torch.inf).amin(0)

    def _cut(self, log_evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the variance of the weights below each cut, and the share of p(x) above it, `(M + 1, N)` each."""
        order = self.log_weight.argsort(0, descending=True)
        share = (self.log_ratio.gather(0, order) - log_evidence - math.log(len(order))).exp()
        relative = (self.log_weight.gather(0, order) - log_evidence).clamp(max=200).exp()
        nothing = torch.zeros_like(share[:1])
        mass = torch.cat([nothing, share.cumsum(0)])
        kept, second = (torch.cat([each.flip(0).cumsum(0).flip(0), nothing]) for each in (share, share * relative))
        # In expectation, kept is 1 - mass. With it, equal weights have no variance, whichever draws there are.
        return (second - (1 - mass).clamp(min=0) * kept).clamp(min=0), mass

    def contradicts(self, found: Estimate) -> Tensor:
        """Tell where these draws found significantly more than an estimate, which then missed some of p(x), `(N,)`."""
        both = (self.std_error.square() + found.std_error.nan_to_num().square()).sqrt()
        return self.log_evidence > found.log_evidence + 3 * both + 0.05


def _log_mean(values: Tensor) -> Tensor:
    return values.logsumexp(0) - math.log(len(values))


def checked(found: Estimate, num_samples: int, seen: Elsewhere) -> Estimate:
    """Correct the error of an estimate, and whether it is reliable, by what the survey's draws show.

    Their error (`Elsewhere.std_error_of`) replaces the estimate's where it is clearly larger. An error above a quarter
    of a nat is not reliable, nor is an estimate when significantly more was found. A proposal whose density elsewhere
    is not known needs a k-hat below 0.4 instead.
    """
    believed = found.reliable & ~seen.contradicts(found)
    if seen.log_weight.isnan().any():
        return found._replace(reliable=believed & (found.khat < UNCHECKED_KHAT))
    as_seen = seen.std_error_of(found.log_evidence, num_samples)
    std_error = torch.where(as_seen > WORSE * found.std_error.nan_to_num(), as_seen, found.std_error)
    return found._replace(std_error=std_error, reliable=believed & (std_error < LARGEST_ERROR))
