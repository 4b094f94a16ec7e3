"""log p(x) by importance sampling, from the guide or from a better proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._options import refusing_unknown_options
from pyro_vae._random import seed_for
from pyro_vae.distributed import shared
from pyro_vae.evidence import proposals
from pyro_vae.evidence.bounds import Bound
from pyro_vae.evidence.collect import Collected, GuideTerms, collected
from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.elsewhere import Elsewhere, checked
from pyro_vae.evidence.estimator import Estimator, Found, Task, evaluate
from pyro_vae.evidence.guide_graph import GuideAndModel
from pyro_vae.evidence.proposals import Fitted, Proposal
from pyro_vae.evidence.psis import MIN_SAMPLES
from pyro_vae.evidence.result import Evidence
from pyro_vae.evidence.survey import NUM_POINTS, survey
from pyro_vae.evidence.weights import Estimate, Totals
from pyro_vae.program.core import Program
from pyro_vae.program.joint import Compile, joint_of
from pyro_vae.program.tiles import (
    Block,
    Noise,
    Tile,
    block_width,
    evaluating,
    noise,
    side_by_side,
    tile_size,
    tiles_of,
    zero_where_unknown,
)

__all__ = ["ImportanceSampling", "importance_sampling"]

SUMMED_TOGETHER = {"cpu": 8, "cuda": 1}
"""Tiles of the guide's draws that are summed as one: on a CPU a tile is so small that sums of each would take long.
Their latents are in memory together."""


@refusing_unknown_options
def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    joint: bool = False,
    num_samples: int = 1000,
    seed: int = 0,
    proposal: str | Proposal = "guide",
    bounds: Iterable[int] | None = None,
    plate: str | None = None,
    first_index: int = 0,
    num_posterior_draws: int = 16,
    chunk_size: int | None = None,
    compile: Compile = "auto",
    partial: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Evidence:
    r"""Estimate log p(x) of each datum by $\log \frac{1}{K} \sum_k w_k$ with $w_k = p(x, z_k) / q(z_k)$, $z_k \sim q$.

    For any Pyro model and guide whose sites all lie in one plate over data. Draws are made in tiles of fixed size, so
    memory does not grow with `num_samples`. The numbers of a datum depend only on the seed and on its place: neither on
    `chunk_size` (to float32 rounding), nor on the data before and after it. There are two exceptions: a guide with
    parameters for each datum runs on all data together, and its tiles span them all; and a rejection sampler, such as
    Gamma's, uses a varying share of a tile's noise.
    Parameters are not changed, and torch's generator is left as it was. Scales (`poutine.scale`) are weights of an
    objective, and no part of log p(x).

    Args:
        model, guide: a Pyro program and its guide; `vae.model` and `vae.guide`, or any other. If the guide is None, the
            prior takes its place. Discrete latents with a list of values that the guide leaves out, or marks to be
            enumerated, are summed out.
        args: what both are called with, x first. Tensors and arrays have one row a datum; all else is passed on as it
            is.
        num_samples: the number K of draws for each datum.
        seed: fixes the draws.
        proposal: what q is: "guide"; "inflated" or "heavy-tailed", the guide stretched (`Inflated`); "defensive", mixed
            with the prior (`Defensive`); "laplace", a Gaussian at each datum's posterior mode (`Laplace`); "gaussian",
            one that is fitted further (`Gaussian`); "local", the guide refined for each datum (`Local`); or an object
            of these classes. All but the first and "defensive" fit the proposal with separate noise, so that the
            weights stay unbiased.
        bounds: the k for which to estimate L_k, beside k = 1 and K; 1, 5, 10, 50, 100, ... by default.
        plate: the name of the plate over data; needed only where several could be meant.
        first_index: the place of the first datum, for data that are evaluated in parts: `x[100:200]` with
            `first_index=100` gives the same numbers as within all of x. Parts with the same place share noise, and must
            not be pooled in one error or certificate.
        num_posterior_draws: how many draws from p(z|x) to keep for each datum, by importance resampling.
        chunk_size: how many (datum, draw) pairs the model is evaluated on at a time, if a tile is too many.
        compile: whether to evaluate the model, and the guide if it is the proposal, as a compiled graph. `"auto"` does
            so for large jobs, where data, draws and parameters together repay the seconds that it takes; the same call
            always decides alike. Draws are the same, and densities agree to float32 rounding. A model that cannot be
            compiled runs eagerly, with a warning.
        partial: a folder to keep what was measured in, block by block: the same call, killed and made again, goes on
            from there, with the same numbers. It may be removed afterwards.
        progress: show a bar, with the data done, the mean so far and its error, and the time left.
        kwargs: keyword arguments of both, by name.
        joint: whether to treat all data as one datum: log p(x) of the whole data set. The model may then have latents
            that all data share, all arguments are passed unchanged, and `Evidence` has one entry.

    Returns:
        `Evidence`, with tensors `(N,)` of float64 in nats.

    Raises:
        TypeError, ValueError: for a global latent, a subsampled plate, a guide that has a point for a density or misses
            a site whose values have no list, data that are not in rows or outside their support, modules in training
            mode that share noise among data, weights that are NaN, counts that are not whole numbers.

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
    estimator = ImportanceSampling.of(num_samples, proposal, bounds)
    task = Task.of(
        model, guide, args, kwargs, plate=plate, seed=seed, first_index=first_index,
        num_posterior_draws=num_posterior_draws, joint=joint, chunk_size=chunk_size, compile=compile,
        evaluations=num_samples, partial=partial, progress=progress,
    )  # fmt: skip
    if estimator.is_of_guide and task.is_to_be_compiled:
        task = replace(task, densities=joint_of(chunk_size))
        num_blocks = task.program.num_data // block_width(task.program, estimator.num_samples)
        estimator = replace(estimator, graph=GuideAndModel(num_blocks) if chunk_size is None else None)
    return evaluate(estimator, task)


