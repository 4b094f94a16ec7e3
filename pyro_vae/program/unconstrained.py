"""The latents of a program as one unconstrained vector u for each datum, and densities of u."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import ComposeTransform, Transform, biject_to, constraints

from pyro_vae._random import seeded
from pyro_vae.program.core import Program
from pyro_vae.program.joint import Joint, as_it_is
from pyro_vae.program.masks import elements_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.sites import CIRCULAR, is_angle, is_circular, is_point

__all__ = ["Unconstrained"]

NUM_ANGLES = 64  # draws from the guide, to find its mean angles
MIXTURES = (dist.MixtureSameFamily,)


class _Rotation(Transform):
    """Add a centre to angles, and wrap them to between -pi and pi."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre = centre

    def _call(self, x: Tensor) -> Tensor:
        return _wrapped(x + self.centre)

    def _inverse(self, y: Tensor) -> Tensor:
        return _wrapped(y - self.centre)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@dataclass(frozen=True)
class _Site:
    name: str
    support: Any
    transform: Any  # from the unconstrained value to that of the site
    data_axis: int  # among the batch dimensions, which start with the draws
    rest: tuple[int, ...]  # dimensions of the unconstrained value beside draws and data
    dtype: torch.dtype
    depends_on_data: bool  # the support
    centre: Tensor | None = None  # of angles, `(1, ..., N, ...)`

    def at(self, rows: Tensor) -> _Site:
        """Select rows by index."""
        if self.centre is None:
            return self
        centre = self.centre.index_select(self.data_axis, rows)
        return replace(self, centre=centre, transform=_from_line(centre))

    def pack(self, value: Tensor) -> Tensor:
        """Map the site's value to unconstrained numbers `(K, N, size)`; NaN for values outside the support."""
        inside = self.support.check(value)
        if self.centre is not None:
            inside = inside & is_angle(value, inside.ndim)
        u = self.transform.inv(value)
        u = u.where(inside.reshape(*inside.shape, *(1,) * (u.ndim - inside.ndim)), torch.nan).movedim(self.data_axis, 1)
        return u.reshape(*u.shape[:2], -1).double()

    def shaped(self, u: Tensor) -> Tensor:
        """Put unconstrained numbers in the layout of the program's draws."""
        return u.to(self.dtype).reshape(*u.shape[:2], *self.rest).movedim(1, self.data_axis)

    def unpack(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, and the log of how much the transform stretches volumes, `(K, N)`."""
        value = self.shaped(u)
        latent = self.transform(value)
        stretch = self.transform.log_abs_det_jacobian(value, latent).double().movedim(self.data_axis, 1)
        return latent, stretch.reshape(*u.shape[:2], -1).sum(-1)


@dataclass(frozen=True)
class Unconstrained:
    r"""A program whose latents are one vector $u \in R^D$ a datum: z = f(u), with $f$ from `biject_to(support)`.

    Densities are those of u: $\log p(u) = \log p(z) + \log |\det \partial z / \partial u|$, so that the evidence is the
    same. Vectors are `(K, N, D)` of float64; the model gets values of its own dtype. Values of `(K, N)` are float64.

    Circles are cut open opposite to the guide's mean angle. Masked latents have the density that they would have
    unmasked, which integrates to one.
    """

    program: Program
    sites: tuple[_Site, ...]
    joint: Joint = as_it_is
    """Evaluates log p(z) and log p(x|z)."""

    @classmethod
    def of(cls, program: Program) -> Unconstrained:
        """Make the view from the supports of the model's latent sites, or raise an error if there is none."""
        if program.structure.amortized:  # one row is enough, unless supports differ between rows: `on` looks again
            view = cls._look_at(program.at(torch.zeros(1, dtype=torch.long, device=program.device)))
            return view.on(program)
        return cls._look_at(program)

    @classmethod
    def of_any(cls, program: Program) -> Unconstrained | None:
        """Make the view, or return None for latents that have none, such as discrete ones."""
        try:
            return cls.of(program)
        except ValueError:
            return None

    @classmethod
    def of_some(cls, program: Program) -> Unconstrained | None:
        """Make the view of those latents that have one, and are no angles; None where there is none."""
        program = program.with_masked_latents
        with torch.no_grad(), seeded(program.device, 0), pyro.validation_enabled(False):
            one, other = (program.sites().latent for _ in range(2))
        sites = []
        for name in one:
            try:
                sites.append(_site(program, name, one[name], other[name], None))
            except ValueError:  # it has none
                continue
        some = tuple(site for site in sites if not is_circular(one[site.name]["fn"]))
        return cls(program, some) if some else None

    @classmethod
    def _look_at(cls, program: Program, centres: dict[str, Tensor] | None = None) -> Unconstrained:
        program = program.with_masked_latents
        with torch.no_grad(), seeded(program.device, 0), pyro.validation_enabled(False):
            one, other = (program.sites().latent for _ in range(2))
            if centres is None:
                centres = _centres(program, [name for name in one if is_circular(one[name]["fn"])])
        return cls(program, tuple(_site(program, name, one[name], other[name], centres.get(name)) for name in one))

    def on(self, program: Program) -> Unconstrained:
        """Make the same view of other data."""
        if any(site.depends_on_data or site.centre is not None for site in self.sites):
            return replace(Unconstrained._look_at(program), joint=self.joint)
        return replace(self, program=program.with_masked_latents)

    @property
    def dim(self) -> int:
        """D, the number of unconstrained latent numbers of a datum."""
        return sum(math.prod(site.rest) for site in self.sites)

    @property
    def device(self) -> torch.device:
        return self.program.device

    def at(self, rows: Tensor) -> Unconstrained:
        """Make the same view of some of the data."""
        program, sites = self.program.at(rows), tuple(site.at(rows) for site in self.sites)
        if any(site.depends_on_data for site in sites):
            centres = {site.name: site.centre for site in sites if site.centre is not None}
            return replace(Unconstrained._look_at(program, centres), joint=self.joint)
        return replace(self, program=program, sites=sites)

    def pack(self, latents: Latents) -> Tensor:
        """Return u of latents."""
        return torch.cat([site.pack(latents[site.name]) for site in self.sites], dim=-1)

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Return z of u, and $\\log |\\det \\partial z / \\partial u|$."""
        parts = u.split([math.prod(site.rest) for site in self.sites], dim=-1)
        values = {site.name: site.unpack(part) for site, part in zip(self.sites, parts, strict=True)}
        stretch = torch.stack([each for _, each in values.values()]).sum(0)
        return {name: value for name, (value, _) in values.items()}, stretch

    def log_joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(u) and log p(x|u)."""
        latents, stretch = self.unpack(u)
        prior, likelihood = self.joint(self.program, latents)
        return prior + stretch, likelihood

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u|x)."""
        latents, stretch = self.unpack(u)
        return self.program.log_guide(latents | self.auxiliary(u)) + stretch

    def auxiliary(self, u: Tensor) -> Latents:
        """Return the unconstrained values of which automatic guides make their latents; angles stay as they are."""
        parts = u.split([math.prod(site.rest) for site in self.sites], dim=-1)
        names = self.program.structure.auxiliary
        return {
            f"{site.name}_unconstrained": site.shaped(part) if site.centre is None else site.unpack(part)[0]
            for site, part in zip(self.sites, parts, strict=True)
            if f"{site.name}_unconstrained" in names
        }

    def draw_guide(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw u from the guide, with log q(u|x); u is NaN where the prior has no density."""
        latents, log_q = self.program.draw(num_samples)
        u = self.pack({site.name: latents[site.name] for site in self.sites})
        return u, log_q + self.unpack(u)[1]

    def draw_prior(self, num_samples: int) -> Tensor:
        """Draw u from the prior."""
        return self.pack(self.program.draw_prior(num_samples))


