"""Automatic guides that draw the latents of all data together, as guides with one density for each datum."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, MultivariateNormal, Normal
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae._random import seeded
from pyro_vae.program.points import delta_of, refuse_draw_at_point
from pyro_vae.program.refusals import refusing_noisy_modules
from pyro_vae.program.sites import drawn_sites, plates_of, sample_sites

__all__ = ["gaussian_of", "laplace_of", "refuse_automatic_points"]

NUM_DRAWS = 1000
JITTER = 1e-6
"""Relative to the variance; it makes covariances of draws positive definite."""


class _Site(NamedTuple):
    """A latent site, and moments of its unconstrained value."""

    frames: list[Any]
    support: Any
    event_dim: int
    loc: Tensor
    scale: Tensor
    """Standard deviations, or a lower triangle where the value is a vector."""

    def distribution(self, event_dim: int) -> Any:
        if self.scale.ndim > self.loc.ndim:
            return MultivariateNormal(self.loc, scale_tril=self.scale)
        return Normal(self.loc, self.scale).to_event(event_dim)


@torch.no_grad()
def gaussian_of(guide: AutoGuide, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a guide of Gaussians with the moments of an automatic guide's draws, site by site.

    Its draws are independent for each datum, and have a density there, so that log p(x) can be estimated whatever the
    guide. A guide of points, such as `AutoDelta`, becomes Gaussians of unit variance about them.
    """
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.get_default_device())
    with poutine.block(), seeded(device, 0), refusing_noisy_modules(), pyro.validation_enabled(False):
        drawn_by = laplace_of(guide, args, kwargs) if isinstance(guide, AutoLaplaceApproximation) else guide
        is_point = isinstance(guide, AutoDelta)
        traces = [poutine.trace(drawn_by).get_trace(*args, **kwargs) for _ in range(1 if is_point else NUM_DRAWS)]
        model_trace = poutine.trace(poutine.replay(model, trace=traces[0])).get_trace(*args, **kwargs)
    latents = {
        name: site
        for name, site in sample_sites(model_trace)
        if not site["is_observed"] and name in traces[0] and delta_of(site["fn"]) is None
    }
    _refuse_moving_supports(model, traces[-1], args, kwargs, latents)
    sites = {
        name: _moments(site, torch.stack([trace.nodes[name]["value"] for trace in traces]), is_point)
        for name, site in latents.items()
    }
    return _guide(sites)


def laplace_of(guide: AutoLaplaceApproximation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AutoGuide:
    """Make the Gaussian of all latents that Pyro's guide of points stands for."""
    with torch.enable_grad():
        return guide.laplace_approximation(*args, **kwargs)


@torch.no_grad()
def refuse_automatic_points(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse to train an automatic guide of a model's points (Delta): it draws other values, or trains them away."""
    if not isinstance(guide, AutoGuide):
        return
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.get_default_device())
    with poutine.block(), seeded(device, 0), pyro.validation_enabled(False):
        trace = poutine.trace(guide.model).get_trace(*args, **kwargs)
    for name, site in drawn_sites(trace).items():
        if delta_of(site["fn"]) is not None:
            refuse_draw_at_point(name, f"a draw of {type(guide).__name__}, which has a weight of 0", is_automatic=True)


def _refuse_moving_supports(
    model: Callable[..., Any],
    trace: poutine.Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: dict[str, Any],
) -> None:
    """Raise if a latent's support depends on another latent: there is no Gaussian for it."""
    with poutine.block(), pyro.validation_enabled(False):
        other = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
    for name, site in sites.items():
        here, there = (biject_to(each["fn"].support) for each in (site, other.nodes[name]))
        u = here.inv(site["value"])
        if not torch.equal(here(torch.zeros_like(u)), there(torch.zeros_like(u))):
            raise ValueError(
                f"guide: expected supports that do not depend on other latents, for a Gaussian in the place of an "
                f"automatic guide; got site {name!r} with another one for another draw; write the guide by hand."
            )


def _moments(site: dict[str, Any], values: Tensor, is_point: bool) -> _Site:
    fn = site["fn"]
    u = biject_to(fn.support).inv(values)
    loc = u.mean(0)
    centred = u - loc
    scale = torch.ones_like(loc) if is_point else centred.square().mean(0).sqrt()
    if not is_point and fn.event_dim == 1:
        covariance = (centred[..., None] * centred[..., None, :]).mean(0)
        covariance = covariance + JITTER * scale.square().diag_embed()
        scale = torch.linalg.cholesky(covariance)
    return _Site(plates_of(site), fn.support, fn.event_dim, loc, scale)


def _guide(sites: dict[str, _Site]) -> Callable[..., Any]:
    def guide(*args: Any, **kwargs: Any) -> None:
        for name, site in sites.items():
            with ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(pyro.plate(f"_{name}_{frame.name}", frame.size, dim=frame.dim))
                transform = biject_to(site.support)
                event_dim = site.event_dim + transform.domain.event_dim - transform.codomain.event_dim
                fn = site.distribution(event_dim)
                u = pyro.sample(f"{name}_unconstrained", fn, infer={"is_auxiliary": True})
                value = transform(u)
                log_density = -transform.log_abs_det_jacobian(u, value)
                log_density = sum_rightmost(log_density, log_density.ndim - value.ndim + site.event_dim)
                pyro.sample(name, Delta(value, log_density=log_density, event_dim=site.event_dim))

    return guide
