"""log p(x) of each datum by the cheapest estimator that is accurate enough for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
    block_size,
    laplace_path,
    pilot,
    resampled,
)
from pyro_vae.evidence.hmc import Noise
from pyro_vae.evidence.importance import GuideTerms, Reservoir
from pyro_vae.evidence.laplace import Gaussian, LaplaceFit, fit_laplace, guide_moments
from pyro_vae.evidence.result import Draws, Evidence, Observed
from pyro_vae.evidence.weights import Estimate, Totals, estimate
from pyro_vae.program import Latents, Program
from pyro_vae.tiling import Block, Draw, blocks, evaluating, noise, seed_for, tiles_of
from pyro_vae.unconstrained import Unconstrained

__all__ = ["log_evidence"]

GUIDE_PILOT = 200
LAPLACE_PILOT = 200
NUM_CHAINS, NUM_LEAPFROG = 16, 3
LARGEST_KHAT = 0.4  # of a pilot run, whose k-hat is rough: well below what the measured run is held to
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
    progress: bool = False,
    **kwargs: Any,
) -> Evidence:
    r"""log p(x) of each datum, by the cheapest estimator whose standard error is within a tolerance.

    For each datum a pilot run draws from the guide, and where that would not do, from Laplace's Gaussian, and where
    that
    would not do either, a short annealing looks how many temperatures are needed. What the pilots saw picks the
    estimator: importance sampling where their k-hat is below 0.4 and so many draws as the tolerance takes are
    affordable, else AIS. Then the estimator runs once, with frozen settings and fresh noise, and its result is
    reported whatever it is. As pilots decide and only the measured run counts, $E \hat p(x) = p(x)$ still holds for
    each datum, and the certificate needs no correction.

    A datum whose error stays above the tolerance, or whose estimate is not `reliable`, is flagged:
    `diagnostics["reached"]` is False, and the summary counts them.

    Args:
        model, guide: a Pyro program and its guide, with continuous latents.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first.
        tolerance: the standard error wanted of each datum's log p(x), nats. That of the mean over data is smaller by
            the square root of their number.
        max_evaluations: of log p(x, z), the most that may be spent on a datum, pilots included.
        seed: fixes the noise.
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
    plan = _Plan(tolerance, max_evaluations, Unconstrained.of(program).dim, program.structure.amortized)
    jobs = []
    with tqdm(total=program.num_data, disable=not progress, unit="datum") as bar:
        for block in blocks(program, block_size(program, NUM_CHAINS), first_index):
            jobs.append(_Job(block, plan, seed, num_posterior_draws))
            jobs[-1].run()
            bar.update(block.rows.stop - block.rows.start)
    return _evidence(program, jobs, plan, seed)


