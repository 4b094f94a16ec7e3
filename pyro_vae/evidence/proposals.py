"""Proposals for importance sampling: the guide, and what can be made of it for each datum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.evidence.gaussians import moments
from pyro_vae.evidence.laplace import LaplaceFit
from pyro_vae.evidence.local import refine
from pyro_vae.evidence.region import NUM_MOMENT_DRAWS, Component, Region
from pyro_vae.evidence.survey import NUM_POINTS, Survey, find_modes, survey
from pyro_vae.program.core import Program
from pyro_vae.program.tiles import Block, Draw, in_strips, kept

__all__ = ["PROPOSALS", "Defensive", "Fitted", "FromGuide", "Gaussian", "Inflated", "Laplace", "Local", "Proposal"]


FITTED_TOGETHER = 128  # data


class Fitted(NamedTuple):
    """A proposal for some columns of a block."""

    draw: Draw
    program: Program
    """Evaluates the draws."""
    component: Component | None
    """Draws and evaluates the proposal anywhere; None if its density is known only at its own draws."""
    num_evaluations: Tensor | int = 0
    """Evaluations of log p(x, z) spent on each datum to find the proposal."""
    seen: Survey | None = None
    """The survey of the posterior that the search made."""
    converged: Tensor | None = None
    """Whether the search converged, `(N,)`."""

    @classmethod
    def to(cls, component: Component, region: Region) -> Fitted:
        """Make a proposal of a density over u."""
        return cls(region.drawing(component), region.view.program, component)


class Proposal(Protocol):
    """Makes a proposal for each datum from the data and separate noise, and never sees the draws that count."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int | None:
        """How many data are fitted in one block; None if fitting needs no block."""

    @property
    def needs_view(self) -> bool:
        """Whether latents must have a view as unconstrained vectors."""

    def fit(self, block: Block, region: Any) -> Fitted: ...


@dataclass(frozen=True)
class FromGuide:
    """The guide as it is."""

    name = "the guide"
    width = None
    needs_view = False

    def fit(self, block: Block, region: Any) -> Fitted:
        return guide_of(block.program, region, block.asked_for)


def guide_of(program: Program, region: Any, columns: Tensor) -> Fitted:
    """Make a proposal of the guide as it is, for some columns of a block's program."""
    component = region.guide if program.guide_has_density else None
    return Fitted(in_strips(program, kept(program, program.draw, columns)), program.at(columns), component)


@dataclass(frozen=True)
class Inflated:
    r"""The guide stretched about its mean m: $u = m + c (u_0 - m)$ with $u_0$ from the guide.

    Several factors c give their mixture in equal parts. Its tails are heavier than the guide's, and it loses little
    where the guide is right. Its density is $\frac{1}{J} \sum_j q(m + (u - m) / c_j) c_j^{-D}$.
    """

    factors: float | tuple[float, ...] = 1.2
    width = FITTED_TOGETHER
    needs_view = True

    def __post_init__(self) -> None:
        if not self._factors:
            raise ValueError("factors: expected at least one; got none; pass 1.2, say.")
        for factor in self._factors:
            _checks.positive("factors", factor)

    @property
    def _factors(self) -> tuple[float, ...]:
        return tuple(self.factors) if isinstance(self.factors, (tuple, list)) else (self.factors,)

    @property
    def name(self) -> str:
        return f"the guide, stretched by {', '.join(f'{factor:g}' for factor in self._factors)}"

    def fit(self, block: Block, region: Region) -> Fitted:
        centre, _ = moments(region.draw_guide(NUM_MOMENT_DRAWS))
        factors = torch.tensor(self._factors, dtype=torch.float64, device=centre.device)

        def draw(num_samples: int) -> Tensor:
            u = region.draw_guide(num_samples)
            chosen = (region.noise.uniform(num_samples) * len(factors)).long()
            return centre + factors[chosen][..., None] * (u - centre)

        def log_prob(u: Tensor) -> Tensor:
            each = [region.view.log_guide(centre + (u - centre) / c) - region.view.dim * c.log() for c in factors]
            return torch.stack(each).logsumexp(0) - math.log(len(factors))

        return Fitted.to(Component(draw, log_prob), region)


