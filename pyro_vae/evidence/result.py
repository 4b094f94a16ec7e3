"""What an evaluation of log p(x) returns."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.evidence import storage
from pyro_vae.evidence.summary import how, table_of
from pyro_vae.program.core import Program

__all__ = ["Bound", "Draws", "Evidence", "Observed", "std_error_of_mean"]

PER_DATUM = (
    "log_evidence",
    "std_error",
    "ess",
    "khat",
    "reliable",
    "jackknife",
    "num_evaluations",
    "rate",
    "distortion",
)
OBSERVED = ("fingerprint", "num_dims", "is_masked", "kind")


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


@dataclass(frozen=True)
class Observed:
    """What was evaluated: enough to tell whether two evaluations are of the same data.

    Attributes:
        values: the value of each observed site, `(N, ...)`.
        fingerprint: sha256 of the observed values in float64, and of their masks.
        num_dims: how many observed numbers a datum has.
        is_masked: whether a mask leaves some of them out.
        kind: "probability" of discrete values, "density" of continuous ones, "mixed"; or "factor" where the likelihood
            is a `pyro.factor`, whose data cannot be seen.
    """

    values: dict[str, Tensor]
    fingerprint: str
    num_dims: int
    is_masked: bool
    kind: str

    @classmethod
    def of(cls, program: Program) -> Observed:
        """Record the data that a program is called on."""
        with torch.no_grad():
            values = program.observed_values()
        digest = hashlib.sha256()
        for _, site in sorted(values.items()):
            for tensor in (site.value, *site.masks):
                digest.update(f"{len(tensor)} {tensor.numel()}".encode())
                digest.update(tensor.double().cpu().contiguous().numpy().tobytes())
        num_dims = sum(site.value.numel() // len(site.value) for site in values.values())
        kinds = {site.kind for site in values.values()}
        kind = "factor" if "factor" in kinds else kinds.pop() if len(kinds) == 1 else "mixed"
        kept = {name: site.value.detach().cpu() for name, site in values.items()}
        is_masked = any(not mask.all() for site in values.values() for mask in site.masks)
        return cls(kept, digest.hexdigest(), num_dims, is_masked, kind)


@dataclass(frozen=True)
class Draws:
    """S draws from the posterior p(z|x) for each of N data, with equal weights.

    Attributes:
        latents: for each latent site, `(S, N, ...)`.
        log_prior: log p(z), `(S, N)`, nats.
        log_likelihood: log p(x|z), `(S, N)`, nats.
    """

    latents: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Draws | None], columns: Sequence[Any] | None = None) -> Draws | None:
        """Join draws along the data, taking some columns of each part, or all."""
        columns = columns or [slice(None)] * len(parts)
        known = [(draws, each) for draws, each in zip(parts, columns, strict=True) if draws is not None]
        if not known:
            return None
        first = known[0][0]

        def cat(of_draws: Callable[[Draws], Tensor]) -> Tensor:
            return torch.cat([of_draws(draws)[:, each].cpu() for draws, each in known], dim=1)

        return cls(
            {
                name: torch.cat([draws.latents[name][:, each].cpu() for draws, each in known], 1)
                for name in first.latents
            },
            cat(lambda draws: draws.log_prior),
            cat(lambda draws: draws.log_likelihood),
        )


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
        if self.observed.kind == "factor":
            raise ValueError("model: expected observed sites with values; got pyro.factor, whose data have no size.")
        if self.observed.is_masked:
            raise ValueError("model: expected data all of which count; got masks, so that each datum has its own size.")
        if self.observed.kind == "probability" and num_levels is not None:
            raise ValueError("num_levels: expected None for discrete data, whose log p(x) needs no unit; leave it out.")
        if self.observed.kind != "probability" and num_levels is None:
            raise ValueError(
                "num_levels: expected the number of levels for continuous data; got None; pass 256 for dequantized "
                "8-bit pixels scaled to [0, 1]. A density of other data has no bits."
            )
        if num_levels is not None:
            self._refuse_other_units()
        offset = math.log2(_checks.whole_number("num_levels", num_levels)) if num_levels is not None else 0.0
        return -self.log_evidence / (self.observed.num_dims * math.log(2)) + offset

    def _refuse_other_units(self) -> None:
        for name, value in self.observed.values.items():
            low, high = value.min().item(), value.max().item()
            if low < 0 or high > 1:
                raise ValueError(
                    f"x: expected data scaled to [0, 1], whose levels are 1 / num_levels apart; got values from "
                    f"{low:g} to {high:g} at site {name!r}; evaluate scaled data: a density depends on the unit."
                )

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

    def summary(self) -> str:
        """Return the figures of the data set as a table in plain words."""
        return table_of(self).text

    def _repr_html_(self) -> str:
        return table_of(self).html

    def save(self, path: str | Path) -> None:
        """Write all of it into one `.npz` file of plain arrays and JSON: nothing in it is pickled."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in PER_DATUM}
        bounds: dict[Any, Bound] = {**self.all_bounds, "elbo": self.guide_elbo}
        for k, bound in bounds.items():
            tensors |= {f"bounds/{k}/value": bound.value, f"bounds/{k}/std_error": bound.std_error}
        tensors |= {f"observed/{name}": value for name, value in self.observed.values.items()}
        tensors |= {f"diagnostics/{name}": value for name, value in self.diagnostics.items()}
        if self.draws is not None:
            tensors |= {f"latents/{name}": value for name, value in self.draws.latents.items()}
            tensors |= {"log_prior": self.draws.log_prior, "log_likelihood": self.draws.log_likelihood}
        record = {name: getattr(self, name) for name in ("num_samples", "seed", "method", "settings", "is_bound")}
        record |= {name: getattr(self.observed, name) for name in OBSERVED}
        storage.write(path, tensors, record)

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what `save` wrote. Loading runs no code from the file."""
        tensors, record = storage.read(path)
        missing = {*PER_DATUM, "bounds/elbo/value", "bounds/elbo/std_error"} - set(tensors)
        if missing:
            raise ValueError(f"path: expected a file that save wrote; got {str(path)!r} without {min(missing)!r}.")

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        def bound(k: str) -> Bound:
            return Bound(
                1 if k == "elbo" else int(k), *(tensors[f"bounds/{k}/{part}"] for part in ("value", "std_error"))
            )

        ks = sorted({int(name.split("/")[0]) for name in under("bounds/") if not name.startswith("elbo")})
        latents = under("latents/")
        return cls(
            **{name: tensors[name] for name in PER_DATUM},
            num_samples=record["num_samples"],
            seed=record["seed"],
            method=tuple(record["method"]),
            all_bounds={k: bound(str(k)) for k in ks},
            observed=Observed(under("observed/"), *(record[name] for name in OBSERVED)),
            guide_elbo=bound("elbo"),
            is_bound=record["is_bound"],
            draws=Draws(latents, tensors["log_prior"], tensors["log_likelihood"]) if latents else None,
            settings=record["settings"],
            diagnostics=under("diagnostics/"),
        )

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
        constant = {name: getattr(self, name) for name in PER_DATUM} | {"elbo": self.elbo}
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


def std_error_of_mean(std_error: Tensor) -> float:
    """Return the standard error of the mean over data with independent noise."""
    return std_error.square().sum().sqrt().item() / len(std_error)
