"""log p(x) of each datum by the cheapest estimator that pilot runs find accurate enough for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae.evidence.annealing import block_size
from pyro_vae.evidence.budget import GUIDE_PILOT, NUM_CHAINS, Budget
from pyro_vae.evidence.cascade import Cascade, Result
from pyro_vae.evidence.collect import GuideTerms
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.estimator import Estimator, Found, Task, evaluate
from pyro_vae.evidence.plan import planned
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.weights import Estimate
from pyro_vae.program.core import Program
from pyro_vae.program.joint import Compile
from pyro_vae.program.tiles import Block

__all__ = ["Auto", "log_evidence"]


Scope = Literal["datum", "mean"]


@refusing_unknown_options
def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    joint: bool = False,
    tolerance: float = 0.05,
    tolerance_of: Scope = "datum",
    max_evaluations: int = 6000,
    max_evaluations_of: Scope = "mean",
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    compile: Compile = "auto",
    partial: str | PathLike[str] | None = None,
    progress: bool = False,
    plan: bool = False,
) -> Evidence | Any:
    r"""Estimate log p(x) of each datum by the cheapest of three estimators that keeps the error within a tolerance.

    For each datum a pilot run draws from the guide; where that will not do, from Laplace's Gaussian; and where that
    will not do either, the Gaussian is fitted further by variational inference (`proposals.Gaussian`), and a short
    annealing from it shows how many temperatures are needed. The pilots pick the estimator: importance sampling where
    k-hat is low (below 0.3 for the guide, 0.1 for Laplace's) and the draws that the tolerance takes are affordable,
    else AIS. A guide that looks good may sit on one of several modes: 126 evaluations go to climbs from afar, and
    where one ends in mass that the guide's draws have missed, Laplace's Gaussians at all modes that are found come
    next. Where other draws found significantly more than Laplace's Gaussian, which then missed a mode, a mixture of it
    and the guide takes its place in importance sampling, and, unless the fitted Gaussian is seen to have found more,
    as the start of AIS. Where four modes or more were found, of which few chains would reach all, draws from this
    mixture, of fitted Gaussians if the budget pays for them, get what is left.

    The estimator then runs once, with frozen settings and fresh noise. Its result is reported even where it missed the
    tolerance with budget left: to go on after a look at it would bias it. As pilots only decide, and only the measured
    run counts, $E \hat p(x) = p(x)$ holds for each datum, and the certificate needs no correction.

    A datum whose error stays above the tolerance, or whose estimate is not `reliable`, is flagged:
    `diagnostics["reached"]` is False, and the summary counts them. So is one for which draws from the guide or around
    it found significantly more than the measured run (`diagnostics["contradicted"]`). A mode that no draw and
    no climb came near stays unnoticed.

    Args:
        model, guide: a Pyro program and its guide, or None for the prior. Discrete latents of few joint
            values are summed; others are drawn.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        tolerance: the standard error wanted of each datum's log p(x), nats. That of the mean over data is smaller by
            the square root of their number.
        tolerance_of: `"mean"` where only the data set's figure is needed: the tolerance t is then that of the mean over
            N data. Each datum gets the smaller of $t \sqrt N$, which averages to t, and $\sqrt t$, which keeps the
            bias of a logarithm, half its variance, below t / 2. That is far cheaper.
        max_evaluations: the most evaluations of log p(x, z) to spend on a datum in the mean, pilots included. Data that
            need few leave theirs to others of their block of neighbours (of 128, on a CPU), of which none takes more
            than four times as many. What they get depends on pilots alone. Where it does not pay
            for Laplace's Gaussian (4 a latent number, and 700 more) or for annealing after it (about 1,400 and
            `num_posterior_draws`), the rest goes to draws from the proposal at hand; after Laplace's, of which few
            draws count, to draws from the fitted Gaussian. A search for modes that has begun is finished, with 128
            draws after it, and can take a datum beyond a small budget: `num_evaluations` says so.
        max_evaluations_of: `"datum"` for a limit that each datum keeps, and numbers that depend on the seed and its
            place alone. With `"mean"` they depend on the data of the same block too, of which the others take a part.
            With a guide that is not amortized it is always that of each datum.
        seed: fixes the noise.
        compile: as in `ais`.
        joint, plate, first_index, num_posterior_draws, partial, progress, kwargs: as in `importance_sampling`.
        plan: True to evaluate a twentieth of the data, the first, and return a `Plan`: how long all would take.

    Returns:
        `Evidence`; `method` names each datum's estimator, `num_evaluations` its cost, `diagnostics["reached"]` `(N,)`
        whether the tolerance was reached. With `plan=True` a `Plan`.

    Raises:
        TypeError, ValueError: as `ais`; for a budget that does not even pay for the pilots.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> evidence = log_evidence(model, guide, torch.tensor([0.0, 1.0]), tolerance=0.05)
        >>> bool(evidence.diagnostics["reached"].all()), evidence.method[0]
        (True, 'importance sampling from the guide')
    """
    _checks.choice("tolerance_of", tolerance_of, get_args(Scope))
    _checks.choice("max_evaluations_of", max_evaluations_of, get_args(Scope))
    estimator = Auto(
        _checks.positive("tolerance", tolerance),
        _checks.whole_number("max_evaluations", max_evaluations),
        max_evaluations_of,
        always_seeks_modes=joint,
    )
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index,
        num_posterior_draws=num_posterior_draws, joint=joint, compile=compile,
        evaluations=max_evaluations, partial=partial, progress=progress,
    )  # fmt: skip
    if tolerance_of == "mean":
        estimator = estimator.for_mean_of(task.program.num_data)
    return planned(estimator, task) if plan else evaluate(estimator, task)


class _Part(NamedTuple):
    """What was found for the data of one block, in any order, and the guide's ELBO."""

    results: list[Result]
    terms: GuideTerms

    @property
    def order(self) -> Tensor:
        """Where the results have the data of the block, in their order."""
        return torch.cat([result.columns for result in self.results]).argsort()