def _transform(name: str, support: Any) -> Any:
    """Map the real numbers to a support. The support of a mixture is that of its parts."""
    support = getattr(support, "base_constraint", support)
    if isinstance(support, constraints.interval) and torch.as_tensor(support.upper_bound).isposinf().all():
        support = constraints.greater_than(support.lower_bound)
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"model: expected supports that the real numbers can be mapped to; got site {name!r} with {support}; use "
            "importance_sampling with proposal='guide'."
        ) from error


def _from_line(centre: Tensor) -> Any:
    """Map the real numbers to angles. The ends of the line meet opposite to the centre."""
    return ComposeTransform([biject_to(constraints.interval(-math.pi, math.pi)), _Rotation(centre)])


def _centres(program: Program, names: list[str]) -> dict[str, Tensor]:
    """Estimate the guide's mean directions."""
    if not names:
        return {}
    latents, _ = program.draw(NUM_ANGLES)
    angles = {name: latents[name].double() for name in names}
    return {
        name: torch.atan2(angle.sin().mean(0, keepdim=True), angle.cos().mean(0, keepdim=True)).to(latents[name].dtype)
        for name, angle in angles.items()
    }


def _refuse_transformed_angles(name: str, fn: Any) -> None:
    if not isinstance(elements_of({"fn": fn, "mask": None, "name": name}).fn, CIRCULAR + MIXTURES):
        raise ValueError(
            f"model: expected angles as they are, such as VonMises; got site {name!r}, a {type(fn).__name__} made of "
            "them, whose period is not known; transform the angle after it was drawn, or use importance_sampling with "
            "proposal='guide'."
        )


def _site(program: Program, name: str, site: dict[str, Any], other: dict[str, Any], centre: Tensor | None) -> _Site:
    support = site["fn"].support
    if support.is_discrete:
        raise ValueError(
            f"model: expected continuous latents, for a gradient is needed; got the discrete site {name!r}; use "
            "importance_sampling with proposal='guide', or sum the site out in the model, by a MixtureSameFamily, say."
        )
    if is_point(site):
        raise ValueError(
            f"model: expected latents with a density; got the point (Delta) {name!r}; make it a pyro.deterministic, or "
            "use importance_sampling with proposal='guide'."
        )
    if centre is not None:
        _refuse_transformed_angles(name, site["fn"])
    transform = _transform(name, support) if centre is None else _from_line(centre)
    u = transform.inv(site["value"])
    there = _transform(name, other["fn"].support)
    if centre is None and not torch.equal(transform(torch.zeros_like(u)), there(torch.zeros_like(u))):
        raise ValueError(
            f"model: expected supports that do not depend on other latents; got site {name!r} with {support}; write "
            "it as a transformed distribution over a fixed support."
        )
    axis = program.structure.data_axis
    rest = (*u.shape[1:axis], *u.shape[axis + 1 :])
    return _Site(name, support, transform, axis, rest, site["value"].dtype, _has_bounds(support), centre)


def _has_bounds(support: Any) -> bool:
    """Tell whether a support has bounds that may differ between data."""
    parts = vars(support).values()
    return any(isinstance(part, Tensor) and part.ndim > 0 for part in parts) or any(
        _has_bounds(part) for part in parts if isinstance(part, constraints.Constraint)
    )
