"""log p(x) by importance sampling, from the guide or from a better proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae._options import apart_from_the_program
from pyro_vae.evidence import proposals
from pyro_vae.evidence.proposals import Fitted, Proposal
from pyro_vae.evidence.psis import MIN_SAMPLES
from pyro_vae.evidence.result import Bound, Draws, Evidence, Observed
from pyro_vae.evidence.survey import NUM_POINTS, Elsewhere, checked, region_of, survey
from pyro_vae.evidence.weights import Groups, Totals, resampled
from pyro_vae.graphs import compiled
from pyro_vae.joint import Joint, joint_of
from pyro_vae.program import Latents, LogDensities, Program
from pyro_vae.tiling import (
    Block,
    Draw,
    Evaluate,
    Noise,
    block_width,
    blocks,
    evaluating,
    noise,
    seed_for,
    tiles,
    tiles_of,
)
from pyro_vae.unconstrained import Unconstrained

__all__ = ["GuideTerms", "Reservoir", "guide_terms", "importance_sampling"]

NUM_ELBO_SAMPLES = 100  # from the guide, where the proposal is another


@apart_from_the_program()
def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    proposal: str | Proposal = "guide",
    bounds: Iterable[int] | None = None,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    chunk_size: int | None = None,
    compile: bool = False,
    progress: bool = False,
    **kwargs: Any,
) -> Evidence:
    r"""log p(x) of each datum, $\log \frac{1}{K} \sum_k w_k$ with $w_k = p(x, z_k) / q(z_k)$, $z_k \sim q$.

    For any Pyro model and guide whose sites all lie in one plate over data. Draws are made in tiles of fixed size, so
    memory does not grow with `num_samples`, and the numbers of a datum depend on the seed and on its place alone:
    neither on `chunk_size` (to float32 rounding), nor on the data before and after it. (There are two exceptions. A
    guide that has parameters for each datum runs on all data together, and its tiles span them all; and a sampler that
    rejects, such as Gamma's, uses up a varying share of a tile's noise.)
    Parameters are not changed, and torch's generator is left as it was. Scales (`poutine.scale`)
    are weights of an objective, and no part of log p(x).

    Args:
        model, guide: a Pyro program and its guide; `vae.model` and `vae.guide`, or any other.
        args: what both are called with: tensors (or numpy arrays) of one row a datum, x first.
        num_samples: the number K of draws for each datum.
        seed: fixes the draws.
        proposal: what q is: "guide"; "inflated" or "heavy-tailed", the guide stretched (`Inflated`); "defensive", mixed
            with the prior (`Defensive`); "laplace", a Gaussian at each datum's posterior mode (`Laplace`); "local",
            the guide refined for each datum (`Local`); or an object of these classes. All but the first and
            "defensive" look for the proposal with noise of their own, so that the weights stay unbiased.
        bounds: for which k to estimate L_k beside k = 1 and K; 1, 5, 10, 50, 100, ... by default.
        plate: the name of the plate over data; needed only where several hold all sites.
        first_index: the place of the first datum, for data that are evaluated in parts: `x[100:200]` with
            `first_index=100` gives the numbers that it has in all of x. Parts with the same place share their noise,
            and must not be pooled in one error or certificate.
        num_posterior_draws: how many draws from p(z|x) to keep of each datum, by importance resampling.
        chunk_size: how many (datum, draw) pairs the model is evaluated on at a time, if fewer than a tile must be.
        compile: whether to evaluate the model, and the guide if it is the proposal, as a compiled graph, which pays
            where there is much to do: each call records it anew, and a graph that is new to the process takes seconds
            to compile. Draws are the same, and densities to float32 rounding. A model that cannot be compiled is run as
            it is, with a warning.
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
    num_posterior_draws = _checks.whole_number("num_posterior_draws", num_posterior_draws, minimum=0)
    ks = _bounds_to_estimate(bounds, num_samples)
    chosen = proposals.of(proposal)
    by_guide = isinstance(chosen, proposals.Guide)
    joint = joint_of(chunk_size, compile and not by_guide)
    evaluator = _GuideAndModel() if compile and by_guide and chunk_size is None else partial(evaluating, joint=joint)
    program = Program.of(model, guide, args, kwargs, plate)
    view = (Unconstrained.of_any if chosen.width is None else Unconstrained.of)(program)
    observed = Observed.of(program)
    runs = []
    with tqdm(total=program.num_data * num_samples, disable=not progress, unit="draw", unit_scale=True) as bar:
        width = chosen.width or block_width(program, num_samples)
        for block in blocks(program, width, first_index):
            region = region_of(view, block, block.asked_for, joint)
            runs.append(_run(block, region, chosen, num_samples, seed, ks, num_posterior_draws, evaluator))
            bar.update(len(block.rows) * num_samples)
    seen = [Elsewhere.joined(each) for each in zip(*(run.seen for run in runs), strict=True)]
    if num_samples >= MIN_SAMPLES and chosen.width is None:
        seen = [_seen_of_guide(program, view, seed, first_index, joint)]
    return _evidence(program, observed, chosen, runs, seen, ks, num_samples, seed, first_index)


