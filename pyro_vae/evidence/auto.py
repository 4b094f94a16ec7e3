"""log p(x) of each datum by the cheapest estimator that pilot runs find accurate enough for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for
from pyro_vae.evidence.annealing import (
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
from pyro_vae.evidence.collect import GuideTerms, Reservoir
from pyro_vae.evidence.estimator import Estimator, Found, Task, evaluate
from pyro_vae.evidence.laplace import NormalMixture
from pyro_vae.evidence.result import Draws, Evidence
from pyro_vae.evidence.survey import (
    NUM_POINTS,
    Component,
    Elsewhere,
    Region,
    Survey,
    checked,
    find_modes,
    survey,
)
from pyro_vae.evidence.weights import Estimate, Totals
from pyro_vae.program.core import Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.tiles import Block, Draw, Noise, Tile, evaluating, kept, noise, refuse_nan, tiles_of

__all__ = ["Auto", "log_evidence"]

GUIDE_PILOT = 200
LAPLACE_PILOT = 200
NUM_CHAINS, NUM_LEAPFROG = 16, 3
LARGEST_KHAT = 0.3  # of a pilot run, whose k-hat is rough: well below the measured run's threshold
SAFETY = 3.0  # factor on the variance that a pilot run saw, which is rough
FEWEST_TEMPERATURES = 10  # fewer are not worth their pilot run, and their weights are skewed
DOUBT = 2.0  # standard errors by which the guide may exceed Laplace's Gaussians before both are drawn from
MANY_MODES = 4  # found modes, beside which there may be others
LEVELS = 4  # lengths of annealing to choose from, each half the next


@refusing_unknown_options
def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    joint: bool = False,
    tolerance: float = 0.05,
    max_evaluations: int = 6000,
    seed: int = 0,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    compile: bool = False,
    progress: bool = False,
) -> Evidence:
    r"""Estimate log p(x) of each datum by the cheapest of three estimators that keeps the error within a tolerance.

    For each datum a pilot run draws from the guide; where that will not do, from Laplace's Gaussian; and where that
    will not do either, a short annealing shows how many temperatures are needed. The pilots pick the estimator:
    importance sampling where k-hat is below 0.3 and the draws that the tolerance takes are affordable, else AIS. Where
    other draws found significantly more than Laplace's Gaussian, which then missed a mode, or where four modes or more
    were found, a mixture of it and the guide gets the rest of the budget.

    The estimator then runs once, with frozen settings and fresh noise. Its result is reported even where it missed the
    tolerance with budget left: to go on after a look at it would bias it. As pilots only decide, and only the measured
    run counts, $E \hat p(x) = p(x)$ holds for each datum, and the certificate needs no correction.

    A datum whose error stays above the tolerance, or whose estimate is not `reliable`, is flagged:
    `diagnostics["reached"]` is False, and the summary counts them. So is one for which draws from the guide or around
    it found significantly more than the measured run (`diagnostics["contradicted"]`). A mode that no draw came near
    stays unnoticed.

    Args:
        model, guide: a Pyro program and its guide, or None for the prior. Discrete latents of few joint
            values are summed; others are drawn.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        tolerance: the standard error wanted of each datum's log p(x), nats. That of the mean over data is smaller by
            the square root of their number.
        max_evaluations: the most evaluations of log p(x, z) to spend on a datum, pilots included. Where it does not pay
            for Laplace's Gaussian (6 a latent number, and 540 more) or for annealing after it (about 700 and
            `num_posterior_draws`), the rest goes to draws from the proposal at hand.
        seed: fixes the noise.
        compile: as in `ais`; the search for Laplace's Gaussian is never compiled, for it needs second derivatives.
        joint, plate, first_index, num_posterior_draws, progress, kwargs: as in `importance_sampling`.

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
    estimator = Auto(_checks.positive("tolerance", tolerance), _checks.whole_number("max_evaluations", max_evaluations))
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index,
        num_posterior_draws=num_posterior_draws, joint=joint, densities=joint_of(compile=compile), progress=progress,
    )  # fmt: skip
    return evaluate(estimator, task)


