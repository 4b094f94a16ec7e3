"""log p(x) by importance sampling from the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae.evidence.result import Bound, Evidence
from pyro_vae.program import Program, tiles

__all__ = ["importance_sampling"]


def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    bounds: Iterable[int] | None = None,
    plate: str | None = None,
    first_index: int = 0,
    chunk_size: int | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Evidence:
    r"""log p(x) of each datum, $\log \frac{1}{K} \sum_k w_k$ with $w_k = p(x, z_k) / q(z_k|x)$ and $z_k \sim q(z|x)$.

    For any Pyro model and guide whose sites all lie in one plate over data. Draws are made in tiles of fixed size, so
    memory does not grow with `num_samples`, and the numbers of a datum depend on the seed and on its place alone:
    neither on `chunk_size` (to float32 rounding), nor on the data before and after it. (There are two exceptions. A
    guide that has parameters for each datum runs on all data together, and its tiles span them all; and a sampler that
    rejects, such as Gamma's, uses up a varying share of a tile's noise.)
    Parameters are not changed, and torch's generator is left as it was. Scales (`poutine.scale`, a subsampled plate)
    are weights of an objective, and no part of log p(x).

    Args:
        model, guide: a Pyro program and its guide; `vae.model` and `vae.guide`, or any other.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first.
        num_samples: the number K of draws for each datum.
        seed: fixes the draws.
        bounds: for which k to estimate L_k beside k = 1 and K; 1, 5, 10, 50, 100, ... by default.
        plate: the name of the plate over data; needed only where several hold all sites.
        first_index: the place of the first datum, for data that are evaluated in parts: `x[100:200]` with
            `first_index=100` gives the numbers that it has in all of x. Parts with the same place share their noise,
            and must not be pooled in one error or certificate.
        chunk_size: how many (datum, draw) pairs the model is evaluated on at a time, if fewer than a tile must be.
        progress: show a bar.
        kwargs: further arguments of both, passed on as they are.

    Returns:
        `Evidence`, with tensors `(N,)` of float64 in nats.

    Raises:
        TypeError, ValueError: for a global latent, a missing or subsampled plate, a guide that misses a site or has a
            point for a density, data that are no rows or outside their support, modules in training mode whose noise is
            shared, weights that are NaN, numbers that are not whole.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, section 3.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> evidence = importance_sampling(model, guide, torch.tensor([0.0, 1.0]), num_samples=1000)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))
        >>> bool(((evidence.log_evidence - exact).abs() < 4 * evidence.std_error).all())
        True
    """
    num_samples = _checks.whole_number("num_samples", num_samples)
    seed = _checks.seed(seed)
    first_index = _checks.whole_number("first_index", first_index, minimum=0)
    if chunk_size is not None:
        _checks.whole_number("chunk_size", chunk_size)
    ks = _bounds_to_estimate(bounds, num_samples)
    program = Program.of(model, guide, args, kwargs, plate)
    finished: list[_Totals] = []
    with tqdm(total=program.num_data * num_samples, disable=not progress, unit="draw", unit_scale=True) as bar:
        for (draws, rows), densities in tiles(program, num_samples, seed, first_index, chunk_size):
            if draws.start == 0:
                finished.append(_Totals(ks))
            finished[-1].add(densities.weight)
            bar.update((draws.stop - draws.start) * (rows.stop - rows.start))
    return _evidence(finished, ks, num_samples, seed)


def _bounds_to_estimate(bounds: Iterable[int] | None, num_samples: int) -> tuple[int, ...]:
    if bounds is None:
        decades = range(math.ceil(math.log10(num_samples)) + 1)
        bounds = [k for decade in decades for k in (10**decade, 5 * 10**decade) if 2 * k <= num_samples]
    ks = {1, num_samples, *(_checks.whole_number("bounds", k) for k in bounds)}
    if max(ks) > num_samples:
        raise ValueError(f"bounds: expected each k to be at most num_samples={num_samples}; got {max(ks)}; draw more.")
    return tuple(sorted(ks))


def _evidence(finished: list[_Totals], ks: tuple[int, ...], num_samples: int, seed: int) -> Evidence:
    log_sum = torch.cat([totals.log_sum for totals in finished])
    log_sum_of_squares = torch.cat([totals.log_sum_of_squares for totals in finished])
    log_evidence = log_sum - math.log(num_samples)
    ess = (2 * log_sum - log_sum_of_squares).exp().nan_to_num(nan=0.0)
    excess = (num_samples / ess - 1).clamp(min=0)
    std_error = (excess / (num_samples - 1)).sqrt() if num_samples > 1 else torch.full_like(ess, math.nan)
    all_bounds = {k: Bound(k, *_joined(finished, i)) for i, k in enumerate(ks)}
    all_bounds[num_samples] = Bound(num_samples, log_evidence, std_error)
    return Evidence(log_evidence, std_error, ess, num_samples, seed, all_bounds)


def _joined(finished: list[_Totals], i: int) -> tuple[Tensor, Tensor]:
    return (
        torch.cat([totals.groups[i].mean for totals in finished]),
        torch.cat([totals.groups[i].std_error for totals in finished]),
    )


class _Totals:
    """What is kept of the log weights of some data while draws go by."""

    def __init__(self, ks: tuple[int, ...]) -> None:
        self.log_sum = torch.tensor(-math.inf, dtype=torch.float64)
        self.log_sum_of_squares = self.log_sum
        self.groups = [_Groups(k) for k in ks]

    def add(self, log_weight: Tensor) -> None:
        """Take in log weights `(draws, data)`."""
        log_weight = log_weight.cpu()
        self.log_sum = torch.logaddexp(self.log_sum, log_weight.logsumexp(0))
        self.log_sum_of_squares = torch.logaddexp(self.log_sum_of_squares, (2 * log_weight).logsumexp(0))
        for group in self.groups:
            group.add(log_weight)


class _Groups:
    """Mean and variance over groups of k draws of log(sum w / k)."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.num_groups = 0
        self.num_open = 0  # draws in the group that is not yet full, and the log of their sum
        self.open = torch.tensor(-math.inf, dtype=torch.float64)

    def add(self, log_weight: Tensor) -> None:
        """Take in log weights `(draws, data)`; a group may go on in the next call."""
        head = -self.num_open % self.k
        full = max(0, len(log_weight) - head) // self.k
        tail = head + full * self.k
        self._extend(log_weight[:head])
        if full:
            self._close(log_weight[head:tail].unflatten(0, (full, self.k)).logsumexp(1))
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
            # Sums are taken from the first value, so that equal weights have a variance of exactly zero.
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
