"""Latents of a model that are points: known, given what comes before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent

from pyro_vae._private import FakeTensor

__all__ = ["IS_POINT", "WithPoints", "delta_of"]

IS_POINT = "_is_point"
"""What marks a site that stands for a density alone, in a site's `infer`."""


def delta_of(fn: Any) -> Delta | None:
    """Return the Delta that a distribution is, but for masks and event dimensions; None if it is none."""
    while isinstance(fn, (MaskedDistribution, Independent)):
        fn = fn.base_dist
    return fn if isinstance(fn, Delta) else None


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
