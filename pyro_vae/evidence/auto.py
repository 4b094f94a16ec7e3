"""log p(x) of each datum by the first estimator, from cheap to dear, that pilot runs find accurate enough for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae.evidence.ais import (
    PILOT_CHAINS,
    PILOT_TEMPERATURES,
    Annealing,
    Path,
    anneal,
    annealed,
    block_size,
    end_draws,
    laplace_path,
    pilot,
)
from pyro_vae.evidence.importance import GuideTerms, Reservoir
from pyro_vae.evidence.laplace import Gaussian, LaplaceFit, fit_laplace, guide_moments, laplace_evaluations
from pyro_vae.evidence.result import Draws, Evidence, Observed
from pyro_vae.evidence.weights import Estimate, Totals
from pyro_vae.joint import Joint, joint_of
from pyro_vae.program import Program
from pyro_vae.tiling import Block, Draw, Noise, blocks, evaluating, kept, noise, refuse_nan, seed_for, tiles_of
from pyro_vae.unconstrained import Unconstrained

__all__ = ["log_evidence"]

GUIDE_PILOT = 200
LAPLACE_PILOT = 200
NUM_CHAINS, NUM_LEAPFROG = 16, 3
LARGEST_KHAT = 0.3  # of a pilot run, whose k-hat is rough: well below what the measured run is held to
SAFETY = 3.0  # times the variance that a pilot run saw, which is rough
FEWEST_TEMPERATURES = 5  # fewer are not worth their pilot run
LEVELS = 4  # how many lengths of annealing there are, each half the next


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    tolerance: float = 0.05,
    max_evaluations: int = 6000,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    compile: bool = False,
    progress: bool = False,
    **kwargs: Any,
) -> Evidence:
    r"""log p(x) of each datum, by the cheapest of three estimators whose standard error is within a tolerance.

    For each datum a pilot run draws from the guide, and where that would not do, from Laplace's Gaussian, and where
    that would not do either, a short annealing looks how many temperatures are needed. What the pilots saw picks the
    estimator: importance sampling where their k-hat is below 0.3 and so many draws as the tolerance takes are
    affordable, else AIS; and the guide with all that is left where it found significantly more than Laplace's Gaussian,
    which then has missed a mode. Then the estimator runs once, with frozen settings and fresh noise, and its result is
    reported whatever it is, also where it has missed the tolerance with some of the budget left: to go on after a look
    at it would bias it. As pilots decide and only the measured run counts, $E \hat p(x) = p(x)$ still holds for
    each datum, and the certificate needs no correction.

    A datum whose error stays above the tolerance, or whose estimate is not `reliable`, is flagged:
    `diagnostics["reached"]` is False, and the summary counts them. So is one for which the guide's pilot run found
    significantly more than the measured run (`diagnostics["contradicted"]`). A mode that neither came near shows
    nowhere.

    Args:
        model, guide: a Pyro program and its guide, with continuous latents.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first.
        tolerance: the standard error wanted of each datum's log p(x), nats. That of the mean over data is smaller by
            the square root of their number.
        max_evaluations: of log p(x, z), the most that may be spent on a datum, pilots included. Where it does not pay
            for Laplace's Gaussian (6 a latent number, and 420 more) or for annealing after it (about 700 and
            `num_posterior_draws`), the rest goes to draws from what there is.
        seed: fixes the noise.
        compile: as of `ais`; for all but Laplace's Gaussian, which needs second derivatives.
        plate, first_index, num_posterior_draws, progress, kwargs: as of `importance_sampling`.

    Returns:
        `Evidence`; `method` names each datum's estimator, `num_evaluations` its cost, `diagnostics["reached"]` `(N,)`
        whether the tolerance was reached.

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
    tolerance = _checks.positive("tolerance", tolerance)
    max_evaluations = _checks.whole_number("max_evaluations", max_evaluations)
    seed = _checks.seed(seed)
    first_index = _checks.whole_number("first_index", first_index, minimum=0)
    num_posterior_draws = _checks.whole_number("num_posterior_draws", num_posterior_draws, minimum=0)
    program = Program.of(model, guide, args, kwargs, plate)
    dim = Unconstrained.of(program).dim
    plan = _Plan(tolerance, max_evaluations, dim, num_posterior_draws, program.structure.amortized)
    observed, joint = Observed.of(program), joint_of(compile=compile)
    jobs = []
    with tqdm(total=program.num_data, disable=not progress, unit="datum") as bar:
        for block in blocks(program, block_size(program, NUM_CHAINS), first_index):
            jobs.append(_Job(block, plan, seed, joint))
            jobs[-1].run()
            bar.update(len(block.rows))
    return _evidence(observed, jobs, plan, seed)


