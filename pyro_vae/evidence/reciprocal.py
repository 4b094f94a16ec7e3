"""log p(x) from draws of the posterior: the estimator of Kingma and Welling's appendix D."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae.evidence.annealing import Annealing, block_size
from pyro_vae.evidence.estimator import Estimator, Found, Task, evaluate
from pyro_vae.evidence.gaussians import FullNormal
from pyro_vae.evidence.posterior import chain_diagnostics, chains
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.weights import Estimate, estimate
from pyro_vae.program.core import Program
from pyro_vae.program.tiles import Block

__all__ = ["Reciprocal", "reciprocal_importance_sampling"]

MAX_DIM = 5


@refusing_unknown_options
def reciprocal_importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 500,
    num_chains: int = 4,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
) -> Evidence:
    r"""Estimate log p(x) by $-\log \frac{1}{L} \sum_l \frac{q(z_l)}{p(x, z_l)}$, $z_l \sim p(z|x)$, for few latent
    numbers.

    Half of each datum's HMC draws fit a Gaussian q; the other half are averaged. As $E\, q / p(x, z) = 1 /
    p(x)$, the estimate of log p(x) is too *high* in expectation, by Jensen's inequality, where importance sampling
    and AIS are too low. It has no certified lower bound, and a q with heavier tails than p(z|x) gives it an infinite
    variance. It is here for comparison; `log_evidence` is better in every other respect.

    Args:
        model, guide: a Pyro program and its guide, with at most five continuous latent numbers a datum.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        num_samples: draws of each chain.
        num_chains: chains for each datum.
        seed: fixes the noise.
        plate, first_index, kwargs: as in `importance_sampling`.

    Returns:
        `Evidence`, never `reliable`: its error assumes independent draws.

    Raises:
        TypeError, ValueError: as `ais`; for more than five latent numbers.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, appendix D; Gelfand and Dey (1994).
    """
    num_samples = _checks.whole_number("num_samples", num_samples, minimum=8)
    task = Task.of(model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index)
    _refuse_many_dimensions(task.require_view().dim)
    return evaluate(Reciprocal(Annealing("laplace", 50, num_chains), num_samples), task)


class _Part(NamedTuple):
    """What chains say of the data of one block."""

    estimate: Estimate
    rhat: Tensor
    num_evaluations: Tensor


@dataclass(frozen=True)
class Reciprocal(Estimator[_Part]):
    """The mean of q(z) / p(x, z) over draws of the posterior, as an estimator."""

    annealing: Annealing
    draws_of_each: int
    is_bound = False

    @property
    def half(self) -> int:
        return self.draws_of_each // 2

    @property
    def num_samples(self) -> int:
        return self.annealing.num_chains * (self.draws_of_each - self.half)

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_samples": self.draws_of_each, "num_chains": self.annealing.num_chains}

    def block_size(self, program: Program) -> int:
        return block_size(program, self.annealing.num_chains)

    def measure(self, block: Block, region: Region, task: Task) -> _Part:
        draws, u, _, spent = chains(block, region, self.annealing, self.draws_of_each, task.seed)
        log_joint = (draws.log_prior + draws.log_likelihood).unflatten(0, (self.annealing.num_chains, -1))
        fitted = _fit_gaussian(u[:, : self.half].flatten(0, 1))
        rest = u[:, self.half :].flatten(0, 1)
        _, stretch = region.view.unpack(rest.to(region.view.device))
        found = estimate(fitted.log_prob(rest) - (log_joint[:, self.half :].flatten(0, 1) + stretch.cpu()))
        upside_down = found._replace(
            log_evidence=-found.log_evidence, jackknife=-found.jackknife, reliable=torch.zeros_like(found.reliable)
        )
        return _Part(upside_down, chain_diagnostics(u)[0], spent)

    def estimate_of(self, part: _Part) -> Estimate:
        return part.estimate

    def found(self, parts: list[_Part], task: Task) -> Found:
        method = ("reciprocal importance sampling (biased upwards)",) * task.program.num_data
        return Found(
            Estimate(*map(torch.cat, zip(*(part.estimate for part in parts), strict=True))),
            torch.cat([part.num_evaluations for part in parts]),
            method,
            diagnostics={"rhat": torch.cat([part.rhat for part in parts])},
        )


def _refuse_many_dimensions(dim: int) -> None:
    if dim > MAX_DIM:
        raise ValueError(
            f"model: expected at most {MAX_DIM} latent numbers a datum for this estimator; got {dim}; use "
            "log_evidence or ais."
        )


def _fit_gaussian(u: Tensor) -> FullNormal:
    """Fit a Gaussian to the draws `(S, N, D)` of each datum."""
    loc = u.mean(0)
    centred = (u - loc).movedim(0, 1)
    covariance = centred.mT @ centred / (len(u) - 1)
    jitter = 1e-12 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return FullNormal(loc, torch.linalg.cholesky(covariance + jitter * torch.eye(u.shape[-1], dtype=u.dtype)))