def _bounds_to_estimate(bounds: Iterable[int] | None, num_samples: int) -> tuple[int, ...]:
    if bounds is None:
        decades = range(math.ceil(math.log10(num_samples)) + 1)
        bounds = [k for decade in decades for k in (10**decade, 5 * 10**decade) if 2 * k <= num_samples]
    ks = {1, num_samples, *(_checks.whole_number("bounds", k) for k in bounds)}
    if max(ks) > num_samples:
        raise ValueError(f"bounds: expected each k to be at most num_samples={num_samples}; got {max(ks)}; draw more.")
    return tuple(sorted(ks))


class _GuideAndModel:
    """Draws from the guide and their densities as one graph, of the first tile's size; other tiles run as they are.

    For tiles of one size it spares Pyro's handlers in the guide, and the repeated rows of a model by pairs.
    """

    def __init__(self) -> None:
        self.num_samples: int | None = None

    def __call__(self, program: Program, draw: Draw) -> Evaluate:
        if program.counting:  # which parts of the latents count is not the same in the next block
            return evaluating(program, draw, joint_of(compile=True))
        as_it_is = evaluating(program, draw)

        def evaluate(num_samples: int) -> tuple[Latents, LogDensities]:
            if self.num_samples is None:
                self._compile(program, num_samples)
            if num_samples != self.num_samples:
                return as_it_is(num_samples)
            *latents, prior, likelihood, guide = self.run(*program.args)
            return dict(zip(self.names, latents, strict=True)), LogDensities(prior, likelihood, guide)

        return evaluate

    def _compile(self, program: Program, num_samples: int) -> None:
        def run(*args: Tensor) -> tuple[Tensor, ...]:
            on_these = replace(program, args=args)
            latents, densities = evaluating(on_these, on_these.draw)(num_samples)
            self.names = tuple(latents)
            return (*latents.values(), *densities)

        self.num_samples = num_samples
        self.run = compiled(run, *program.args)


class _Run(NamedTuple):
    """What is kept of the draws for one block."""

    totals: Totals
    terms: GuideTerms
    reservoir: Reservoir
    num_evaluations: Tensor
    seen: list[Elsewhere]
    converged: Tensor | None


def _run(
    block: Block,
    region: Any,
    proposal: Proposal,
    num_samples: int,
    seed: int,
    ks: tuple[int, ...],
    num_posterior_draws: int,
    evaluator: Callable[[Program, Draw], Evaluate],
) -> _Run:
    columns = block.asked_for
    with noise(block.program, seed_for(seed, f"proposal {proposal.name}"), block.place):
        fitted = proposal.fit(block, region)
    part = block.part(columns)._replace(program=fitted.program)
    totals, terms = Totals(num_samples, ks), GuideTerms()
    reservoir = Reservoir(num_posterior_draws, Noise(block.program.num_data, columns))
    is_whole = len(columns) == block.program.num_data  # a graph has the size of a whole block
    evaluate = (evaluator if is_whole else partial(evaluating, joint=region.joint))(part.program, fitted.draw)
    for tile in tiles_of(part, evaluate, num_samples, seed, block.program.num_data):
        totals.add(tile.densities.weight)
        terms.add(tile.densities)
        with noise(block.program, seed_for(seed, "resampling"), block.place * num_samples + tile.draws.start):
            reservoir.add(part.program, tile.densities, tile.latents)
    seen = _seen(block, region, fitted, seed) if num_samples >= MIN_SAMPLES and proposal.width is not None else []
    spent = fitted.num_evaluations + num_samples + NUM_POINTS * (len(seen) > 0)
    return _Run(totals, terms, reservoir, torch.zeros_like(columns) + spent, seen, fitted.converged)


def _seen(block: Block, region: Any, fitted: Fitted, seed: int) -> list[Elsewhere]:
    """What draws from elsewhere say of a proposal: some about it, and those that were made to find it."""
    with noise(block.program, seed_for(seed, "survey"), block.place):
        around = survey(region, [fitted.component or region.guide])
        return [each.against(fitted.component) for each in (around, fitted.seen) if each is not None]


def _seen_of_guide(
    program: Program, view: Unconstrained | None, seed: int, first_index: int, joint: Joint
) -> Elsewhere:
    """The same of the guide, for more data at a time than a tile of its draws has."""
    parts = []
    for block in blocks(program, block_width(program, NUM_POINTS), first_index):
        region = region_of(view, block, block.asked_for, joint)
        parts += _seen(block, region, proposals.Guide().fit(block, region), seed)
    return Elsewhere.joined(parts)