@dataclass(frozen=True)
class Defensive:
    r"""A mixture $\alpha p(z) + (1 - \alpha) q(z|x)$: no weight is above $p(x|z) / \alpha$.

    References:
        Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
    """

    weight: float = 0.1
    width = FITTED_TOGETHER
    needs_view = True

    def __post_init__(self) -> None:
        _checks.probability("weight", self.weight)

    @property
    def name(self) -> str:
        return f"a mixture of the guide and {self.weight:g} parts of the prior"

    def fit(self, block: Block, region: Region) -> Fitted:
        def draw(num_samples: int) -> Tensor:
            guide, prior = region.draw_guide(num_samples), region.draw_prior(num_samples)
            from_prior = region.noise.uniform(num_samples) < self.weight
            return torch.where(from_prior[..., None], prior, guide)

        def log_prob(u: Tensor) -> Tensor:
            prior = region.log_prior(u) + math.log(self.weight)
            return torch.logaddexp(prior, region.view.log_guide(u) + math.log1p(-self.weight))

        return Fitted.to(Component(draw, log_prob), region)


@dataclass(frozen=True)
class Laplace:
    """A Gaussian at each datum's posterior mode, with the curvature there; a mixture, if there are several modes."""

    name = "Laplace's Gaussian"
    width = FITTED_TOGETHER
    needs_view = True

    def fit(self, block: Block, region: Region) -> Fitted:
        seen = survey(region, [region.guide])
        return _of_modes(find_modes(region, seen), seen, region)


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian of full covariance for each datum, fitted by variational inference from Laplace's.

    Where the posterior is no Gaussian, its mean and covariance fit better than a mode and the curvature there. The best
    such Gaussian is rather too narrow than too wide, so that its variances are raised in the end, by 0.6 over the
    dimension; and it serves best where annealing starts. A mixture, if there are several modes.
    """

    name = "a fitted Gaussian"
    width = FITTED_TOGETHER
    needs_view = True

    def fit(self, block: Block, region: Region) -> Fitted:
        seen = survey(region, [region.guide])
        return _of_modes(find_modes(region, seen).refined(region.view, region.noise), seen, region)


def _of_modes(found: LaplaceFit, seen: Survey, region: Region) -> Fitted:
    fitted = Fitted.to(region.gaussian(found.gaussians), region)
    spent = NUM_POINTS + found.num_evaluations
    return fitted._replace(num_evaluations=spent, seen=seen, converged=found.converged)


@dataclass(frozen=True)
class Local:
    """The member of the guide's family that is best for the datum (`refine`)."""

    num_steps: int = 300
    num_particles: int = 8
    name = "the guide, refined for each datum"
    width = FITTED_TOGETHER
    needs_view = False

    def __post_init__(self) -> None:
        _checks.whole_number("num_steps", self.num_steps)
        _checks.whole_number("num_particles", self.num_particles)

    def fit(self, block: Block, region: Any) -> Fitted:
        columns = block.asked_for
        whole = refine(block.program, self.num_steps, self.num_particles, columns)
        part = whole.at(columns)
        component = region.of_guide(whole, part) if whole.guide_has_density else None
        draw = in_strips(whole, kept(whole, whole.draw, columns))
        return Fitted(draw, part, component, self.num_steps * self.num_particles)


PROPOSALS: dict[str, Callable[[], Proposal]] = {
    "guide": FromGuide,
    "inflated": Inflated,
    "heavy-tailed": lambda: Inflated((1.0, 1.2, 1.5, 2.0)),
    "defensive": Defensive,
    "laplace": Laplace,
    "gaussian": Gaussian,
    "local": Local,
}


def of(proposal: str | Proposal) -> Proposal:
    """Return the proposal of a name, or the proposal itself."""
    if isinstance(proposal, str):
        return PROPOSALS[_checks.choice("proposal", proposal, tuple(PROPOSALS))]()
    if isinstance(proposal, type) or not callable(getattr(proposal, "fit", None)):
        listed = ", ".join(map(repr, PROPOSALS))
        raise TypeError(f"proposal: expected one of {listed}, or an object such as Inflated(1.5); got {proposal!r}.")
    return proposal
