"""log p(x) by annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae._options import refusing_unknown_options
from pyro_vae.evidence.annealing import (
    Annealing,
    anneal,
    annealed,
    block_size,
    end_draws,
)
from pyro_vae.evidence.bounds import Bound
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.elsewhere import Elsewhere
from pyro_vae.evidence.estimator import Estimator, Found, Task, evaluate
from pyro_vae.evidence.path import START_NAMES
from pyro_vae.evidence.region import Region
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.weights import Estimate
from pyro_vae.program.core import Program
from pyro_vae.program.joint import Compile
from pyro_vae.program.tiles import Block, noise, refuse_nan

__all__ = ["AIS", "ais"]


@refusing_unknown_options
def ais(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    joint: bool = False,
    num_temperatures: int = 100,
    num_chains: int = 16,
    num_leapfrog: int = 3,
    start: str = "gaussian",
    schedule: str = "adaptive",
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    chunk_size: int | None = None,
    compile: Compile = "auto",
    partial: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Evidence:
    r"""Estimate log p(x) of each datum by annealed importance sampling.

    Chains go from a density $f_0$ that can be drawn from to $f_1(u) = p(x, u)$ over $f_0^{1 - \beta_t} f_1^{\beta_t}$,
    $0 = \beta_0 < \dots < \beta_T = 1$, with a transition of Hamiltonian Monte Carlo at each temperature between.
    $\log w = \sum_t (\beta_t - \beta_{t-1}) (\log f_1 - \log f_0)(u_{t-1})$ has $E w = p(x)$ for every T. So the
    estimate $\log \frac{1}{K} \sum_k w_k$ over K chains is a bound in expectation, as in importance sampling, which is
    the case T = 1. u are the latents on an unconstrained scale (`biject_to`).

    A pilot run finds each datum's step sizes, and the temperatures of the adaptive schedule. They are then frozen, and
    the measured run has fresh noise: it never adapts to what it sees.

    Args:
        model, guide: a Pyro program and its guide, or None for the prior; with continuous latents.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        num_temperatures: T. The variance of log w falls as 1/T once T is large.
        num_chains: K, for each datum; 2 or more.
        num_leapfrog: leapfrog steps of each transition.
        start: $f_0$: "laplace", a Gaussian at the datum's posterior mode, exact where the posterior is one; "gaussian",
            the same fitted further by variational inference (`proposals.Gaussian`): 320 more evaluations or so, and
            log weights of less variance where the posterior is no Gaussian; "guide"; "prior", which takes about ten
            times more temperatures, and finds modes that the others may miss. The metric of the chains is that of the
            Gaussian; from the guide or the prior, it moves from the start's to that of Laplace's.
        schedule: "linear"; "sigmoid", denser at both ends; "adaptive", from the spread that the pilot saw.
        seed: fixes the noise.
        compile: as in `importance_sampling`. Rounding differs, and after many steps so do the chains: with one seed,
            compiled and eager results differ, and are equally good.
        joint, plate, first_index, num_posterior_draws, chunk_size, partial, progress, kwargs: as in
            `importance_sampling`.

    Returns:
        `Evidence`. Its `diagnostics` are `acceptance` `(N,)`, `step_size` `(N,)` at the last temperature, and
        `log_weights` `(K, N)` of the chains, whose spread shows the quality of the annealing; `converged` `(N,)` of the
        search for the mode; and `contradicted` `(N,)`, where draws from elsewhere found significantly more. `reliable`
        needs an ESS above 3 K / 4 and no contradiction. Fewer than four chains are never reliable and have no error.

    Raises:
        TypeError, ValueError: as `importance_sampling`; for discrete latents, and supports that depend on latents.

    References:
        Neal (2001), Annealed importance sampling; Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative
        analysis of decoder-based generative models.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> evidence = ais(model, guide, torch.tensor([0.0, 1.0]), num_temperatures=20, start="guide")
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))
        >>> bool(((evidence.log_evidence - exact).abs() < 0.2).all())
        True
    """
    estimator = AIS(Annealing(start, num_temperatures, num_chains, num_leapfrog, schedule))
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index,
        num_posterior_draws=num_posterior_draws, joint=joint, chunk_size=chunk_size, compile=compile,
        evaluations=estimator.annealing.work, partial=partial, progress=progress,
    )  # fmt: skip
    return evaluate(estimator, task)


class _Part(NamedTuple):
    """A measured run of one block."""

    log_weights: Tensor
    acceptance: Tensor
    step_size: Tensor
    """At the last temperature."""
    seen: Elsewhere
    converged: Tensor
    num_evaluations: Tensor
    draws: Draws | None


@dataclass(frozen=True)
class AIS(Estimator[_Part]):
    """Annealed importance sampling, as an estimator."""

    annealing: Annealing

    @property
    def num_samples(self) -> int:
        return self.annealing.num_chains

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self.annealing)

    def block_size(self, program: Program) -> int:
        return block_size(program, self.annealing.num_chains)

    def measure(self, block: Block, region: Region, task: Task) -> _Part:
        prepared = self.annealing.prepared(block, region, task.seed)
        with noise(block.program, task.seed, block.place):
            trajectory = anneal(prepared.path, prepared.noise, prepared.settings)
            draws = end_draws(prepared.path.view, trajectory, prepared.noise, task.num_posterior_draws)
        refuse_nan(trajectory.log_weights, block.rows)
        return _Part(
            trajectory.log_weights, trajectory.acceptance, prepared.settings.step_sizes[-1], prepared.seen,
            prepared.converged, prepared.num_evaluations, draws,
        )  # fmt: skip

    def estimate_of(self, part: _Part) -> Estimate:
        return annealed(part.log_weights)

    def found(self, parts: list[_Part], task: Task) -> Found:
        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name).cpu() for part in parts], dim=-1)

        num_chains = self.annealing.num_chains
        log_weights = joined("log_weights")
        estimate = annealed(log_weights)
        contradicted = Elsewhere.joined([part.seen for part in parts]).contradicts(estimate)
        estimate = estimate._replace(reliable=estimate.reliable & ~contradicted)
        draws = Draws.joined([part.draws for part in parts])
        spent = joined("num_evaluations")
        return Found(
            estimate,
            spent + (0 if draws is None else len(draws.log_prior)),
            (f"AIS from {START_NAMES[self.annealing.start]}",) * task.program.num_data,
            draws,
            bounds={num_chains: Bound(num_chains, estimate.log_evidence, estimate.std_error)},
            diagnostics={
                "acceptance": joined("acceptance"),
                "step_size": joined("step_size"),
                "log_weights": log_weights,
                "contradicted": contradicted,
                "converged": joined("converged"),
            },
        )
