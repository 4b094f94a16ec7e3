"""What importance sampling may draw from: the guide, and what can be made of it for each datum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.evidence.laplace import NUM_DRAWS, fit_laplace
from pyro_vae.evidence.local import refine
from pyro_vae.program import Latents, Program
from pyro_vae.tiling import Draw
from pyro_vae.unconstrained import Unconstrained

__all__ = ["PROPOSALS", "Defensive", "Fitted", "Guide", "Inflated", "Laplace", "Local", "Proposal"]


FITTED_TOGETHER = 128  # data


class Fitted(NamedTuple):
    """A proposal for some data."""

    draw: Draw
    num_evaluations: int
    """Of log p(x, z), spent on each datum to find the proposal."""
    num_evaluations_per_draw: int = 1


class Proposal(Protocol):
    """How to make a proposal for each datum. It sees the data and noise of its own, and never the draws that count."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int | None:
        """For how many data it is sought together; None where that does not matter."""

    def fit(self, program: Program) -> Fitted: ...


@dataclass(frozen=True)
class Guide:
    """The guide as it is."""

    name = "the guide"
    width = None

    def fit(self, program: Program) -> Fitted:
        return Fitted(program.draw, 0)


@dataclass(frozen=True)
class Inflated:
    r"""The guide stretched about its mean m: $u = m + c (u_0 - m)$ with $u_0$ from the guide.

    With several factors c it is their mixture in equal parts, whose tails are heavier than the guide's and which loses
    little where the guide is right. Its density is $\frac{1}{J} \sum_j q(m + (u - m) / c_j) c_j^{-D}$.
    """

    factors: float | tuple[float, ...] = 1.2
    width = None

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

    def fit(self, program: Program) -> Fitted:
        view = Unconstrained.of(program)
        u, _ = view.draw_guide(NUM_DRAWS)
        centre = u.nanmean(0)
        factors = torch.tensor(self._factors, dtype=torch.float64, device=u.device)

        def draw(num_samples: int) -> tuple[Latents, Tensor]:
            u, _ = view.draw_guide(num_samples)
            chosen = factors[torch.randint(len(factors), u.shape[:2], device=u.device)]
            return _densities(view, centre + chosen[..., None] * (u - centre), log_density)

        def log_density(u: Tensor) -> Tensor:
            each = [view.log_guide(centre + (u - centre) / c) - view.dim * c.log() for c in factors]
            return torch.stack(each).logsumexp(0) - math.log(len(factors))

        return Fitted(draw, 0)


@dataclass(frozen=True)
class Defensive:
    r"""A mixture $\alpha p(z) + (1 - \alpha) q(z|x)$: no weight is above $p(x|z) / \alpha$.

    References:
        Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
    """

    weight: float = 0.1
    width = None

    def __post_init__(self) -> None:
        _checks.probability("weight", self.weight)

    @property
    def name(self) -> str:
        return f"a mixture of the guide and {self.weight:g} parts of the prior"

    def fit(self, program: Program) -> Fitted:
        view = Unconstrained.of(program)

        def draw(num_samples: int) -> tuple[Latents, Tensor]:
            (guide, _), prior = view.draw_guide(num_samples), view.draw_prior(num_samples)
            from_prior = torch.rand(guide.shape[:2], device=guide.device) < self.weight
            return _densities(view, torch.where(from_prior[..., None], prior, guide), log_density)

        def log_density(u: Tensor) -> Tensor:
            prior, _ = view.log_joint(u)
            return torch.logaddexp(prior + math.log(self.weight), view.log_guide(u) + math.log1p(-self.weight))

        return Fitted(draw, 0, num_evaluations_per_draw=3)


@dataclass(frozen=True)
class Laplace:
    """A Gaussian at each datum's posterior mode, with the curvature there (`fit_laplace`)."""

    name = "Laplace's Gaussian"
    width = FITTED_TOGETHER

    def fit(self, program: Program) -> Fitted:
        view = Unconstrained.of(program)
        gaussian, num_evaluations = fit_laplace(view)

        def normal(num_samples: int) -> Tensor:
            return torch.randn(num_samples, *gaussian.loc.shape, dtype=torch.float64, device=view.device)

        return Fitted(gaussian.draw(view, normal), num_evaluations)


@dataclass(frozen=True)
class Local:
    """The member of the guide's family that is best for the datum (`refine`)."""

    num_steps: int = 300
    num_particles: int = 8
    name = "the guide, refined for each datum"
    width = FITTED_TOGETHER

    def __post_init__(self) -> None:
        _checks.whole_number("num_steps", self.num_steps)
        _checks.whole_number("num_particles", self.num_particles)

    def fit(self, program: Program) -> Fitted:
        return Fitted(refine(program, self.num_steps, self.num_particles).draw, self.num_steps * self.num_particles)


PROPOSALS: dict[str, Callable[[], Proposal]] = {
    "guide": Guide,
    "inflated": Inflated,
    "heavy-tailed": lambda: Inflated((1.0, 1.2, 1.5, 2.0)),
    "defensive": Defensive,
    "laplace": Laplace,
    "local": Local,
}


def of(proposal: str | Proposal) -> Proposal:
    """The proposal of a name, or itself."""
    if isinstance(proposal, str):
        return PROPOSALS[_checks.choice("proposal", proposal, tuple(PROPOSALS))]()
    if isinstance(proposal, type) or not callable(getattr(proposal, "fit", None)):
        listed = ", ".join(map(repr, PROPOSALS))
        raise TypeError(f"proposal: expected one of {listed}, or an object such as Inflated(1.5); got {proposal!r}.")
    return proposal


def _densities(view: Unconstrained, u: Tensor, log_density: Callable[[Tensor], Tensor]) -> tuple[Latents, Tensor]:
    """Latents of u, and log q of them. A draw outside the prior's support is no number; its weight is zero."""
    outside = ~u.isfinite().all(-1)
    u = u.where(~outside[..., None], 0.0)
    latents, stretch = view.unpack(u)
    return latents, torch.where(outside, torch.inf, log_density(u) - stretch)
