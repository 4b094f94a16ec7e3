"""The latents of a program as one unconstrained vector u for each datum, and densities of u."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae._structure import seeded
from pyro_vae.program import Latents, Program

__all__ = ["Unconstrained"]


@dataclass(frozen=True)
class _Site:
    name: str
    support: Any
    transform: Any  # from the unconstrained value to that of the site
    data_axis: int  # among the batch dimensions, which start with the draws
    rest: tuple[int, ...]  # dimensions of the unconstrained value beside draws and data
    dtype: torch.dtype

    def pack(self, value: Tensor) -> Tensor:
        """The value of the site as unconstrained numbers `(K, N, size)`; NaN for values outside the support."""
        inside = self.support.check(value)
        u = self.transform.inv(value)
        u = u.where(inside.reshape(*inside.shape, *(1,) * (u.ndim - inside.ndim)), torch.nan).movedim(self.data_axis, 1)
        return u.reshape(*u.shape[:2], -1).double()

    def unpack(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and the log of how much the transform stretches volumes, `(K, N)`."""
        value = u.to(self.dtype).reshape(*u.shape[:2], *self.rest).movedim(1, self.data_axis)
        latent = self.transform(value)
        stretch = self.transform.log_abs_det_jacobian(value, latent).double().movedim(self.data_axis, 1)
        return latent, stretch.reshape(*u.shape[:2], -1).sum(-1)


@dataclass(frozen=True)
class Unconstrained:
    r"""A program whose latents are one vector $u \in R^D$ a datum: z = f(u), with $f$ from `biject_to(support)`.

    Densities are those of u: $\log p(u) = \log p(z) + \log |\det \partial z / \partial u|$, so that evidence stays what
    it was. Vectors are `(K, N, D)` of float64; the model gets values of its own dtype. Values of `(K, N)` are float64.
    """

    program: Program
    sites: tuple[_Site, ...]

    @classmethod
    def of(cls, program: Program) -> Unconstrained:
        """Look at the supports of the model's latent sites, or say why they have no such view."""
        with torch.no_grad(), seeded(program.args[0].device, 0), pyro.validation_enabled(False):
            (one, _), (other, _) = program.sites(), program.sites()
        return cls(program, tuple(_site(program, name, one[name], other[name]) for name in one))

    @property
    def dim(self) -> int:
        """D, the number of unconstrained latent numbers of a datum."""
        return sum(math.prod(site.rest) for site in self.sites)

    @property
    def device(self) -> torch.device:
        return self.program.args[0].device

    def at(self, rows: Tensor) -> Unconstrained:
        """The same view of some of the data."""
        return Unconstrained.of(self.program.at(rows))

    def pack(self, latents: Latents) -> Tensor:
        """u of latents."""
        return torch.cat([site.pack(latents[site.name]) for site in self.sites], dim=-1)

    def unpack(self, u: Tensor) -> tuple[Latents, Tensor]:
        """z of u, and $\\log |\\det \\partial z / \\partial u|$."""
        parts = u.split([math.prod(site.rest) for site in self.sites], dim=-1)
        values = {site.name: site.unpack(part) for site, part in zip(self.sites, parts, strict=True)}
        stretch = torch.stack([each for _, each in values.values()]).sum(0)
        return {name: value for name, (value, _) in values.items()}, stretch

    def log_joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log p(u) and log p(x|u)."""
        latents, stretch = self.unpack(u)
        prior, likelihood = self.program.log_joint(latents)
        return prior + stretch, likelihood

    def log_guide(self, u: Tensor) -> Tensor:
        """log q(u|x)."""
        latents, stretch = self.unpack(u)
        return self.program.log_guide(latents) + stretch

    def draw_guide(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """u from the guide, and log q(u|x); u is NaN where the prior has no density."""
        latents, log_q = self.program.draw(num_samples)
        u = self.pack({site.name: latents[site.name] for site in self.sites})
        return u, log_q + self.unpack(u)[1]

    def draw_prior(self, num_samples: int) -> Tensor:
        """u from the prior."""
        return self.pack(self.program.draw_prior(num_samples))


def _transform(name: str, support: Any) -> Any:
    """From the real numbers to a support; a mixture's is that of its parts."""
    try:
        return biject_to(getattr(support, "base_constraint", support))
    except NotImplementedError as error:
        raise ValueError(
            f"model: expected supports that the real numbers can be mapped to; got site {name!r} with {support}; use "
            "importance_sampling with proposal='guide'."
        ) from error


def _site(program: Program, name: str, site: dict[str, Any], other: dict[str, Any]) -> _Site:
    support = site["fn"].support
    if support.is_discrete:
        raise ValueError(
            f"model: expected continuous latents, for a gradient is needed; got the discrete site {name!r}; use "
            "importance_sampling with proposal='guide', or sum the site out in the model, by a MixtureSameFamily, say."
        )
    transform = _transform(name, support)
    u = transform.inv(site["value"])
    if not torch.equal(transform(torch.zeros_like(u)), _transform(name, other["fn"].support)(torch.zeros_like(u))):
        raise ValueError(
            f"model: expected supports that do not depend on other latents; got site {name!r} with {support}; write "
            "it as a transformed distribution over a fixed support."
        )
    axis = program.structure.data_axis
    return _Site(name, support, transform, axis, (*u.shape[1:axis], *u.shape[axis + 1 :]), site["value"].dtype)
