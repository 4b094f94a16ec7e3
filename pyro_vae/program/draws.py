"""How a program runs on several draws at once, and how values of one arrangement become those of another."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyro.poutine.condition_messenger import ConditionMessenger
from torch import Tensor

__all__ = ["AS_ROWS", "ONE_BY_ONE", "SIDE_BY_SIDE", "Fixed", "Given", "Way", "apart", "as_rows", "widened"]

SIDE_BY_SIDE = "side by side"
"""Draws are a dimension to the left of all plates, as with Pyro's `vectorize_particles=True`."""
AS_ROWS = "as rows"
"""Each row is repeated for its draws: for programs that take one batch dimension and no more."""
ONE_BY_ONE = "one by one"
"""A run for each draw: for programs that take neither."""


class Way(NamedTuple):
    """How a pair is run."""

    draws: str = SIDE_BY_SIDE
    """How several draws are arranged."""
    sums_guide: bool = False
    """Whether discrete latents that the guide draws are summed out."""
    in_dimensions: bool = True
    """Whether the values of what is summed out take dimensions to the left, or are draws."""


class Given(ConditionMessenger):
    """Condition sites on values that may have more dimensions of size one, to the left, than the program's own."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.data:
            ndim = len(msg["fn"].batch_shape) + msg["fn"].event_dim
            value = msg["value"]
            is_wider = value.ndim > ndim and all(size == 1 for size in value.shape[: value.ndim - ndim])
            msg["value"] = value.reshape(value.shape[value.ndim - ndim :]) if is_wider else value


class Fixed(ConditionMessenger):
    """Condition sites on one value for all elements of their batch."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.data:
            shape = msg["fn"].shape()
            value = msg["value"].reshape(msg["value"].shape[max(0, msg["value"].ndim - len(shape)) :])
            msg["value"] = value.expand(shape)


def widened(site: dict[str, Any], batch_ndim: int) -> dict[str, Any]:
    """Give a site of a run without a dimension of draws one of size one."""
    fn, value = site["fn"], site["value"]
    missing = batch_ndim - len(fn.batch_shape)
    fn = fn.expand((*(1,) * missing, *fn.batch_shape)) if missing > 0 else fn
    missing = batch_ndim + fn.event_dim - value.ndim
    return {**site, "fn": fn, "value": value[(None,) * missing] if missing > 0 else value}


def as_rows(value: Tensor, axis: int) -> Tensor:
    """Arrange draws `(K, ..., N, ...)`, whose data are on `axis`, as rows `(1, ..., K N, ...)`."""
    return value.movedim(0, axis - 1).flatten(axis - 1, axis)[None]


def apart(value: Tensor, num_samples: int, axis: int) -> Tensor:
    """Arrange rows `(1, ..., K N, ...)` as draws `(K, ..., N, ...)`."""
    return value.unflatten(axis, (num_samples, -1)).movedim(axis, 0).squeeze(1)
