"""What an evaluation of log p(x) returns."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae import _checks
from pyro_vae.evidence import storage
from pyro_vae.evidence.bounds import Bound, std_error_of_mean
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.observed import Observed, bits_of_levels
from pyro_vae.evidence.summary import how, shown, table_of

__all__ = ["Evidence"]


@dataclass(frozen=True, repr=False)
class Evidence:
    r"""log p(x) of each datum, with its error, in nats.

    Tensors are `(N,)` of float64, one entry a datum, unless another type is named.

    Attributes:
        log_evidence: $\log \hat p(x)$, with $\hat p = \frac{1}{K} \sum_k w_k$. As $E \hat p = p$, its expectation lies
            below log p(x), by about $\mathrm{Var}(w) / 2 K p^2$.
        std_error: of `log_evidence`, $\sqrt{(K / \mathrm{ESS} - 1) / (K - 1)}$ by the delta method; NaN for K = 1. AIS
            widens it, and a clearly larger error seen by draws from elsewhere replaces it. It means little where
            `reliable` is False: the formula cannot exceed 1 nat, and the draws that matter may be missing.
        ess: effective sample size, $(\sum_k w_k)^2 / \sum_k w_k^2$, between 1 and K; 0 where every weight is zero.
        khat: shape of the weights' tail (`pareto_khat`); NaN for fewer than 25 draws.
        reliable: bool; whether the error can be trusted. For importance sampling, `khat` below
            $\min(1 - 1/\log_{10} K, 1/2)$, an error below a quarter of a nat, and no contradiction by draws from
            elsewhere; for AIS, an ESS above three quarters of the chains, and no contradiction. False where unknown.
        jackknife: bias-corrected $K L_K - (K - 1) \overline{L_{K-1}}$: an estimate, not a bound; NaN where one weight
            is all.
        num_evaluations: int64; how often log p(x, z) of the datum was evaluated, with or without its gradient, all
            pilot runs and searches included. A product with the Hessian counts as two.
        num_samples: the number K of draws, or chains, for each datum; None where it differs.
        seed: what fixed the draws.
        method: the estimator's name, for each datum.
        all_bounds: the bounds L_k by k, of the proposal that was drawn from; read them by `bounds(k)`.
        observed: what was evaluated.
        guide_elbo: the guide's ELBO with its error; from the same draws where the proposal is the guide, otherwise
            from separate ones.
        rate, distortion: its two halves, $E \log q(z|x) - \log p(z)$ and $-E \log p(x|z)$, from the same draws.
        is_bound: whether $E \hat p = p(x)$, so that log_evidence is a lower bound in expectation.
        draws: a few draws from the posterior, by importance resampling; None if none were asked for.
        settings: how the estimator was set, for the record.
        diagnostics: further tensors, `(N,)` or `(K, N)`: acceptance rates, log weights of chains.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Owen (2013), Monte Carlo theory,
        methods and examples, chapter 9; Nowozin (2018), Debiasing evidence approximations (the jackknife).
    """

    log_evidence: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor
    reliable: Tensor
    jackknife: Tensor
    num_evaluations: Tensor
    num_samples: int | None
    seed: int
    method: tuple[str, ...]
    all_bounds: dict[int, Bound]
    observed: Observed
    guide_elbo: Bound
    rate: Tensor
    distortion: Tensor
    is_bound: bool = True
    draws: Draws | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def elbo(self) -> Tensor:
        """ELBO of each datum, the mean of its log weights under the guide."""
        return self.guide_elbo.value

    @property
    def gap(self) -> Tensor:
        """log p(x) - ELBO of each datum, an estimate of KL(q(z|x) || p(z|x)), too low where `log_evidence` is."""
        return self.log_evidence - self.elbo

    @property
    def mean(self) -> float:
        """The mean of log p(x) over data."""
        return self.log_evidence.mean().item()

    @property
    def mean_std_error(self) -> float:
        """The Monte Carlo standard error of `mean`: what other draws of z would change, for these data."""
        return std_error_of_mean(self.std_error)

    @property
    def sampling_error(self) -> float:
        """The sampling error s / sqrt(N) of `mean`: what other data would change. NaN for one datum."""
        return self.log_evidence.std().item() / math.sqrt(len(self)) if len(self) > 1 else math.nan

    def bounds(self, k: int) -> Bound:
        """Return L_k of each datum, from groups of k of its draws. L_1 is the proposal's ELBO, L_K `log_evidence`."""
        _checks.choice("k", k, tuple(self.all_bounds))
        return self.all_bounds[k]

    def certified_lower_bound(self, delta: float = 1e-3, num_tried: int = 1) -> float:
        r"""Return a number below the mean of log p(x) over these data, with probability at least 1 - delta.

        $\frac{1}{N} \sum_n \log \hat p(x_n) - \frac{1}{N} \log \frac{m}{\delta}$. As each $\hat p$ is unbiased and
        their noise is independent, $E \prod_n \hat p(x_n) / p(x_n) = 1$, and Markov's inequality does the rest:
        nothing is assumed about the weights' variance. It is a statement about these data alone.

        Args:
            delta: how often it may fail.
            num_tried: the number m of evaluations of these data of which this one was picked after a look at them; each
                gets its share of delta (union bound).

        Raises:
            ValueError: for a delta that is not between 0 and 1; for an estimator that is biased upwards.

        References:
            Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
        """
        _checks.probability("delta", delta)
        if not self.is_bound:
            raise ValueError(
                f"evidence: expected an estimator that is unbiased in p(x); got {self.method[0]}, which has no "
                "certified lower bound; use log_evidence."
            )
        return self.mean - math.log(_checks.whole_number("num_tried", num_tried) / delta) / len(self)

    def _certified(self) -> float:
        return self.certified_lower_bound() if self.is_bound else math.nan

    def bits_per_dim(self, num_levels: int | None = None) -> Tensor:
        r"""Return bits for each of a datum's D observed numbers: $-\log p(x) / (D \ln 2) + \log_2(\mathrm{levels})$.

        Args:
            num_levels: of continuous data, how many levels the numbers had before they were dequantized and scaled to
                [0, 1]: 256 for pixels of 8 bits. Discrete data have none.

        Raises:
            ValueError: for continuous data without `num_levels`, whose density depends on their unit, or outside of
                [0, 1]; for masked data, and a likelihood by `pyro.factor`.
        """
        of_levels = bits_of_levels(self.observed, num_levels)
        return -self.log_evidence / (self.observed.num_dims * math.log(2)) + of_levels

    @property
    def bits_back(self) -> Tensor:
        r"""$-\mathrm{ELBO} / \ln 2$: the code length of x under bits-back coding with this guide, in bits.

        `log_evidence` is what a perfect guide would reach; `gap` / ln 2 is what the guide costs.

        Raises:
            ValueError: for continuous data, which have no code of finite length; see `bits_per_dim`.
        """
        if self.observed.kind != "probability":
            raise ValueError(
                f"model: expected discrete data; got a {self.observed.kind}, which has no bits; use bits_per_dim with "
                "num_levels."
            )
        return -self.elbo / math.log(2)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures of the data set, for JSON; None where unknown."""
        return {
            "estimator": dict(Counter(self.method)) if len(set(self.method)) > 1 else self.method[0],
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "log_evidence": _or_none(self.mean),
            "monte_carlo_std_error": _or_none(self.mean_std_error),
            "sampling_error": _or_none(self.sampling_error),
            "elbo": _or_none(self.guide_elbo.mean),
            "gap": _or_none(self.gap.mean().item()),
            "certified_lower_bound": {"value": _or_none(self._certified()), "delta": 1e-3},
            "median_ess": self.ess.median().item(),
            "num_reliable": int(self.reliable.sum()),
            "mean_num_evaluations": self.num_evaluations.double().mean().item(),
            "bounds": {
                k: {"mean": _or_none(b.mean), "std_error": _or_none(b.mean_std_error)}
                for k, b in self.all_bounds.items()
            },
            "settings": self.settings,
            "data_sha256": self.observed.fingerprint,
        }

    def summary(self, usual: Evidence | None = None) -> str:
        """Return a short table of the data set's figures, and a line for each warning, with what to do about it.

        Args:
            usual: `importance_sampling` of the same data from the guide, the estimate that is usually reported; it is
                shown beside.

        Raises:
            ValueError: if `usual` is of other data.
        """
        if usual is not None and usual.observed.fingerprint != self.observed.fingerprint:
            raise ValueError("usual: expected evidence of the same data; got that of others; evaluate these.")
        return table_of(self, usual).text

    def _repr_html_(self) -> str:
        return shown(self)

    def save(self, path: str | Path) -> None:
        """Write all of it into one `.npz` file of plain arrays and JSON: nothing in it is pickled."""
        storage.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what `save` wrote. Loading runs no code from the file."""
        return cls(**storage.fields_from(path))

    def to_arviz(self) -> Any:
        """Convert to arviz's own object, an InferenceData (arviz 0.x) or a DataTree (1.x), which `to_netcdf` writes.

        Groups: `posterior` and `log_likelihood` from `draws`, as one chain; `sample_stats` with the log prior of
        each draw; `observed_data`; `constant_data` with log_evidence, std_error, ess, khat, reliable,
        num_evaluations and others.

        Raises:
            ValueError: without draws.
        """
        if self.draws is None:
            raise ValueError(
                "draws: expected draws from the posterior; got none; evaluate with num_posterior_draws=16."
            )
        constant = {name: getattr(self, name) for name in storage.PER_DATUM} | {"elbo": self.elbo}
        constant |= {name: value for name, value in self.diagnostics.items() if value.shape == self.ess.shape}
        latents = {name: value[None] for name, value in self.draws.latents.items()}
        log_prior, log_likelihood = self.draws.log_prior[None], self.draws.log_likelihood[None]
        return storage.as_arviz(latents, log_prior, log_likelihood, self.observed.values, constant)

    def __len__(self) -> int:
        return len(self.log_evidence)

    def __repr__(self) -> str:
        return (
            f"Evidence(mean={self.mean:.3f} +- {self.mean_std_error:.3f} nats, {len(self)} data by {how(self)}, "
            f"reliable for {int(self.reliable.sum())}, median ess={self.ess.median():.1f})"
        )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