@dataclass(frozen=True)
class Auto(Estimator[_Part]):
    """The cheapest estimator that is accurate enough for a datum, as an estimator."""

    tolerance: float = 0.05
    max_evaluations: int = 6000
    max_evaluations_of: Scope = "mean"
    always_seeks_modes: bool = False
    tolerance_of_mean: float | None = None
    """The tolerance that was asked for, if it was that of the mean over data."""

    def __post_init__(self) -> None:
        if self.max_evaluations < 2 * GUIDE_PILOT:
            raise ValueError(
                f"max_evaluations: expected at least {2 * GUIDE_PILOT}, of which half are a pilot run; got "
                f"{self.max_evaluations}; allow more, or use importance_sampling."
            )

    def for_mean_of(self, num_data: int) -> Auto:
        """Take the tolerance for that of the mean over so many data."""
        of_each = min(self.tolerance * num_data**0.5, max(self.tolerance, self.tolerance**0.5))
        return replace(self, tolerance=of_each, tolerance_of_mean=self.tolerance)

    @property
    def needs_view(self) -> bool:
        return False

    @property
    def settings(self) -> dict[str, Any]:
        of_mean = {} if self.tolerance_of_mean is None else {"tolerance_of_mean": self.tolerance_of_mean}
        budget = {"max_evaluations": self.max_evaluations, "max_evaluations_of": self.max_evaluations_of}
        return {"tolerance": self.tolerance, **of_mean, **budget}

    def block_size(self, program: Program) -> int:
        return block_size(program, NUM_CHAINS)

    def measure(self, block: Block, region: Any, task: Task) -> _Part:
        amortized = task.program.structure.amortized
        budget = Budget(
            self.tolerance, self.max_evaluations, task.num_posterior_draws, amortized,
            is_shared=amortized and self.max_evaluations_of == "mean", always_seeks_modes=self.always_seeks_modes,
        )  # fmt: skip
        cascade = Cascade(block, region, budget, task.seed)
        cascade.run()
        return _Part(cascade.results, cascade.terms)

    def estimate_of(self, part: _Part) -> Estimate:
        estimates = zip(*(result.estimate for result in part.results), strict=True)
        return Estimate(*(torch.cat(each)[part.order] for each in estimates))

    def found(self, parts: list[_Part], task: Task) -> Found:
        """Put the results in the order of the data."""
        order = [part.order for part in parts]

        def joined(of_result: Callable[[Result], Tensor]) -> Tensor:
            each = (torch.cat([of_result(result) for result in part.results], dim=-1) for part in parts)
            return torch.cat([values[..., index] for values, index in zip(each, order, strict=True)], dim=-1)

        estimate = Estimate(*map(torch.cat, zip(*map(self.estimate_of, parts), strict=True)))
        names = [[result.method for result in part.results for _ in result.columns] for part in parts]
        draws = [Draws.joined([result.draws for result in part.results]) for part in parts]
        return Found(
            estimate,
            joined(lambda result: result.num_evaluations),
            tuple(named[i] for named, index in zip(names, order, strict=True) for i in index.tolist()),
            Draws.joined(draws, order),
            GuideTerms.joined([part.terms for part in parts]),
            diagnostics={
                "reached": estimate.reliable & (estimate.std_error <= self.tolerance),
                "contradicted": joined(lambda result: result.contradicted),
            },
        )