def _bounds_to_estimate(bounds: Iterable[int] | None, num_samples: int) -> tuple[int, ...]:
    if bounds is None:
        decades = range(math.ceil(math.log10(num_samples)) + 1)
        bounds = [k for decade in decades for k in (10**decade, 5 * 10**decade) if 2 * k <= num_samples]
    ks = {1, num_samples, *(_checks.whole_number("bounds", k) for k in bounds)}
    if max(ks) > num_samples:
        raise ValueError(f"bounds: expected each k to be at most num_samples={num_samples}; got {max(ks)}; draw more.")
    return tuple(sorted(ks))


class _Part(NamedTuple):
    """What was found for one block."""

    kept: Collected
    num_evaluations: Tensor
    seen: list[Elsewhere]
    converged: Tensor | None


@dataclass(frozen=True)
class ImportanceSampling(Estimator[_Part]):
    """Importance sampling from a proposal, as an estimator."""

    num_draws: int
    proposal: Proposal
    ks: tuple[int, ...]
    """The k of the bounds to estimate."""
    graph: GuideAndModel | None = None
    """Draws and evaluates in blocks of whole size, if guide and model are compiled together."""

    @classmethod
    def of(
        cls,
        num_samples: int = 1000,
        proposal: str | Proposal = "guide",
        bounds: Iterable[int] | None = None,
    ) -> ImportanceSampling:
        """Check the options of `importance_sampling`."""
        num_samples = _checks.whole_number("num_samples", num_samples)
        return cls(num_samples, proposals.of(proposal), _bounds_to_estimate(bounds, num_samples))

    @property
    def num_samples(self) -> int:
        return self.num_draws

    @property
    def needs_view(self) -> bool:
        return self.proposal.needs_view

    @property
    def is_fitted(self) -> bool:
        """Whether the proposal is fitted to each block, and surveyed with it."""
        return self.proposal.width is not None

    @property
    def is_of_guide(self) -> bool:
        """Whether the proposal is the guide as it is."""
        return isinstance(self.proposal, proposals.FromGuide)

    @property
    def surveys(self) -> bool:
        """Whether to draw elsewhere too; few draws have no error to check."""
        return self.num_samples >= MIN_SAMPLES

    @property
    def settings(self) -> dict[str, Any]:
        return {"proposal": self.proposal.name, "num_samples": self.num_samples}

    def is_compiled(self, task: Task) -> bool:
        return super().is_compiled(task) or (self.graph is not None and self.graph.is_compiled)

    def block_size(self, program: Program) -> int:
        """Return how many data are measured together: for the guide, those of several tiles, summed as one."""
        if self.proposal.width is not None:
            return self.proposal.width
        tiles_of_one = math.ceil(self.num_samples / tile_size(program))
        together = SUMMED_TOGETHER.get(program.device.type, SUMMED_TOGETHER["cpu"]) // tiles_of_one
        return block_width(program, self.num_samples) * max(1, together)

    def measure(self, block: Block, region: Any, task: Task) -> _Part:
        parts = [(block, region)] if self.is_fitted else [(each, task.region(each)) for each in self._narrow(block)]
        fitted = [self._fitted(each, of_each, task.seed) for each, of_each in parts]
        drawn = [self._tiles(each, of_each, task) for (each, _), of_each in zip(parts, fitted, strict=True)]
        kept = collected(
            block.part(block.asked_for),
            side_by_side(block.program, drawn),
            self.num_samples,
            task.seed,
            Noise(block.program.num_data, block.asked_for),
            task.num_posterior_draws,
            self.ks,
        )
        proposal = fitted[0]
        seen = _seen(block, region, proposal, task.seed) if self.surveys and self.is_fitted else []
        spent = proposal.num_evaluations + self.num_samples + NUM_POINTS * (len(seen) > 0)
        return _Part(kept, torch.zeros_like(block.asked_for) + spent, seen, proposal.converged)

    def _narrow(self, block: Block) -> list[Block]:
        return block.cut(block_width(block.program, self.num_samples))

    def _fitted(self, block: Block, region: Any, seed: int) -> Fitted:
        with noise(block.program, seed_for(seed, f"proposal {self.proposal.name}"), block.place):
            return self.proposal.fit(block, region)

    def _tiles(self, block: Block, fitted: Fitted, task: Task) -> Iterator[Tile]:
        part = block.part(block.asked_for)._replace(program=fitted.program)
        is_whole = len(block.asked_for) == block.program.num_data  # a graph has the size of a whole block
        evaluator = self.graph if self.graph is not None and is_whole else partial(evaluating, joint=task.densities)
        evaluate = evaluator(part.program, fitted.draw)
        evaluate = evaluate if self.is_of_guide else zero_where_unknown(evaluate)
        return tiles_of(part, evaluate, self.num_samples, task.seed, block.program.num_data)

    def estimate_of(self, part: _Part) -> Estimate:
        return part.kept.totals.estimate()

    def found(self, parts: list[_Part], task: Task) -> Found:
        kept = [part.kept for part in parts]
        estimate = Totals.joined([each.totals for each in kept]).estimate()
        num_evaluations = torch.cat([part.num_evaluations for part in parts]).cpu()
        seen = [Elsewhere.joined(each) for each in zip(*(part.seen for part in parts), strict=True)]
        if self.surveys and not self.is_fitted:
            seen, num_evaluations = [_seen_of_guide(task)], num_evaluations + NUM_POINTS
        estimate, contradicted = _judged(estimate, self.num_samples, seen)
        diagnostics = {"contradicted": contradicted} if seen else {}
        if parts[0].converged is not None:
            diagnostics["converged"] = torch.cat([part.converged for part in parts if part.converged is not None]).cpu()
        return Found(
            estimate,
            num_evaluations,
            (f"importance sampling from {self.proposal.name}",) * task.program.num_data,
            Draws.joined([each.reservoir.draws for each in kept]),
            GuideTerms.joined([each.terms for each in kept]) if self.is_of_guide else None,
            self._bounds(kept, estimate),
            diagnostics,
        )

    def _bounds(self, kept: list[Collected], estimate: Estimate) -> dict[int, Bound]:
        pairs = torch.cat([each.totals.bounds() for each in kept], -1)
        bounds = {k: Bound(k, *pair) for k, pair in zip(self.ks, pairs, strict=True)}
        of_all = Bound(self.num_samples, estimate.log_evidence, estimate.std_error)
        return bounds | {self.num_samples: of_all}