@dataclass(frozen=True)
class _Plan:
    """The budget, and how the pilots divide it."""

    tolerance: float
    max_evaluations: int
    num_posterior_draws: int
    amortized: bool

    @property
    def annealing_pilot(self) -> int:
        return PILOT_CHAINS * (1 + PILOT_TEMPERATURES * NUM_LEAPFROG)

    def can_find_modes(self, dim: int) -> bool:
        """Tell whether the budget pays for two rounds of the search, and for draws after it."""
        search = 20 + 6 * dim
        return GUIDE_PILOT + 2 * NUM_POINTS + search + 2 * LAPLACE_PILOT <= self.max_evaluations

    def num_draws(self, pilot: Estimate, num_pilot: int, seen: Elsewhere) -> Tensor:
        """Return how many draws, a power of two, reach the tolerance; infinity where the pilot cannot tell."""
        variance = num_pilot / pilot.ess.clamp(min=1) - 1
        if not seen.log_weight.isnan().any():
            variance = torch.maximum(variance, seen.relative_variance(pilot.log_evidence, self.tolerance / 4))
        needed = (SAFETY * variance / self.tolerance**2).clamp(min=128).log2().ceil().exp2()
        return self._for_all(needed.where((pilot.khat < LARGEST_KHAT) & ~seen.contradicts(pilot), torch.inf))

    def affordable_temperatures(self, spent: Tensor) -> Tensor:
        """Return how many temperatures of a measured run are affordable, rounded down to one of few numbers."""
        left = self.max_evaluations - spent - self.num_posterior_draws
        return _rounded_down(1 + (torch.div(left, NUM_CHAINS, rounding_mode="floor") - 1).div(NUM_LEAPFROG).floor())

    def num_temperatures(self, log_weights: Tensor, most: Tensor) -> Tensor:
        """Return how many temperatures are enough, one of a few lengths: the variance of log w falls with them."""
        needed = SAFETY * PILOT_TEMPERATURES * log_weights.var(0) / (NUM_CHAINS * self.tolerance**2)
        chosen = most.to(needed.dtype)
        for level in range(1, LEVELS):
            length = (most / 2**level).floor().clamp(min=FEWEST_TEMPERATURES)
            chosen = torch.where(needed <= length, length.to(needed.dtype), chosen)
        return self._for_all(chosen)

    def _for_all(self, needed: Tensor) -> Tensor:
        """Give all data what the worst needs, if the guide has parameters for each datum and runs on all or none."""
        return needed if self.amortized else needed.max().expand_as(needed)


def _rounded_down(number: Tensor) -> Tensor:
    """Round down to a power of the fourth root of two."""
    return (number.double().clamp(min=1).log2() * 4 + 1e-9).floor().div(4).exp2().floor()


class _Source(NamedTuple):
    """A source of draws."""

    name: str
    program: Program
    """Evaluates the draws, on the columns."""
    draw: Draw
    component: Component | None


class _Result(NamedTuple):
    """What one estimator found for some columns of a block."""

    columns: Tensor
    estimate: Estimate
    contradicted: Tensor
    method: str
    num_evaluations: Tensor
    draws: Draws | None


