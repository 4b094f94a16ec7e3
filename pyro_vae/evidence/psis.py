"""Pareto k-hat: whether the weights of a run have a finite variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae import _checks

__all__ = ["khat_threshold", "pareto_khat", "tail_length"]

MIN_SAMPLES = 25
ROUNDING = 1e-4  # of the largest weight: in float32, log densities of some hundred nats are no more exact


def pareto_khat(log_weights: Tensor) -> Tensor:
    r"""Fit the shape $\hat k$ of a generalized Pareto distribution to the largest importance weights of each datum.

    Weights with $k < 1/2$ have a finite variance; above it the error of an estimate from them is larger than it looks
    (`khat_threshold`).

    Args:
        log_weights: `(K,)` or `(K, N)`.

    Returns:
        `()` or `(N,)`, float64. The tail is of $\min(K / 5, 3 \sqrt K)$ draws. NaN for fewer than 25 draws or
        where every weight is zero; infinity where four weights or fewer stand above the rest; 0 where the tail's
        weights are equal to 1e-4, which is rounding in float32.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling; Zhang and Stephens (2009).

    Examples:
        >>> from torch.distributions import Pareto
        >>> draws = Pareto(torch.tensor(1.0), torch.tensor(2.0)).sample((100_000,))  # k = 1 / 2
        >>> bool((pareto_khat(draws.log()) - 0.5).abs() < 0.15)
        True
    """
    log_weights = _checks.tensor("log_weights", log_weights).double()
    num_samples = len(log_weights)
    columns = log_weights.reshape(num_samples, -1)
    if num_samples < MIN_SAMPLES:
        khat = torch.full((columns.shape[1],), math.nan, dtype=torch.float64)
    else:
        khat = khat_of_top(columns.topk(tail_length(num_samples) + 1, dim=0).values)
    return khat.reshape(log_weights.shape[1:])


def tail_length(num_samples: int) -> int:
    """Return how many of the largest weights are fitted."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """$\\min(1 - 1 / \\log_{10} K, 1/2)$: below it weights have a variance, and K draws are enough to tell."""
    return min(1 - 1 / math.log10(num_samples), 0.5) if num_samples > 1 else -math.inf


def khat_of_top(top: Tensor) -> Tensor:
    """Return k-hat `(N,)` from the largest log weights `(M + 1, N)` in falling order; the last one is the cutoff."""
    relative = (top - top[0]).exp()
    excess = (relative[:-1] - relative[-1]).flip(0)
    excess = excess.where(excess[-1] > ROUNDING, 0.0)
    excess = excess.where(excess > 1e-12, 0.0)
    num_above = (excess > 0).sum(0)
    khat = torch.where(num_above == 0, 0.0, torch.inf).double()
    khat[torch.isneginf(top[0]) | top[0].isnan()] = math.nan
    for number in num_above[num_above > 4].unique().tolist():  # one batch, but for ties
        of_this = num_above == number
        khat[of_this] = _fit_shape(excess[-number:, of_this])
    return khat


def _fit_shape(x: Tensor) -> Tensor:
    """Fit the shape of a generalized Pareto distribution to exceedances `(M, N)` in rising order.

    Like `pyro.ops.stats.fit_generalized_pareto`, for many data at a time.
    """
    num = len(x)
    grid_size = 30 + int(math.sqrt(num))
    steps = 1 - (grid_size / (torch.arange(1, grid_size + 1, dtype=x.dtype, device=x.device) - 0.5)).sqrt()
    b = steps[:, None] / (3 * x[int(num / 4 - 0.5)]) + 1 / x[-1]
    k = torch.stack([torch.log1p(-each * x).mean(0) for each in b])
    log_likelihood = num * ((-b / k).log() - k - 1)
    b = (log_likelihood.softmax(0) * b).sum(0)
    k = torch.log1p(-b * x).mean(0)
    return (k * num + 5) / (num + 10)  # as if there were ten more draws with k = 1 / 2