@dataclass(frozen=True)
class _Plan:
    """What may be spent, and what the pilots make of it."""

    tolerance: float
    max_evaluations: int
    dim: int
    num_posterior_draws: int
    amortized: bool

    def __post_init__(self) -> None:
        if self.max_evaluations < 2 * GUIDE_PILOT:
            raise ValueError(
                f"max_evaluations: expected at least {2 * GUIDE_PILOT}, of which half are a pilot run; got "
                f"{self.max_evaluations}; allow more, or use importance_sampling."
            )

    @property
    def laplace(self) -> int:
        """The price of Laplace's Gaussian."""
        return laplace_evaluations(self.dim)

    @property
    def annealing_pilot(self) -> int:
        return PILOT_CHAINS * (1 + PILOT_TEMPERATURES * NUM_LEAPFROG)

    @property
    def most_temperatures(self) -> int:
        """What is left after all pilots pays for so many."""
        pilots = GUIDE_PILOT + self.laplace + LAPLACE_PILOT + self.annealing_pilot
        left = self.max_evaluations - pilots - self.num_posterior_draws
        return 1 + (left // NUM_CHAINS - 1) // NUM_LEAPFROG

    @property
    def has_laplace(self) -> bool:
        """Whether the budget goes that far."""
        return GUIDE_PILOT + self.laplace + 2 * LAPLACE_PILOT <= self.max_evaluations

    @property
    def has_annealing(self) -> bool:
        """Whether it goes so far."""
        return self.most_temperatures >= FEWEST_TEMPERATURES

    def num_draws(self, pilot: Estimate, num_pilot: int) -> Tensor:
        """How many draws take the error below the tolerance, as a power of two; infinity where that cannot be told."""
        variance = num_pilot / pilot.ess.clamp(min=1) - 1
        needed = (SAFETY * variance / self.tolerance**2).clamp(min=128).log2().ceil().exp2()
        return self._for_all(needed.where(pilot.khat < LARGEST_KHAT, torch.inf))

    def num_temperatures(self, log_weights: Tensor) -> Tensor:
        """How many temperatures do, for the variance of log w falls with their number; one of a few lengths."""
        needed = SAFETY * PILOT_TEMPERATURES * log_weights.var(0) / (NUM_CHAINS * self.tolerance**2)
        chosen = torch.full_like(needed, self.most_temperatures)
        for length in [max(FEWEST_TEMPERATURES, self.most_temperatures >> i) for i in range(1, LEVELS)]:
            chosen = torch.where(needed <= length, float(length), chosen)
        return self._for_all(chosen)

    def _for_all(self, needed: Tensor) -> Tensor:
        """A guide with parameters for each datum runs on all data or on none: what the worst needs, all get."""
        return needed if self.amortized else needed.max().expand_as(needed)


class _Result(NamedTuple):
    """What one estimator found for some columns of a block."""

    columns: Tensor
    estimate: Estimate
    contradicted: Tensor
    method: str
    num_evaluations: int
    draws: Draws | None


@dataclass
class _Job:
    """The data of one block, which leave it one by one as an estimator is found for them."""

    block: Block
    plan: _Plan
    seed: int
    joint: Joint
    results: list[_Result] = field(default_factory=list)

    def run(self) -> None:
        everyone = self.block.asked_for
        self.terms, spent = GuideTerms(), GUIDE_PILOT
        self.seen = self._pilot(everyone, self._guide(everyone), GUIDE_PILOT, "guide pilot", self.terms)
        needed = self.plan.num_draws(self.seen, GUIDE_PILOT).to(everyone.device)
        left = self._sample(everyone, needed, self._guide, "the guide", spent)
        if not len(left):
            return
        if not self.plan.has_laplace:
            return self._spend_the_rest(left, self._guide, "the guide", spent)
        self.fit = self._laplace(left)
        spent += self.plan.laplace + LAPLACE_PILOT
        seen = self._pilot(left, self._gaussian(left), LAPLACE_PILOT, "Laplace pilot", GuideTerms())
        missed = self._missed_by(left, seen).to(left.device)
        self._spend_the_rest(left[missed], self._guide, "the guide", spent)
        needed = self.plan.num_draws(seen, LAPLACE_PILOT).to(left.device)[~missed]
        left = self._sample(left[~missed], needed, self._gaussian, "Laplace's Gaussian", spent)
        if self.plan.has_annealing and len(left):
            self._anneal(left, spent + self.plan.annealing_pilot)
        else:
            self._spend_the_rest(left, self._gaussian, "Laplace's Gaussian", spent)

    def _spend_the_rest(self, columns: Tensor, draw: Callable[[Tensor], Draw], name: str, spent: int) -> None:
        """On draws, where they will not do and nothing better can be paid for."""
        rest = torch.full_like(columns, self.plan.max_evaluations - spent)
        self._sample(columns, rest, draw, name, spent)

    def _missed_by(self, columns: Tensor, seen: Estimate) -> Tensor:
        """For which of them Laplace's Gaussian, and annealing from it, would miss what the guide finds."""
        return _is_above(self.seen.at(columns.cpu() - self.block.columns.start), seen) & self.plan.amortized

    @property
    def width(self) -> int:
        return self.block.program.num_data

    def _guide(self, columns: Tensor) -> Draw:
        return kept(self.block.program, self.block.program.draw, columns)

    def _laplace(self, columns: Tensor) -> LaplaceFit:
        """Laplace's Gaussians of these columns, in their places among all."""
        whole = Unconstrained.of(self.block.program)
        with noise(self.block.program, seed_for(self.seed, "where to start"), self.block.place):
            loc, variance = guide_moments(whole)
            gaussian, num_evaluations = fit_laplace(whole.at(columns), (loc[columns], variance[columns]))
        scale_tril = variance.sqrt().diag_embed()
        loc[columns], scale_tril[columns] = gaussian
        return LaplaceFit(Gaussian(loc, scale_tril), num_evaluations)

    def _numbers(self, columns: Tensor) -> Noise:
        return Noise(self.width, columns, self.plan.dim)

    def _view(self, columns: Tensor) -> Unconstrained:
        return Unconstrained.of(self.block.program.at(columns))

    def _gaussian(self, columns: Tensor) -> Draw:
        return self.fit.gaussian.at(columns).draw(self._view(columns), self._numbers(columns).normal)

    def _pilot(self, columns: Tensor, draw: Draw, num_samples: int, purpose: str, terms: GuideTerms) -> Estimate:
        totals, part = Totals(num_samples), self.block.part(columns)
        evaluate = evaluating(part.program, draw, self.joint)
        for tile in tiles_of(part, evaluate, num_samples, seed_for(self.seed, purpose), self.width):
            totals.add(tile.densities.weight)
            terms.add(tile.densities)
        return totals.estimate()

    def _sample(self, columns: Tensor, needed: Tensor, draw: Callable[[Tensor], Draw], name: str, spent: int) -> Tensor:
        """Importance sampling for the data that it serves; what is returned are the others."""
        affordable = spent + needed <= self.plan.max_evaluations
        for number in map(int, needed[affordable].unique().tolist()):
            chosen = columns[needed == number]
            totals, part = Totals(number), self.block.part(chosen)
            reservoir = Reservoir(self.plan.num_posterior_draws, self._numbers(chosen))
            # The number is part of the seed: places are counted in tiles, of which another number has more or fewer, so
            # that with one seed for all a tile here and one there could have the same noise.
            seed = seed_for(self.seed, f"measured, {number} from {name}")
            for tile in tiles_of(part, evaluating(part.program, draw(chosen), self.joint), number, seed, self.width):
                totals.add(tile.densities.weight)
                with noise(part.program, seed_for(seed, "resampling"), part.place * number + tile.draws.start):
                    reservoir.add(part.program, tile.densities, tile.latents)
            self._keep(chosen, totals.estimate(), f"importance sampling from {name}", spent + number, reservoir.draws)
        return columns[~affordable]

    def _anneal(self, columns: Tensor, spent: int) -> None:
        """AIS for all that are left."""
        path, numbers = self._path(columns)
        with noise(path.view.program, seed_for(self.seed, "pilot"), self.block.place):
            seen = pilot(path, numbers, PILOT_TEMPERATURES, PILOT_CHAINS, NUM_LEAPFROG)
        needed = self.plan.num_temperatures(seen.log_weights)
        for number in map(int, needed.unique().tolist()):
            these = needed == number
            path, numbers = self._path(columns[these])
            annealing = Annealing("laplace", number, NUM_CHAINS, NUM_LEAPFROG)
            with noise(path.view.program, seed_for(self.seed, f"measured, AIS, {number}"), self.block.place):
                trajectory = anneal(path, numbers, seen.at(these).settings(annealing))
                draws = end_draws(path.view, trajectory, numbers, self.plan.num_posterior_draws)
            refuse_nan(trajectory.log_weights, self.block.part(columns[these]).rows)
            total = spent + annealing.num_evaluations + self.plan.num_posterior_draws
            self._keep(columns[these], annealed(trajectory.log_weights), "AIS from Laplace's Gaussian", total, draws)

    def _path(self, columns: Tensor) -> tuple[Path, Noise]:
        numbers = self._numbers(columns)
        fit = LaplaceFit(self.fit.gaussian.at(columns), self.fit.num_evaluations)
        return laplace_path(self._view(columns), fit, numbers, self.joint), numbers

    def _keep(self, columns: Tensor, found: Estimate, method: str, spent: int, draws: Draws | None) -> None:
        columns = columns.cpu()
        contradicted = _is_above(self.seen.at(columns - self.block.columns.start), found)
        found = found._replace(reliable=found.reliable & ~contradicted)
        self.results.append(_Result(columns, found, contradicted, method, spent, draws))


def _is_above(pilot: Estimate, found: Estimate) -> Tensor:
    """Whether the guide's pilot run saw more than the measured run found, which then has missed a mode."""
    error = (pilot.std_error.square() + found.std_error.square()).sqrt().nan_to_num()
    return pilot.log_evidence > found.log_evidence + 4 * error + 0.01


def _evidence(observed: Observed, jobs: list[_Job], plan: _Plan, seed: int) -> Evidence:
    """The results in the order of the data."""
    order = [torch.cat([result.columns for result in job.results]).argsort() for job in jobs]

    def joined(of_result: Callable[[_Result], Tensor]) -> Tensor:
        each = (torch.cat([of_result(result) for result in job.results], dim=-1) for job in jobs)
        return torch.cat([values[..., index] for values, index in zip(each, order, strict=True)], dim=-1)

    log_evidence, std_error, ess, khat, reliable, jackknife = joined(
        lambda result: torch.stack([each.double() for each in result.estimate])
    )
    names = [[result.method for result in job.results for _ in result.columns] for job in jobs]
    terms = GuideTerms.joined([job.terms for job in jobs])
    draws = [Draws.joined([result.draws for result in job.results]) for job in jobs]
    return Evidence(
        log_evidence=log_evidence,
        std_error=std_error,
        ess=ess,
        khat=khat,
        reliable=reliable.bool(),
        jackknife=jackknife,
        num_evaluations=joined(lambda result: torch.full_like(result.columns, result.num_evaluations)),
        num_samples=None,
        seed=seed,
        method=tuple(named[i] for named, index in zip(names, order, strict=True) for i in index.tolist()),
        all_bounds={},
        observed=observed,
        guide_elbo=terms.elbo,
        rate=terms.rate,
        distortion=terms.distortion,
        draws=Draws.joined(draws, order),
        settings={"tolerance": plan.tolerance, "max_evaluations": plan.max_evaluations},
        diagnostics={
            "reached": reliable.bool() & (std_error <= plan.tolerance),
            "contradicted": joined(lambda result: result.contradicted),
        },
    )