@dataclass(frozen=True)
class _Plan:
    """What may be spent, and what the pilots make of it."""

    tolerance: float
    max_evaluations: int
    dim: int
    amortized: bool

    def __post_init__(self) -> None:
        if self.most_temperatures < 2:
            least = self.max_evaluations - self.left + NUM_CHAINS * (1 + NUM_LEAPFROG)
            raise ValueError(
                f"max_evaluations: expected at least {least}, to look at a model of {self.dim} latent numbers and "
                f"anneal a little; got {self.max_evaluations}; allow more, or use importance_sampling."
            )

    @property
    def laplace(self) -> int:
        """The price of Laplace's Gaussian (`fit_laplace`)."""
        return 20 + 6 * self.dim

    @property
    def annealing_pilot(self) -> int:
        return PILOT_CHAINS * (1 + PILOT_TEMPERATURES * NUM_LEAPFROG)

    @property
    def left(self) -> int:
        """After all pilots."""
        return self.max_evaluations - GUIDE_PILOT - self.laplace - LAPLACE_PILOT - self.annealing_pilot

    @property
    def most_temperatures(self) -> int:
        return 1 + (self.left // NUM_CHAINS - 1) // NUM_LEAPFROG

    def num_draws(self, pilot: Estimate, num_pilot: int) -> Tensor:
        """How many draws take the error below the tolerance, as a power of two; infinity where that cannot be told."""
        variance = num_pilot / pilot.ess.clamp(min=1) - 1
        needed = (1.5 * variance / self.tolerance**2).clamp(min=128).log2().ceil().exp2()
        return self._for_all(needed.where(pilot.khat < LARGEST_KHAT, torch.inf))

    def num_temperatures(self, log_weights: Tensor) -> Tensor:
        """How many temperatures do, for the variance of log w falls with their number; one of a few lengths."""
        needed = PILOT_TEMPERATURES * log_weights.var(0) / (NUM_CHAINS * self.tolerance**2)
        chosen = torch.full_like(needed, self.most_temperatures)
        for length in [max(2, self.most_temperatures >> i) for i in range(1, LEVELS)]:
            chosen = torch.where(needed <= length, float(length), chosen)
        return self._for_all(chosen)

    def _for_all(self, needed: Tensor) -> Tensor:
        """A guide with parameters for each datum runs on all data or on none: what the worst needs, all get."""
        return needed if self.amortized else needed.max().expand_as(needed)


@dataclass
class _Job:
    """The data of one block, which leave it one by one as an estimator is found for them."""

    block: Block
    plan: _Plan
    seed: int
    num_draws: int
    columns: list[Tensor] = field(default_factory=list)
    results: list[tuple[Estimate, Tensor, str, int, Draws | None]] = field(default_factory=list)

    def run(self) -> None:
        program = self.block.program
        everyone = torch.arange(program.num_data, device=program.args[0].device)
        self.terms, spent = GuideTerms(), GUIDE_PILOT
        seen = self._pilot(everyone, program.draw, GUIDE_PILOT, "guide pilot", self.terms)
        needed = self.plan.num_draws(seen, GUIDE_PILOT).to(everyone.device)
        left = self._sample(everyone, needed, self._guide, "the guide", spent)
        if not len(left):
            return
        self.view = Unconstrained.of(program)
        self.fit = self._laplace(left)
        spent += self.plan.laplace + LAPLACE_PILOT
        seen = self._pilot(left, self._gaussian(left), LAPLACE_PILOT, "Laplace pilot", GuideTerms())
        needed = self.plan.num_draws(seen, LAPLACE_PILOT).to(left.device)
        left = self._sample(left, needed, self._gaussian, "Laplace's Gaussian", spent)
        if len(left):
            self._anneal(left, spent + self.plan.annealing_pilot)

    @property
    def width(self) -> int:
        return self.block.program.num_data

    def _program(self, columns: Tensor) -> Program:
        """Of these columns; all of them is the block's own program, which need not run on fewer."""
        program = self.block.program
        return program if len(columns) == program.num_data else program.at(columns)

    def _part(self, columns: Tensor) -> Block:
        everything = slice(0, len(columns))
        return Block(self._program(columns), everything, everything, self.block.place)

    def _guide(self, columns: Tensor) -> Draw:
        """Draws for all of the block, so that noise is that of the place, of which some are kept."""
        program = self.block.program

        def draw(num_samples: int) -> tuple[Latents, Tensor]:
            latents, log_q = program.draw(num_samples)
            return program.choose(latents, columns), log_q[:, columns]

        return draw

    def _laplace(self, columns: Tensor) -> LaplaceFit:
        """Laplace's Gaussians of these columns, in their places among all."""
        with noise(self.block.program, seed_for(self.seed, "where to start"), self.block.place):
            loc, variance = guide_moments(self.view)
            view = Unconstrained.of(self._program(columns))
            gaussian, num_evaluations = fit_laplace(view, (loc[columns], variance[columns]))
        scale_tril = variance.sqrt().diag_embed()
        loc[columns], scale_tril[columns] = gaussian
        return LaplaceFit(Gaussian(loc, scale_tril), num_evaluations)

    def _numbers(self, columns: Tensor) -> Noise:
        return Noise(self.block.program.num_data, columns, self.plan.dim)

    def _gaussian(self, columns: Tensor) -> Draw:
        view = Unconstrained.of(self._program(columns))
        return self.fit.gaussian.at(columns).draw(view, self._numbers(columns).normal)

    def _pilot(self, columns: Tensor, draw: Draw, num_samples: int, purpose: str, terms: GuideTerms) -> Estimate:
        totals = Totals(num_samples)
        part = self._part(columns)._replace(rows=self.block.rows)
        evaluate = evaluating(part.program, draw)
        for tile in tiles_of(part, evaluate, num_samples, seed_for(self.seed, purpose), self.width):
            totals.add(tile.densities.weight)
            terms.add(tile.densities)
        return totals.estimate()

    def _sample(self, columns: Tensor, needed: Tensor, draw: Callable[[Tensor], Draw], name: str, spent: int) -> Tensor:
        """Importance sampling for the data that it serves; what is returned are the others."""
        affordable = spent + needed <= self.plan.max_evaluations
        for number in map(int, needed[affordable].unique().tolist()):
            chosen = columns[needed == number]
            totals, reservoir, part = Totals(number), Reservoir(self.num_draws), self._part(chosen)
            seed = seed_for(self.seed, f"measured, {name}")
            for tile in tiles_of(part, evaluating(part.program, draw(chosen)), number, seed, self.width):
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
            with noise(path.view.program, seed_for(self.seed, "measured, AIS"), self.block.place):
                trajectory = anneal(path, numbers, seen.at(these).settings(annealing))
                draws = resampled(path.view, trajectory, self.num_draws)
            found = estimate(trajectory.log_weights.cpu())
            found = found._replace(reliable=found.ess > NUM_CHAINS / 2)
            total = spent + annealing.num_evaluations
            self._keep(columns[these], found, "AIS from Laplace's Gaussian", total, draws)

    def _path(self, columns: Tensor) -> tuple[Path, Noise]:
        view, numbers = Unconstrained.of(self._program(columns)), self._numbers(columns)
        fit = LaplaceFit(self.fit.gaussian.at(columns), self.fit.num_evaluations)
        return laplace_path(view, fit, numbers), numbers

    def _keep(self, columns: Tensor, found: Estimate, method: str, spent: int, draws: Draws | None) -> None:
        self.columns.append(columns.cpu())
        self.results.append((found, torch.full((len(columns),), spent), method, spent, draws))


def _evidence(program: Program, jobs: list[_Job], plan: _Plan, seed: int) -> Evidence:
    """The results in the order of the data."""
    order = [torch.cat(job.columns).argsort()[job.block.columns] for job in jobs]

    def joined(of_result: Callable[[Any], Tensor]) -> Tensor:
        each = (torch.cat([of_result(result) for result in job.results], dim=-1) for job in jobs)
        return torch.cat([values[..., index] for values, index in zip(each, order, strict=True)], dim=-1)

    log_evidence, std_error, ess, khat, reliable, jackknife = joined(
        lambda result: torch.stack([each.double() for each in result[0]])
    )
    names = [[result[2] for result in job.results for _ in range(len(result[1]))] for job in jobs]
    terms = GuideTerms.joined([job.terms for job in jobs], [job.block.columns for job in jobs])
    draws = [Draws.joined([result[4] for result in job.results], [slice(None)] * len(job.results)) for job in jobs]
    return Evidence(
        log_evidence=log_evidence,
        std_error=std_error,
        ess=ess,
        khat=khat,
        reliable=reliable.bool(),
        jackknife=jackknife,
        num_evaluations=joined(lambda result: result[1]),
        num_samples=None,
        seed=seed,
        method=tuple(named[i] for named, index in zip(names, order, strict=True) for i in index.tolist()),
        all_bounds={},
        observed=Observed.of(program),
        guide_elbo=terms.elbo,
        rate=terms.rate,
        distortion=terms.distortion,
        draws=Draws.joined(draws, order),
        settings={"tolerance": plan.tolerance, "max_evaluations": plan.max_evaluations},
        diagnostics={"reached": reliable.bool() & (std_error <= plan.tolerance)},
    )
