"""Latents of a model that are points: known, given what comes before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent

from pyro_vae._private import FakeTensor

__all__ = ["IS_POINT", "OtherPoints", "WithPoints", "delta_of", "refuse_draw_at_point"]

IS_POINT = "_is_point"
"""What marks a site that stands for a density alone, in a site's `infer`."""


def delta_of(fn: Any) -> Delta | None:
    """Return the Delta that a distribution is, but for masks and event dimensions; None if it is none."""
    while isinstance(fn, (MaskedDistribution, Independent)):
        fn = fn.base_dist
    return fn if isinstance(fn, Delta) else None


def refuse_draw_at_point(name: str, found: str, is_automatic: bool = False) -> None:
    """Raise for what a guide draws where the model makes a point."""
    remedy = f"make the guide of poutine.block(model, hide=[{name!r}])" if is_automatic else "leave it out"
    raise ValueError(
        f"guide: expected nothing at site {name!r}, which the model makes a point (Delta) of what is before it; got "
        f"{found}; {remedy}."
    )


class OtherPoints(Messenger):
    """Compare the points of a model with what its guide draws there."""

    def __init__(self, guide_sites: Mapping[str, Any]) -> None:
        super().__init__()
        self.guide_sites = guide_sites
        self.found: dict[str, str] = {}

    def refuse(self) -> None:
        """Raise for the first site of the guide that is not the model's point, and nothing else."""
        for name, found in self.found.items():
            refuse_draw_at_point(name, found)

    def _pyro_sample(self, msg: Any) -> None:
        point, site = delta_of(msg["fn"]), self.guide_sites.get(msg["name"])
        if point is None or site is None or msg["is_observed"]:
            return
        found = _what_is_other(point, site)
        if found:
            self.found.setdefault(msg["name"], found)


def _what_is_other(point: Delta, site: Mapping[str, Any]) -> str:
    """Say how the guide's site differs from a point of the model; nothing if it does not."""
    guides, value = delta_of(site["fn"]), site["value"]
    if guides is None:
        return f"a {type(site['fn']).__name__}, whose draws have a weight of 0"
    if not torch.equal(*torch.broadcast_tensors(point.v, value)):
        return "another point, which has a weight of 0"
    if value.requires_grad and not point.v.requires_grad:
        return "a point with a parameter of its own, which training would move"
    return "a point with a log density, which an ELBO would subtract" if guides.log_density.any() else ""


class WithPoints:
    """A program whose points are no latents: as `pyro.deterministic`, or as observed where they have a log density."""

    def __init__(self, program: Callable[..., Any], points: Mapping[str, bool]) -> None:
        self.program, self.points = program, points

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Known(self.points):
            return self.program(*args, **kwargs)


class _Known(Messenger):
    """Give these sites their values; tell which of them have a density."""

    def __init__(self, points: Mapping[str, bool]) -> None:
        super().__init__()
        self.points = points

    def _pyro_sample(self, msg: Any) -> None:
        delta = delta_of(msg["fn"]) if msg["name"] in self.points and not msg["is_observed"] else None
        if delta is None:
            return
        has_density = self.points[msg["name"]]
        if not has_density and not isinstance(delta.log_density, FakeTensor) and delta.log_density.any():
            raise ValueError(
                f"model: expected the point {msg['name']!r} (Delta) to have a log density of 0 in each run, as in the "
                "first; got another; put it into pyro.factor, and leave the point without."
            )
        msg["value"], msg["is_observed"] = msg["fn"](), True
        msg["infer"] = {**msg["infer"], (IS_POINT if has_density else "_deterministic"): True}
