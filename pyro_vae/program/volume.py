"""Latents that a guide makes of auxiliary draws: their density must be that of the change of variables."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae._random import seeded
from pyro_vae.program.core import Program
from pyro_vae.program.runs import Latents
from pyro_vae.program.sites import is_point

__all__ = ["refuse_other_volume"]


@torch.no_grad()
def refuse_other_volume(program: Program) -> None:
    r"""Raise unless points $z = f(u)$ of auxiliary draws u have the density $-\log |\det \partial f / \partial u|$.

    Looked at for one draw of the first datum, by automatic differentiation, in unconstrained coordinates of z.
    """
    if not program.structure.auxiliary:
        return
    with seeded(program.device, 0), pyro.validation_enabled(False):
        drawn, _ = program.draw(1)
        auxiliary = {name: value for name, value in drawn.items() if name in program.structure.auxiliary}
        jacobian, density, stretch = _change_of_variables(program, auxiliary)
    rows, columns = jacobian.shape
    if rows != columns:
        raise ValueError(
            f"guide: expected as many auxiliary numbers as the latents that are made of them have; got {columns} "
            f"({', '.join(sorted(auxiliary))}) for {rows}; sum the others out in the guide, or give them a density in "
            "the model, as latents on which nothing depends."
        )
    expected = -(torch.linalg.slogdet(jacobian.double()).logabsdet + stretch.double())
    if not torch.isclose(density.double(), expected, rtol=1e-4, atol=1e-3):
        raise ValueError(
            f"guide: expected points made of auxiliary draws to have the log density -log |det dz/du|, "
            f"{expected.item():.4g} for the first datum; got {density.item():.4g}; pass it as "
            "Delta(z, log_density=...), or draw z from a TransformedDistribution."
        )


def _change_of_variables(program: Program, auxiliary: Latents) -> tuple[Tensor, Tensor, Tensor]:
    """Return dv/du of the first datum, where z = T(v); the points' log density; and log |det dT/dv|."""
    axis, names = program.structure.data_axis, sorted(auxiliary)
    firsts = [auxiliary[name].select(axis, 0) for name in names]
    sizes = [each.numel() for each in firsts]
    latents = program.sites().latent
    found: dict[str, Tensor] = {}

    def unconstrained(u: Tensor) -> Tensor:
        parts = {
            name: part.reshape(first.shape) for name, part, first in zip(names, u.split(sizes), firsts, strict=True)
        }
        given = {
            name: torch.cat([part.unsqueeze(axis), auxiliary[name].narrow(axis, 1, program.num_data - 1)], axis)
            for name, part in parts.items()
        }
        sites = program.guide_sites_at(given)
        points = {name: site for name, site in sites.items() if name not in given and is_point(site)}
        transforms = [biject_to(latents[name]["fn"].support) for name in points]
        values = [site["value"] for site in points.values()]
        free = [transform.inv(value) for transform, value in zip(transforms, values, strict=True)]
        found["density"] = _of_first(program, [site["fn"].log_prob(site["value"]) for site in points.values()])
        stretches = map(_stretch, transforms, free, values)
        found["stretch"] = _of_first(program, list(stretches))
        return torch.cat([v.select(axis, 0).flatten() for v in free])

    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(unconstrained, torch.cat([each.flatten() for each in firsts]))
    return jacobian, found["density"].detach(), found["stretch"].detach()


def _stretch(transform: Any, free: Tensor, value: Tensor) -> Tensor:
    return transform.log_abs_det_jacobian(free, value)


def _of_first(program: Program, log_probs: list[Tensor]) -> Tensor:
    """Sum log densities of the first datum."""
    return torch.stack([each.select(program.structure.data_axis, 0).sum() for each in log_probs]).sum()
