"""What an evaluation of log p(x) returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae import _checks

__all__ = ["Bound", "Evidence"]


@dataclass(frozen=True, repr=False)
class Bound:
    r"""The importance-weighted bound $L_k = E \log \frac{1}{k} \sum_{i \le k} w_i$ for each datum, nats.

    Attributes:
        k: the number of draws in each average.
        value: the mean over groups of k draws, `(N,)` float64.
        std_error: its standard error, `(N,)` float64; NaN where it cannot be told.
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
        return _std_error_of_mean(self.std_error)

    def __repr__(self) -> str:
        return f"Bound(k={self.k}, mean={self.mean:.3f} +- {self.mean_std_error:.3f} nats, {len(self.value)} data)"


@dataclass(frozen=True, repr=False)
class Evidence:
    r"""log p(x) of each datum, with its error, in nats.

    Tensors are `(N,)` of float64, one entry a datum.

    Attributes:
        log_evidence: $\log \hat p(x)$, with $\hat p = \frac{1}{K} \sum_k w_k$. As $E \hat p = p$, its expectation lies
            below log p(x), by about $\mathrm{Var}(w) / 2 K p^2$.
        std_error: of `log_evidence`, $\sqrt{(K / \mathrm{ESS} - 1) / (K - 1)}$ by the delta method; NaN for K = 1. It
            means little where `ess` is a handful: it cannot exceed 1 nat, and the draw that would matter may not have
            come.
        ess: effective sample size, $(\sum_k w_k)^2 / \sum_k w_k^2$, between 1 and K; 0 where every weight is zero.
        num_samples: the number K of draws for each datum.
        seed: what fixed the draws.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Owen (2013), Monte Carlo theory,
        methods and examples, chapter 9.
    """

    log_evidence: Tensor
    std_error: Tensor
    ess: Tensor
    num_samples: int
    seed: int
    all_bounds: dict[int, Bound]

    @property
    def elbo(self) -> Tensor:
        """ELBO of each datum, the mean of its log weights."""
        return self.bounds(1).value

    @property
    def gap(self) -> Tensor:
        """log p(x) - ELBO of each datum: an estimate of KL(q(z|x) || p(z|x)), too low where `log_evidence` is."""
        return self.log_evidence - self.elbo

    @property
    def mean(self) -> float:
        """The mean of log p(x) over data."""
        return self.log_evidence.mean().item()

    @property
    def mean_std_error(self) -> float:
        """The Monte Carlo standard error of `mean`: what other draws of z would change, for these data."""
        return _std_error_of_mean(self.std_error)

    @property
    def sampling_error(self) -> float:
        """The sampling error s / sqrt(N) of `mean`: what other data would change. NaN for one datum."""
        return self.log_evidence.std().item() / math.sqrt(len(self)) if len(self) > 1 else math.nan

    def bounds(self, k: int) -> Bound:
        """L_k of each datum, from the same draws in groups of k. L_1 is the ELBO, L_K is `log_evidence`."""
        _checks.choice("k", k, tuple(self.all_bounds))
        return self.all_bounds[k]

    def certified_lower_bound(self, delta: float = 1e-3) -> float:
        r"""A number below the mean of log p(x) over these data, with probability at least 1 - delta.

        $\frac{1}{N} \sum_n \log \hat p(x_n) - \frac{1}{N} \log \frac{1}{\delta}$. As each $\hat p$ is unbiased and
        their noise is independent, $E \prod_n \hat p(x_n) / p(x_n) = 1$, and Markov's inequality does the rest:
        nothing is assumed of the weights' variance. It is a statement on these data, and says nothing of others.

        Raises:
            ValueError: for a delta that is not between 0 and 1.

        References:
            Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        """
        if not 0 < _checks.positive("delta", delta) < 1:
            raise ValueError(f"delta: expected a probability between 0 and 1; got {delta}; pass 0.001, say.")
        return self.mean - math.log(1 / delta) / len(self)

    def as_dict(self) -> dict[str, Any]:
        """The figures of the data set, for JSON; None stands for what cannot be told."""
        return {
            "estimator": "importance sampling",
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "log_evidence": _or_none(self.mean),
            "monte_carlo_std_error": _or_none(self.mean_std_error),
            "sampling_error": _or_none(self.sampling_error),
            "elbo": _or_none(self.bounds(1).mean),
            "gap": _or_none(self.gap.mean().item()),
            "certified_lower_bound": {"value": _or_none(self.certified_lower_bound(1e-3)), "delta": 1e-3},
            "median_ess": self.ess.median().item(),
            "bounds": {
                k: {"mean": _or_none(b.mean), "std_error": _or_none(b.mean_std_error)}
                for k, b in self.all_bounds.items()
            },
        }

    def summary(self) -> str:
        """The figures of the data set, as a table in plain words."""
        elbo, ess = self.bounds(1), self.ess
        between = [b for k, b in self.all_bounds.items() if 1 < k < self.num_samples and math.log10(k).is_integer()]
        rows = [
            ("ELBO = L_1", elbo.mean, _plus_minus(elbo.mean_std_error)),
            *((f"L_{b.k}, bound from {b.k:,} draws", b.mean, _plus_minus(b.mean_std_error)) for b in between),
            ("log p(x), from all draws", self.mean, f"{_plus_minus(self.mean_std_error)} Monte Carlo error"),
            ("", None, f"{_plus_minus(self.sampling_error)} for other data of the same kind (sampling error)"),
            ("gap, log p(x) - ELBO", self.gap.mean().item(), "estimates KL(q(z|x) || p(z|x))"),
            (
                "certified lower bound",
                self.certified_lower_bound(),
                "these data's log p(x) is above, 999 times in 1,000",
            ),
        ]
        head = f"log p(x) of {len(self):,} data by importance sampling, {self.num_samples:,} draws each; nats per datum"
        lines = [f"{name:<28}{'' if value is None else f'{value:.3f}':>10}   {note}" for name, value, note in rows]
        foot = (
            f"effective draws: median {ess.median():,.1f}; fewer than 10 for {(ess < 10).sum():,} of {len(self):,} data"
        )
        return "\n".join([head, *lines, foot + _warning(ess)])

    def __len__(self) -> int:
        return len(self.log_evidence)

    def __repr__(self) -> str:
        return (
            f"Evidence(mean={self.mean:.3f} +- {self.mean_std_error:.3f} nats, elbo={self.bounds(1).mean:.3f}, "
            f"{len(self)} data, {self.num_samples} draws each, median ess={self.ess.median():.1f})"
        )


def _plus_minus(error: float) -> str:
    return f"+- {error:.3f}" if math.isfinite(error) else "+- unknown"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _warning(ess: Tensor) -> str:
    """A word of caution where many estimates rest on a few draws."""
    if (ess < 10).double().mean() < 0.05:
        return ""
    return "\nwhere few draws count, log p(x) and the gap are too low, and the Monte Carlo error is too small to tell"


def _std_error_of_mean(std_error: Tensor) -> float:
    """Of the mean over data, whose noise is independent."""
    return std_error.square().sum().sqrt().item() / len(std_error)