@dataclass
class _Job:
    """The data of one block; each leaves once an estimator is found for it."""

    block: Block
    region: Any
    plan: _Plan
    seed: int
    results: list[_Result] = field(default_factory=list)
    gaussians: NormalMixture | None = None
    """Laplace's Gaussians, once they are found."""

    def run(self) -> None:
        everyone = self.block.asked_for
        self.terms, self.spent = GuideTerms(), torch.zeros(self.width, dtype=torch.int64, device=everyone.device)
        guide = self._guide(everyone)
        self.pilot = self._pilot(everyone, guide, GUIDE_PILOT, "guide pilot", self.terms)
        self.seen = self._survey(everyone, self.region.guide, "the guide")
        self.elsewhere = self.seen.against(guide.component)
        if self.seen.is_everything:
            return self._sum_up(everyone)
        needed = self.plan.num_draws(self.pilot, GUIDE_PILOT, self.elsewhere).to(everyone.device)
        left = self._sample(everyone, needed, self._guide)
        if not len(left):
            return None
        if not isinstance(self.region, Region) or not self.plan.can_find_modes(self.region.view.dim):
            return self._spend_the_rest(left, self._guide)
        return self._go_on_from_modes(left)

    def _go_on_from_modes(self, columns: Tensor) -> None:
        self._find_modes(columns)
        laplace = self._laplace(columns)
        pilot = self._pilot(columns, laplace, LAPLACE_PILOT, "Laplace pilot", GuideTerms())
        around = self._survey(columns, laplace.component, laplace.name).against(laplace.component)
        missed = self._missed_by(columns, pilot, around).to(columns.device)
        self._spend_the_rest(columns[missed], self._both)
        needed = self.plan.num_draws(pilot, LAPLACE_PILOT, around).to(columns.device)[~missed]
        left = self._sample(columns[~missed], needed, self._laplace)
        most = self.plan.affordable_temperatures(self.spent[left] + self.plan.annealing_pilot)
        can_anneal = self._for_all(most >= FEWEST_TEMPERATURES)
        self._spend_the_rest(left[~can_anneal], self._laplace)
        if can_anneal.any():
            self._anneal(left[can_anneal])

    def _for_all(self, possible: Tensor) -> Tensor:
        return possible if self.plan.amortized else possible.all().expand_as(possible)

    def _spend_the_rest(self, columns: Tensor, source: Callable[[Tensor], _Source]) -> None:
        """Spend the rest on draws, where they miss the tolerance and nothing better is affordable."""
        if len(columns):
            left = self.plan.max_evaluations - self.spent[columns]
            # A search costs each datum another number: rounded, few numbers are left, and data are drawn for together.
            self._sample(columns, left if self.gaussians is None else _rounded_down(left), source)

    def _missed_by(self, columns: Tensor, pilot: Estimate, around: Elsewhere) -> Tensor:
        """Tell for which data Laplace's Gaussian, and annealing from it, would miss what other draws found."""
        assert self.gaussians is not None
        rows = self._rows(columns)
        missed = _is_above(self.pilot.at(rows), pilot, DOUBT) | self.elsewhere.at(rows).contradicts(pilot)
        has_many_modes = self.gaussians.log_shares[:, columns].isfinite().sum(0).cpu() >= MANY_MODES
        return (missed | around.contradicts(pilot) | has_many_modes) & self.plan.amortized

    def _rows(self, columns: Tensor) -> Tensor:
        """Return the places of these columns among all that were asked for."""
        return columns.cpu() - self.block.columns.start

    @property
    def width(self) -> int:
        return self.block.program.num_data

    def _guide(self, columns: Tensor) -> _Source:
        draw = kept(self.block.program, self.block.program.draw, columns)
        program = self.block.program.at(columns)
        component = self.region.at(columns).guide if program.guide_has_density else None
        return _Source("the guide", program, draw, component)

    def _laplace(self, columns: Tensor) -> _Source:
        assert self.gaussians is not None
        region, gaussians = self.region.at(columns), self.gaussians.at(columns)
        component = region.gaussian(gaussians)
        return _Source("Laplace's Gaussian", region.view.program, region.drawing(component), component)

    def _both(self, columns: Tensor) -> _Source:
        """Mix the guide and Laplace's Gaussian in equal parts; take the guide alone if its density is not known."""
        guide, laplace = self._guide(columns), self._laplace(columns)
        if guide.component is None:
            return guide
        region = self.region.at(columns)
        both = region.half_and_half(guide.component, laplace.component)
        return _Source("the guide and Laplace's Gaussian", region.view.program, region.drawing(both), both)

    def _find_modes(self, columns: Tensor) -> None:
        """Find Laplace's Gaussians of these columns, and keep them at their places in the block."""
        region = self.region.at(columns)
        with noise(self.block.program, seed_for(self.seed, "where to start"), self.block.place):
            fit = find_modes(region, self.seen.at(columns - self.block.columns.start))
        self.spent[columns] += fit.num_evaluations
        self.gaussians = fit.gaussians.spread(columns, self.width)

    def _pilot(self, columns: Tensor, source: _Source, num_samples: int, purpose: str, terms: GuideTerms) -> Estimate:
        """Estimate log p(x) from draws that help to decide and do not count."""
        totals = Totals(num_samples)
        for tile in self._tiles(columns, source, num_samples, seed_for(self.seed, purpose)):
            totals.add(tile.densities.weight)
            terms.add(tile.densities)
        self.spent[columns] += num_samples
        return totals.estimate()

    def _tiles(self, columns: Tensor, source: _Source, num_samples: int, seed: int) -> Iterator[Tile]:
        part = self.block.part(columns)._replace(program=source.program)
        evaluate = evaluating(part.program, source.draw, self.region.joint)
        return tiles_of(part, evaluate, num_samples, seed, self.width)

    def _survey(self, columns: Tensor, component: Component | None, name: str) -> Survey:
        with noise(self.block.program, seed_for(self.seed, f"survey about {name}"), self.block.place):
            seen = survey(self.region.at(columns), [component])
        self.spent[columns] += seen.num_places
        return seen

    def _sample(self, columns: Tensor, needed: Tensor, source: Callable[[Tensor], _Source]) -> Tensor:
        """Run importance sampling for the data that can afford it, and return the columns of the others."""
        affordable = self._for_all(self.spent[columns] + needed <= self.plan.max_evaluations)
        for number in map(int, needed[affordable].unique().tolist()):
            chosen = columns[affordable & (needed == number)]
            here, totals = source(chosen), Totals(number)
            reservoir = Reservoir(self.plan.num_posterior_draws, Noise(self.width, chosen))
            # The number is part of the seed: a tile's place depends on it, so with one seed for all, tiles of different
            # numbers could share noise.
            seed = seed_for(self.seed, f"measured, {number} from {here.name}")
            for tile in self._tiles(chosen, here, number, seed):
                totals.add(tile.densities.weight)
                with noise(here.program, seed_for(seed, "resampling"), self.block.place * number + tile.draws.start):
                    reservoir.add(here.program, tile.densities, tile.latents)
            self.spent[chosen] += number
            found = self._checked(chosen, totals.estimate(), number, here)
            self._keep(chosen, found, f"importance sampling from {here.name}", reservoir.draws)
        return columns[~affordable]

    def _checked(self, columns: Tensor, found: Estimate, number: int, source: _Source) -> Estimate:
        """Correct error and `reliable` by what draws from elsewhere say of the source."""
        if source.name == "the guide":
            return checked(found, number, self.elsewhere.at(self._rows(columns)))
        seen = self.seen.at(columns - self.block.columns.start)
        return checked(found, number, seen.against(source.component))

    def _sum_up(self, columns: Tensor) -> None:
        """Sum over all values of discrete latents."""
        log_joint = self.seen.log_joint
        exact = log_joint.logsumexp(0).cpu()
        zero, number = torch.zeros_like(exact), self.seen.num_places
        found = Estimate(exact, zero, zero + number, zero, torch.ones_like(exact, dtype=torch.bool), exact)
        with noise(self.block.program, seed_for(self.seed, "resampling"), self.block.place):
            draws = self.region.resampled(self.seen.places, log_joint, self.plan.num_posterior_draws)
        self._keep(columns, found, "a sum over all values", draws)

    def _anneal(self, columns: Tensor) -> None:
        """Run AIS for the data that are left."""
        path, numbers = self._path(columns)
        with noise(path.view.program, seed_for(self.seed, "pilot"), self.block.place):
            seen = pilot(path, numbers, PILOT_TEMPERATURES, PILOT_CHAINS, NUM_LEAPFROG)
        self.spent[columns] += self.plan.annealing_pilot
        most = self.plan.affordable_temperatures(self.spent[columns])
        needed = self.plan.num_temperatures(seen.log_weights, most)
        for number in map(int, needed.unique().tolist()):
            these = needed == number
            path, numbers = self._path(columns[these])
            annealing = Annealing("laplace", number, NUM_CHAINS, NUM_LEAPFROG)
            with noise(path.view.program, seed_for(self.seed, f"measured, AIS, {number}"), self.block.place):
                trajectory = anneal(path, numbers, seen.at(these).settings(annealing))
                draws = end_draws(path.view, trajectory, numbers, self.plan.num_posterior_draws)
            refuse_nan(trajectory.log_weights, self.block.part(columns[these]).rows)
            self.spent[columns[these]] += annealing.num_evaluations + self.plan.num_posterior_draws
            self._keep(columns[these], annealed(trajectory.log_weights), "AIS from Laplace's Gaussian", draws)

    def _path(self, columns: Tensor) -> tuple[Path, Noise]:
        assert self.gaussians is not None
        region = self.region.at(columns)
        return laplace_path(region, self.gaussians.at(columns)), region.noise

    def _keep(self, columns: Tensor, found: Estimate, method: str, draws: Draws | None) -> None:
        rows = self._rows(columns)
        contradicted = _is_above(self.pilot.at(rows), found) | self.elsewhere.at(rows).contradicts(found)
        found = found._replace(reliable=found.reliable & ~contradicted)
        self.results.append(_Result(columns.cpu(), found, contradicted, method, self.spent[columns].cpu(), draws))


