"""Draw 60 points from distributions wider than a proposal, to find mass that its own draws miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.evidence.laplace import FullNormal, LaplaceFit, fit_laplace, moments
from pyro_vae.evidence.result import Draws
from pyro_vae.evidence.weights import Estimate, resampled
from pyro_vae.program.core import Program
from pyro_vae.program.enumeration import all_values
from pyro_vae.program.joint import Joint, as_it_is
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Block, Draw, Noise
from pyro_vae.program.unconstrained import Unconstrained

__all__ = [
    "NUM_POINTS",
    "Component",
    "DrawnRegion",
    "Elsewhere",
    "Region",
    "Survey",
    "checked",
    "find_modes",
    "region_of",
    "survey",
]

NUM_POINTS = 60  # in all
FACTORS = (2.0, 4.0)  # by which a proposal is widened
NUM_MOMENT_DRAWS = 64
LARGEST_ERROR = 0.25  # nats, beyond which the delta method from p(x) to log p(x) fails
WORSE = 1.5  # factor by which the survey's error must be larger: from few draws, it is itself uncertain by a fifth
ROUNDING = 1e-4  # nats
UNCHECKED_KHAT = 0.4  # the largest for proposals whose density elsewhere is not known

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
    joint: Joint = as_it_is

    @classmethod
    def of(cls, program: Program, whole: Unconstrained, columns: Tensor, joint: Joint = as_it_is) -> Region:
        """Make the region of some columns of a block."""
        return cls(program, whole, Noise(whole.program.num_data, columns, whole.dim), joint)

    @property
    def can_draw_prior(self) -> bool:
        return self.counting.can_draw_prior

    @cached_property
    def view(self) -> Unconstrained:
        """The view of the columns."""
        return self.whole.at(self.noise.columns)

    def at(self, columns: Tensor) -> Region:
        """Select other columns of the block."""
        return Region.of(self.counting, self.whole, columns, self.joint)

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
        latents, stretch = self.view.unpack(u)
        prior, likelihood = self.joint(self.view.program, latents)
        return prior + stretch, likelihood

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

        def draw(num_samples: int) -> tuple[Latents, Tensor]:
            u, inside = self.inside(component.draw(num_samples))
            latents, stretch = self.view.unpack(u)
            return latents, torch.where(inside, component.log_prob(u) - stretch, torch.inf)

        return draw

    def half_and_half(self, one: Component, other: Component) -> Component:
        """Mix two densities in equal parts."""

        def draw(num_samples: int) -> Tensor:
            is_one = self.noise.uniform(num_samples) < 0.5
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
    """Like `Region`, for latents without an unconstrained view (discrete ones). Proposals cannot be widened here."""

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

    def widened(self, proposal: Component) -> list[Component]:
        return [proposal]

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
    return Region.of(block.program, view.on(block.program), columns, joint)


class Elsewhere(NamedTuple):
    """What M draws z from a mixture g say about a proposal q, each `(M, N)` of float64, nats."""

    log_ratio: Tensor
    """log p(x, z) - log g(z)."""
    log_weight: Tensor
    """log p(x, z) - log q(z), the weight that z would have had: +inf where q is zero, NaN where it is unknown."""

    @classmethod
    def joined(cls, parts: Sequence[Elsewhere]) -> Elsewhere:
        """Join parts along the data."""
        return cls(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def at(self, rows: Tensor) -> Elsewhere:
        """Select rows by index."""
        return Elsewhere(*(each[:, rows] for each in self))

    @property
    def log_evidence(self) -> Tensor:
        """log p(x) by importance sampling from g, `(N,)`."""
        return _log_mean(self.log_ratio)

    @property
    def std_error(self) -> Tensor:
        """The standard error of `log_evidence`, `(N,)`; infinite where no draw has a weight."""
        share = (self.log_ratio - self.log_ratio.logsumexp(0)).exp()
        num, ess = len(share), 1 / share.square().sum(0)
        return ((num / ess - 1).clamp(min=0) / (num - 1)).sqrt().nan_to_num(nan=math.inf)

    def std_error_of(self, log_evidence: Tensor, num_samples: int) -> Tensor:
        r"""Return the error of K draws of q in log p(x), as judged by draws that go where those of q rarely do, `(N,)`.

        Weights up to t have the second moment $v = E_g[\frac{p}{g} \frac{p}{q}; w \le t] / p(x)^2$; those above hold a
        share m of p(x) that K draws may miss. The error is $\sqrt{\log(1 + (v - (1 - m)^2) / K)} + m$, at the best t,
        and zero where all weights are p(x).
        """
        variance, mass = self._cut(log_evidence)
        error = ((variance / max(num_samples - 1, 1)).log1p().sqrt() + mass).amin(0)
        is_exact = ((self.log_weight - log_evidence).abs() < ROUNDING).all(0)
        return error.where(~is_exact, 0.0)

    def relative_variance(self, log_evidence: Tensor, negligible: float) -> Tensor:
        """Return the variance of q's weights over p(x)^2, without weights that hold a negligible share of p(x)."""
        variance, mass = self._cut(log_evidence)
        return variance.where(mass <= negligible, torch.inf).amin(0)

    def _cut(self, log_evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Return the variance of the weights below each cut, and the share of p(x) above it, `(M + 1, N)` each."""
        order = self.log_weight.argsort(0, descending=True)
        share = (self.log_ratio.gather(0, order) - log_evidence - math.log(len(order))).exp()
        relative = (self.log_weight.gather(0, order) - log_evidence).clamp(max=200).exp()
        nothing = torch.zeros_like(share[:1])
        mass = torch.cat([nothing, share.cumsum(0)])
        second = torch.cat([(share * relative).flip(0).cumsum(0).flip(0), nothing])
        return (second - (1 - mass).clamp(min=0).square()).clamp(min=0), mass

    def contradicts(self, found: Estimate) -> Tensor:
        """Tell where these draws found significantly more than an estimate, which then missed some of p(x), `(N,)`."""
        both = (self.std_error.square() + found.std_error.nan_to_num().square()).sqrt()
        return self.log_evidence > found.log_evidence + 3 * both + 0.05


def _log_mean(values: Tensor) -> Tensor:
    return values.logsumexp(0) - math.log(len(values))


class Survey(NamedTuple):
    """Draws from a mixture g of densities, and their densities under the model."""

    places: Latent
    log_joint: Tensor
    """log p(x, z), `(M, N)`; -inf where it is not a number."""
    log_mixture: Tensor
    """log g(z), `(M, N)`."""
    is_everything: bool = False
    """Whether the places are all possible values, each once."""

    @property
    def log_ratio(self) -> Tensor:
        """log p(x, z) - log g(z), `(M, N)`."""
        return (self.log_joint - self.log_mixture).where(self.log_joint.isfinite(), -torch.inf)

    def at(self, columns: Tensor) -> Survey:
        """Select rows by index; places are vectors."""
        return Survey(self.places[:, columns], self.log_joint[:, columns], self.log_mixture[:, columns])

    @property
    def num_places(self) -> int:
        """M."""
        return len(self.log_joint)

    @torch.no_grad()
    def against(self, proposal: Component | None) -> Elsewhere:
        """Judge a proposal by these draws. None, one of unknown density, has NaN weights: only p(x) is compared."""
        if proposal is None:
            return Elsewhere(self.log_ratio.cpu(), torch.full_like(self.log_joint, math.nan).cpu())
        with pyro.validation_enabled(False):
            log_prob, has_density = _number(proposal.log_prob(self.places)), self.log_joint.isfinite()
            if proposal.log_weight is None:
                log_weight, log_ratio = self.log_joint - log_prob, self.log_ratio
            else:
                log_weight = _number(proposal.log_weight(self.places))
                log_ratio = log_weight + log_prob - self.log_mixture
        return Elsewhere(*(each.where(has_density, -torch.inf).cpu() for each in (log_ratio, log_weight)))


def survey(region: Any, proposals: Sequence[Component | None]) -> Survey:
    """Draw from the prior and from proposals, as they are and widened; or list all values, where they are few."""
    everything = region.everything()
    if everything is not None:
        log_joint = _number(sum(region.log_joint(everything)))
        return Survey(everything, log_joint, torch.full_like(log_joint, -math.log(len(log_joint))), True)
    components = [each for proposal in proposals if proposal is not None for each in region.widened(proposal)]
    if region.can_draw_prior:
        components.append(Component(region.draw_prior, lambda place: region.log_joint(place)[0]))
    heights = [NUM_POINTS // len(components) + (i < NUM_POINTS % len(components)) for i in range(len(components))]
    drawn = [each.draw(height) for each, height in zip(components, heights, strict=True)]
    places, inside = region.inside(region.join(drawn))
    prior, likelihood = region.log_joint(places)
    of_prior = [prior] if region.can_draw_prior else []
    each = [*(component.log_prob(places) for component in components[: len(components) - len(of_prior)]), *of_prior]
    shares = [math.log(height / NUM_POINTS) for height in heights]
    mixture = torch.stack([_number(density) + share for density, share in zip(each, shares, strict=True)]).logsumexp(0)
    log_joint = _number(prior + likelihood).where(inside, -torch.inf)
    return Survey(places, log_joint.where(~log_joint.isposinf(), -torch.inf), mixture)


def _number(log_density: Tensor) -> Tensor:
    return log_density.where(~log_density.isnan(), -torch.inf)


def checked(found: Estimate, num_samples: int, seen: Elsewhere) -> Estimate:
    """Correct the error of an estimate, and whether it is reliable, by what the survey's draws show.

    Their error (`Elsewhere.std_error_of`) replaces the estimate's where it is clearly larger. An error above a quarter
    of a nat is not reliable, nor is an estimate when significantly more was found. A proposal whose density elsewhere
    is not known needs a k-hat below 0.4 instead.
    """
    believed = found.reliable & ~seen.contradicts(found)
    if seen.log_weight.isnan().any():
        return found._replace(reliable=believed & (found.khat < UNCHECKED_KHAT))
    as_seen = seen.std_error_of(found.log_evidence, num_samples)
    std_error = torch.where(as_seen > WORSE * found.std_error.nan_to_num(), as_seen, found.std_error)
    return found._replace(std_error=std_error, reliable=believed & (std_error < LARGEST_ERROR))


def find_modes(region: Region, seen: Survey) -> LaplaceFit:
    """Find Laplace's Gaussians, starting at the guide's mean, and where a survey found what they leave out.

    It consumes noise of the block.
    """
    loc, _ = moments(region.draw_guide(NUM_MOMENT_DRAWS))
    prior = region.draw_prior(NUM_MOMENT_DRAWS) if region.view.program.can_draw_prior else seen.places
    return fit_laplace(region.view, loc, prior, seen.places, seen.log_ratio)
