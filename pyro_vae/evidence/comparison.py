"""Compare two models on the same data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae import _html
from pyro_vae.evidence.bounds import std_error_of_mean
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.summary import compared, verdict

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, repr=False)
class Comparison:
    """log p(x) of one model less that of another, for each datum `(N,)`, nats.

    Attributes:
        difference: a - b.
        monte_carlo_std_error: of each difference, as if both evaluations had independent noise. With one seed they
            share noise, and the error is smaller where the models are alike.
        num_unreliable: for how many data either evaluation is not reliable.
    """

    difference: Tensor
    monte_carlo_std_error: Tensor
    num_unreliable: int

    @property
    def mean(self) -> float:
        """The mean difference."""
        return self.difference.mean().item()

    @property
    def std_error(self) -> float:
        """The standard error s / sqrt(N) of `mean` for other data of the same kind. It includes the Monte Carlo noise,
        and is NaN for one datum."""
        return self.difference.std().item() / math.sqrt(len(self.difference)) if len(self.difference) > 1 else math.nan

    @property
    def mean_monte_carlo_std_error(self) -> float:
        """The Monte Carlo standard error of `mean` for these data."""
        return std_error_of_mean(self.monte_carlo_std_error)

    def _repr_html_(self) -> str:
        return _html.in_a_notebook(_html.cards(compared(self)), _html.remarks(verdict(self)))

    def __repr__(self) -> str:
        text = (
            f"Comparison(a - b = {self.mean:.3f} +- {self.std_error:.3f} nats per datum, of which Monte Carlo "
            f"{self.mean_monte_carlo_std_error:.3f}, {len(self.difference)} data"
        )
        return f"{text}; not reliable for {self.num_unreliable})" if self.num_unreliable else f"{text})"


def compare(a: Evidence, b: Evidence) -> Comparison:
    r"""Return the paired difference $\log p_a(x) - \log p_b(x)$ on the same data, which varies less than either.

    Args:
        a, b: evaluations of the same data, in the same order.

    Raises:
        ValueError: for numbers that cannot be compared: of other data (another binarization is other data), or a
            probability against a density.

    Examples:
        >>> import torch, pyro, pyro.distributions as dist
        >>> import pyro_vae as pv
        >>> def model(x, scale):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, scale), obs=x)
        >>> def guide(x, scale):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> x = torch.tensor([0.0, 0.5, 1.0])
        >>> narrow, wide = (pv.importance_sampling(model, guide, x, kwargs={"scale": scale}) for scale in (1.0, 5.0))
        >>> compare(narrow, wide).mean > 0
        True
    """
    _refuse_unfit("a", a)
    _refuse_unfit("b", b)
    _refuse_other_data(a, b)
    error = (a.std_error.square() + b.std_error.square()).sqrt()
    unreliable = ~(a.reliable & b.reliable)
    difference = torch.where(a.log_evidence == b.log_evidence, 0.0, a.log_evidence - b.log_evidence)  # both may be -inf
    return Comparison(difference, error, int(unreliable.sum()))


def _refuse_unfit(name: str, value: Any) -> None:
    if not isinstance(value, Evidence):
        raise TypeError(f"{name}: expected Evidence; got {type(value).__name__}; pass what an estimator returned.")
    if not value.is_bound:
        raise ValueError(
            f"{name}: expected an estimate that is unbiased in p(x); got {value.method[0]}; use log_evidence."
        )
    if value.observed.kind == "factor":
        raise ValueError(
            f"{name}: expected evidence of data that can be compared; got a likelihood that is a pyro.factor, "
            "which shows none; write it as a distribution with obs=x."
        )


def _refuse_other_data(a: Evidence, b: Evidence) -> None:
    one, other = a.observed, b.observed
    if one.kind != other.kind:
        raise ValueError(
            f"a, b: expected evidence of one kind; got a {one.kind} and a {other.kind}, whose difference depends on "
            "the unit of x; evaluate likelihoods of the same kind of data."
        )
    if one.fingerprint != other.fingerprint:
        raise ValueError(
            f"a, b: expected evidence of the same data; got observed values that differ ({len(a)} data of "
            f"{one.num_dims} numbers, {len(b)} of {other.num_dims}): other data, another order or "
            "another binarization; evaluate both models on one tensor."
        )