def _is_above(pilot: Estimate, found: Estimate, num_errors: float = 4.0) -> Tensor:
    """Tell whether the guide's pilot run found significantly more than another, which then missed a mode."""
    error = (pilot.std_error.square() + found.std_error.square()).sqrt().nan_to_num()
    return pilot.log_evidence > found.log_evidence + num_errors * error + 0.01


@dataclass(frozen=True)
class Auto(Estimator[_Job]):
    """The cheapest estimator that is accurate enough for a datum, as an estimator."""

    tolerance: float = 0.05
    max_evaluations: int = 6000

    def __post_init__(self) -> None:
        if self.max_evaluations < 2 * GUIDE_PILOT:
            raise ValueError(
                f"max_evaluations: expected at least {2 * GUIDE_PILOT}, of which half are a pilot run; got "
                f"{self.max_evaluations}; allow more, or use importance_sampling."
            )

    @property
    def needs_view(self) -> bool:
        return False

    @property
    def settings(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance, "max_evaluations": self.max_evaluations}

    def block_size(self, program: Program) -> int:
        return block_size(program, NUM_CHAINS)

    def measure(self, block: Block, region: Any, task: Task) -> _Job:
        amortized = task.program.structure.amortized
        plan = _Plan(self.tolerance, self.max_evaluations, task.num_posterior_draws, amortized)
        job = _Job(block, region, plan, task.seed)
        job.run()
        return job

    def found(self, parts: list[_Job], task: Task) -> Found:
        """Put the results in the order of the data."""
        order = [torch.cat([result.columns for result in job.results]).argsort() for job in parts]

        def joined(of_result: Callable[[_Result], Tensor]) -> Tensor:
            each = (torch.cat([of_result(result) for result in job.results], dim=-1) for job in parts)
            return torch.cat([values[..., index] for values, index in zip(each, order, strict=True)], dim=-1)

        estimate = Estimate(*joined(lambda result: torch.stack([each.double() for each in result.estimate])))
        reliable = estimate.reliable.bool()
        names = [[result.method for result in job.results for _ in result.columns] for job in parts]
        draws = [Draws.joined([result.draws for result in job.results]) for job in parts]
        return Found(
            estimate._replace(reliable=reliable),
            joined(lambda result: result.num_evaluations),
            tuple(named[i] for named, index in zip(names, order, strict=True) for i in index.tolist()),
            Draws.joined(draws, order),
            GuideTerms.joined([job.terms for job in parts]),
            diagnostics={
                "reached": reliable & (estimate.std_error <= self.tolerance),
                "contradicted": joined(lambda result: result.contradicted),
            },
        )