def _evidence(
    program: Program,
    observed: Observed,
    proposal: Proposal,
    runs: list[_Run],
    seen: list[Elsewhere],
    ks: tuple[int, ...],
    num_samples: int,
    seed: int,
    first_index: int,
) -> Evidence:
    totals = Totals.joined([run.totals for run in runs])
    found = totals.estimate()
    contradicted = torch.zeros_like(found.reliable)
    for each in seen:
        contradicted = contradicted | each.contradicts(found)
        found = checked(found, num_samples, each)
    all_bounds = {
        k: Bound(k, *pair) for k, pair in zip(ks, torch.cat([run.totals.bounds() for run in runs], -1), strict=True)
    }
    all_bounds[num_samples] = Bound(num_samples, found.log_evidence, found.std_error)
    num_evaluations = torch.cat([run.num_evaluations for run in runs]).cpu()
    if isinstance(proposal, proposals.Guide):
        terms = GuideTerms.joined([run.terms for run in runs])
        num_evaluations = num_evaluations + NUM_POINTS * len(seen)
    else:
        terms = guide_terms(program, NUM_ELBO_SAMPLES, seed, first_index)
        num_evaluations = num_evaluations + NUM_ELBO_SAMPLES
    diagnostics = {"contradicted": contradicted} if seen else {}
    if runs[0].converged is not None:
        diagnostics["converged"] = torch.cat([run.converged for run in runs if run.converged is not None]).cpu()
    return Evidence(
        **found._asdict(),
        num_evaluations=num_evaluations,
        num_samples=num_samples,
        seed=seed,
        method=(f"importance sampling from {proposal.name}",) * program.num_data,
        all_bounds=all_bounds,
        observed=observed,
        guide_elbo=terms.elbo,
        rate=terms.rate,
        distortion=terms.distortion,
        draws=Draws.joined([run.reservoir.draws for run in runs]),
        settings={"proposal": proposal.name, "num_samples": num_samples},
        diagnostics=diagnostics,
    )


class GuideTerms:
    """The ELBO of draws from the guide, and its two halves, rate and distortion."""

    def __init__(self) -> None:
        self.num_samples = 0
        self.sums = torch.zeros((), dtype=torch.float64)
        self.weights = Groups(1)

    def add(self, densities: LogDensities) -> None:
        prior, likelihood, guide = (each.cpu() for each in densities)
        self.num_samples += len(prior)
        self.sums = self.sums + torch.stack([(guide - prior).sum(0), -likelihood.sum(0)])
        self.weights.add(densities.weight.cpu())

    @classmethod
    def joined(cls, parts: list[GuideTerms]) -> _Terms:
        """Of the data of all parts."""

        def cat(of_part: Callable[[GuideTerms], Tensor]) -> Tensor:
            return torch.cat([of_part(part) for part in parts], dim=-1)

        rate, distortion = cat(lambda part: part.sums / part.num_samples)
        return _Terms(Bound(1, cat(lambda p: p.weights.mean), cat(lambda p: p.weights.std_error)), rate, distortion)


class _Terms(NamedTuple):
    elbo: Bound
    rate: Tensor
    distortion: Tensor


def guide_terms(program: Program, num_samples: int, seed: int, first_index: int = 0) -> _Terms:
    """The ELBO from draws of their own."""
    parts: dict[int, GuideTerms] = {}
    for block, tile in tiles(program, num_samples, seed_for(seed, "ELBO"), first_index):
        parts.setdefault(block.place, GuideTerms()).add(tile.densities)
    return GuideTerms.joined(list(parts.values()))


class Reservoir:
    """Draws from the posterior, resampled by weight while draws of the proposal go by.

    Each of S slots holds one of the draws seen so far, with probability in proportion to its weight.
    """

    def __init__(self, num_draws: int, noise: Noise) -> None:
        self.num_draws, self.noise = num_draws, noise
        self.log_sum: Tensor | None = None

    def add(self, program: Program, densities: LogDensities, latents: Latents) -> None:
        if not self.num_draws:
            return
        weight = densities.weight
        index = resampled(weight, self.noise.uniform(self.num_draws))
        log_sum = weight.logsumexp(0)
        values = {name: _rows(program.draws_first(value), index) for name, value in latents.items()}
        prior, likelihood = _rows(densities.prior, index), _rows(densities.likelihood, index)
        if self.log_sum is None:
            self.log_sum, self.values, self.prior, self.likelihood = log_sum, values, prior, likelihood
            return
        self.log_sum = torch.logaddexp(self.log_sum, log_sum)
        taken = self.noise.uniform(self.num_draws) < (log_sum - self.log_sum).exp()
        self.values = {name: _where(taken, value, self.values[name]) for name, value in values.items()}
        self.prior, self.likelihood = _where(taken, prior, self.prior), _where(taken, likelihood, self.likelihood)

    @property
    def draws(self) -> Draws | None:
        return Draws(self.values, self.prior, self.likelihood) if self.num_draws else None


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """For each datum the draws of these indices `(S, N)`, of `(K, N, ...)`."""
    return value[index, torch.arange(index.shape[1], device=index.device)]


def _where(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition.reshape(*condition.shape, *(1,) * (one.ndim - 2)), one, other)
