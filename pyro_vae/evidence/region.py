"""Where the latents of some data lie: what they can be drawn from there, and the densities of such draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evidence.draws import Draws
from pyro_vae.evidence.gaussians import FullNormal, moments
from pyro_vae.evidence.weights import resampled
from pyro_vae.program.core import Program
from pyro_vae.program.enumeration import all_values
from pyro_vae.program.joint import Joint, as_it_is
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Block, Draw, Noise, Strip, with_noise
from pyro_vae.program.unconstrained import Unconstrained

__all__ = ["NUM_MOMENT_DRAWS", "Component", "DrawnRegion", "Region", "region_of"]

FACTORS = (2.0, 4.0)  # by which a proposal is widened
NUM_MOMENT_DRAWS = 64

Latent = Any
"""A place of the latents: u `(K, N, D)` in a `Region`, or the values themselves where they have no such view."""


class Component(NamedTuple):
    """A density of the latents that can be drawn from and evaluated."""

    draw: Callable[[int], Latent]
    log_prob: Callable[[Latent], Tensor]
    """`(K, N)`, at any place."""
    log_weight: Callable[[Latent], Tensor] | None = None
    """Log weights of its draws, where they are not log p(x, z) - `log_prob`; the weights' mean is p(x) as well."""


@dataclass(frozen=True)
class Region:
    """Some columns of a block, with latents as vectors u.

    Noise is drawn for the whole block, so that it does not depend on which columns were asked for.
    """

    counting: Program
    """The block's program, with the densities of the latents that count."""
    whole: Unconstrained
    noise: Noise

    @classmethod
    def of(cls, program: Program, whole: Unconstrained, columns: Tensor) -> Region:
        """Make the region of some columns of a block."""
        return cls(program, whole, Noise(whole.program.num_data, columns, whole.dim))

    @property
    def joint(self) -> Joint:
        return self.whole.joint

    @property
    def can_draw_prior(self) -> bool:
        return self.counting.can_draw_prior

    @cached_property
    def view(self) -> Unconstrained:
        """The view of the columns."""
        return self.whole.at(self.noise.columns)

    def at(self, columns: Tensor) -> Region:
        """Select other columns of the block."""
        return Region.of(self.counting, self.whole, columns)

    def of_guide(self, whole: Program, program: Program) -> Component:
        """Make a component of another guide: the whole block's, to draw from, and these columns', to evaluate."""
        drawn_by = self.whole.on(whole)
        view = replace(drawn_by.at(self.noise.columns), program=program.with_masked_latents)

        def draw(num_samples: int) -> Tensor:
            return drawn_by.draw_guide(num_samples)[0][:, self.noise.columns]

        return Component(draw, view.log_guide, _log_weight(program, view))

    def draw_guide(self, num_samples: int) -> Tensor:
        """Draw u `(K, N, D)` from the guide."""
        return self.whole.draw_guide(num_samples)[0][:, self.noise.columns]

    def draw_prior(self, num_samples: int) -> Tensor:
        """Draw u `(K, N, D)` from the prior."""
        return self.whole.draw_prior(num_samples)[:, self.noise.columns]

    def log_joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(u) and log p(x|u), `(K, N)` each."""
        return self.view.log_joint(u)

    def log_prior(self, u: Tensor) -> Tensor:
        """Return log p(u), `(K, N)`, without running the decoder."""
        latents, stretch = self.view.unpack(u)
        return self.view.program.log_prior(latents) + stretch

    @property
    def guide(self) -> Component:
        """The guide, if its density is known everywhere; otherwise a Gaussian with its mean and variances."""
        if self.view.program.guide_has_density:
            counting = self.counting.at(self.noise.columns)
            return Component(self.draw_guide, self.view.log_guide, _log_weight(counting, self.view))
        loc, variance = moments(self.draw_guide(NUM_MOMENT_DRAWS))
        return self.gaussian(FullNormal(loc, variance.sqrt().diag_embed()))

    def gaussian(self, gaussian: Any) -> Component:
        """Make a component of a Gaussian, or of a mixture of them."""
        if isinstance(gaussian, FullNormal):
            return Component(lambda num: gaussian.rsample(self.noise.normal(num)), gaussian.log_prob)
        return Component(lambda num: gaussian.sample(self.noise, num), gaussian.log_prob)

    def drawing(self, component: Component) -> Draw:
        """Make a function that draws latents from a density over u. Outside the prior's support, weights are zero."""

        def draw(strips: Sequence[Strip]) -> tuple[Latents, Tensor]:
            program = self.view.program
            u, inside = self.inside(torch.cat([with_noise(program, strip, component.draw) for strip in strips]))
            latents, stretch = self.view.unpack(u)
            return latents, torch.where(inside, component.log_prob(u) - stretch, torch.inf)

        return draw

    def half_and_half(self, one: Component, other: Component) -> Component:
        """Mix two densities in equal parts."""

        def draw(num_samples: int) -> Tensor:
            # Every second draw, not the first half: the draws of a mixture are in the order of its parts.
            is_even = torch.arange(num_samples, device=self.noise.columns.device)[:, None] % 2 == 0
            is_one = is_even == (self.noise.uniform(1) < 0.5)
            return torch.where(is_one[..., None], one.draw(num_samples), other.draw(num_samples))

        def log_prob(u: Tensor) -> Tensor:
            return torch.logaddexp(one.log_prob(u), other.log_prob(u)) - math.log(2)

        return Component(draw, log_prob)

    def widened(self, proposal: Component) -> list[Component]:
        """Return the proposal as it is, stretched about its mean, and mirrored at the prior's, as signs can flip."""
        centre, _ = moments(proposal.draw(NUM_MOMENT_DRAWS))
        wider = [_moved(proposal, centre, factor) for factor in FACTORS]
        if not self.can_draw_prior:
            return [proposal, *wider]
        middle, variance = moments(self.draw_prior(NUM_MOMENT_DRAWS))
        middle = middle.where(middle.square() > 16 * variance / NUM_MOMENT_DRAWS, 0.0)  # near zero: mostly zero
        return [proposal, *wider, _moved(proposal, middle, -1.0)]

    def everything(self) -> None:
        """Return None: the values of continuous latents cannot be listed."""

    def join(self, places: list[Tensor]) -> Tensor:
        return torch.cat(places)

    def inside(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which places lie in the prior's support, and move the others to where they can be evaluated."""
        inside = u.isfinite().all(-1)
        return u.where(inside[..., None], 0.0), inside


def _log_weight(counting: Program, view: Unconstrained) -> Callable[[Tensor], Tensor] | None:
    """Weigh a guide's draws by the densities of what counts; return None if no latent is masked."""
    if not counting.counting:
        return None

    def log_weight(u: Tensor) -> Tensor:
        latents, _ = view.unpack(u)
        return torch.stack(counting.log_joint(latents)).sum(0) - counting.log_guide(latents | view.auxiliary(u))

    return log_weight


def _moved(proposal: Component, centre: Tensor, factor: float) -> Component:
    """Make the component of centre + factor (u - centre), with u from the proposal."""

    def log_prob(u: Tensor) -> Tensor:
        return proposal.log_prob(centre + (u - centre) / factor) - u.shape[-1] * math.log(abs(factor))

    return Component(lambda num: centre + factor * (proposal.draw(num) - centre), log_prob)


@dataclass(frozen=True)
class DrawnRegion:
    """Like `Region`, for latents of which some have no unconstrained view, such as discrete ones."""

    whole: Program
    columns: Tensor
    joint: Joint = as_it_is

    @property
    def can_draw_prior(self) -> bool:
        return self.whole.can_draw_prior

    @cached_property
    def program(self) -> Program:
        """The program of the columns."""
        return self.whole.at(self.columns)

    def at(self, columns: Tensor) -> DrawnRegion:
        return DrawnRegion(self.whole, columns, self.joint)

    def draw_prior(self, num_samples: int) -> Latents:
        return self.whole.choose(self.whole.draw_prior(num_samples), self.columns)

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        return self.joint(self.program, latents)

    @property
    def guide(self) -> Component | None:
        has_density = self.program.guide_has_density and not self.program.structure.auxiliary
        return self.of_guide(self.whole, self.program) if has_density else None

    def of_guide(self, whole: Program, program: Program) -> Component:
        """Make a component of a guide: the whole block's, to draw from, and these columns', to evaluate."""
        return Component(lambda num: whole.choose(whole.draw(num)[0], self.columns), program.log_guide)

    @cached_property
    def view(self) -> Unconstrained | None:
        """The view of the latents that have one."""
        return Unconstrained.of_some(self.program)

    def widened(self, proposal: Component) -> list[Component]:
        """Return the proposal, and what has a view stretched about its mean for the same values of all else."""
        if self.view is None:
            return [proposal]
        drawn = proposal.draw(NUM_MOMENT_DRAWS)
        return [proposal, *(self._stretched(proposal, self.view, drawn, factor) for factor in FACTORS)]

    def _stretched(self, proposal: Component, view: Unconstrained, drawn: Latents, factor: float) -> Component:
        def moved(latents: Latents, by: float) -> tuple[Latents, Tensor]:
            u, centre = view.pack(latents), self._means(view, drawn, latents)
            values, stretch = view.unpack(centre + by * (u - centre))
            return latents | values, stretch + view.dim * math.log(by) - view.unpack(u)[1]

        def log_prob(latents: Latents) -> Tensor:
            origin, stretch = moved(latents, 1 / factor)
            return proposal.log_prob(origin) + stretch

        return Component(lambda num: moved(proposal.draw(num), factor)[0], log_prob)

    def _means(self, view: Unconstrained, drawn: Latents, latents: Latents) -> Tensor:
        """Average the draws with the same values of what has no view; all draws where none has the same."""
        u = view.pack(drawn).nan_to_num()
        has_view = {site.name for site in view.sites}
        same = torch.ones(len(u), *view.pack(latents).shape[:2], dtype=torch.bool, device=u.device)
        for name in latents.keys() - has_view:
            one, other = (self.program.draws_first(each[name]) for each in (drawn, latents))
            same = same & (one[:, None] == other).flatten(3).all(-1) if one.ndim > 2 else same & (one[:, None] == other)
        weight = same.where(same.any(0), True).double()
        return torch.einsum("kmn,knd->mnd", weight, u) / weight.sum(0)[..., None]

    def everything(self) -> Latents | None:
        return all_values(self.program)

    def resampled(self, latents: Latents, log_joint: Tensor, num_draws: int) -> Draws | None:
        """Draw from the posterior over all values."""
        if not num_draws:
            return None
        uniform = torch.rand(num_draws, self.whole.num_data, dtype=torch.float64, device=self.columns.device)
        index = resampled(log_joint, uniform[:, self.columns])
        rows = torch.arange(len(self.columns), device=index.device)
        values = {name: self.program.draws_first(value)[index, rows] for name, value in latents.items()}
        prior, likelihood = (each[index, rows].cpu() for each in self.program.log_joint(latents))
        return Draws({name: value.cpu() for name, value in values.items()}, prior, likelihood)

    def join(self, places: list[Latents]) -> Latents:
        return {name: torch.cat([each[name] for each in places]) for name in places[0]}

    def inside(self, latents: Latents) -> tuple[Latents, Tensor]:
        shape = (len(next(iter(latents.values()))), len(self.columns))
        return latents, torch.ones(shape, dtype=torch.bool, device=self.columns.device)


def region_of(view: Unconstrained | None, block: Block, columns: Tensor, joint: Joint = as_it_is) -> Any:
    """Make a `Region` if the latents have an unconstrained view, otherwise a `DrawnRegion`."""
    if view is None:
        return DrawnRegion(block.program.with_masked_latents, columns, joint)
    return Region.of(block.program, replace(view.on(block.program), joint=joint), columns)