def _judged(estimate: Estimate, num_samples: int, seen: list[Elsewhere]) -> tuple[Estimate, Tensor]:
    """Correct an estimate by what draws from elsewhere show, and tell which data they contradict."""
    contradicted = torch.zeros_like(estimate.reliable)
    for each in seen:
        contradicted = contradicted | each.contradicts(estimate)
        estimate = checked(estimate, num_samples, each)
    return estimate, contradicted


def _seen(block: Block, region: Any, fitted: Fitted, seed: int) -> list[Elsewhere]:
    """Judge a proposal by draws from elsewhere: some around it, and those made to find it, if any."""
    with noise(block.program, seed_for(seed, "survey"), block.place):
        around = survey(region, [fitted.component or region.guide])
        return [each.against(fitted.component) for each in (around, fitted.seen) if each is not None]


def _seen_of_guide(task: Task) -> Elsewhere:
    """Judge the guide in the same way, on more data at a time than a tile of its draws has."""
    guide, width = proposals.FromGuide(), block_width(task.program, NUM_POINTS)

    def seen(block: Block) -> list[Elsewhere]:
        region = task.region(block)
        return _seen(block, region, guide.fit(block, region), task.seed)

    return Elsewhere.joined([each for some in shared(task.blocks(width), seen) for each in some])
