"""The program around a call of a VAE: its plates, the names that are taken, the guide that it replays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine
from pyro.contrib.autoname.scoping import NameCountMessenger, ScopeMessenger
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import get_plates

from pyro_vae import _checks
from pyro_vae._private import PYRO_STACK

OF_DRAWS = {"num_particles_vectorized", "_num_predictive_samples", "_particles"}
"""Plates of Pyro's objectives, of its `Predictive`, and of our evaluations: data have no dimension there."""


def plates_around() -> dict[int, int]:
    """Return the sizes of the plates around a call, by dimension."""
    return {frame.dim: frame.size for frame in _of_data(get_plates())}


def _of_data(frames: Iterable[Any]) -> Iterator[Any]:
    return (frame for frame in frames if frame.vectorized and frame.name not in OF_DRAWS)


def own_plate(name: str, num_rows: int | None, num_data: int | None, subsample_size: int | None) -> pyro.plate:
    """Make the plate over data for a call that has none around it."""
    if num_data is not None:
        num_data = _checks.whole_number("num_data", num_data, minimum=num_rows or 1)
    if subsample_size is not None:
        _checks.whole_number("subsample_size", subsample_size)
        return pyro.plate(name, _whole_size(num_rows, num_data, subsample_size), subsample_size, dim=-1)
    if num_rows is None or num_data is None:
        return pyro.plate(name, num_rows or num_data or 1, dim=-1)
    return pyro.plate(name, num_data, subsample=range(num_rows), dim=-1)


def _whole_size(num_rows: int | None, num_data: int | None, subsample_size: int) -> int:
    if num_rows is None or num_data is not None:
        raise ValueError(
            "subsample_size: expected it with x, the whole data set, and without num_data; got "
            f"{'no x' if num_rows is None else f'num_data={num_data}'}; pass one of the two, and x."
        )
    if subsample_size > num_rows:
        raise ValueError(
            f"subsample_size: expected at most {num_rows}, the data in x; got {subsample_size}; take fewer."
        )
    return num_rows


def refuse_other_guide(site: str) -> None:
    """Raise where an objective replays a guide that has not drawn this site, or has drawn it in other plates.

    Pyro would only warn: of the plates, or that the site is missing, which it then draws from the prior.
    """
    for handler in reversed(PYRO_STACK):  # from the inside out, as Pyro asks them
        if isinstance(handler, ScopeMessenger):
            site = f"{handler.prefix}/{site}"
        elif isinstance(handler, (BlockMessenger, NameCountMessenger)) or (
            isinstance(handler, ConditionMessenger) and site in handler.data
        ):
            return
        elif isinstance(handler, ReplayMessenger) and handler.trace is not None:
            return _refuse_other_draw(site, handler.trace)


def _refuse_other_draw(site: str, guide: poutine.Trace) -> None:
    if site not in guide:
        raise ValueError(
            f"guide: expected it to draw site {site!r}, as the model does; got none; call the VAE's guide there, "
            f"or pyro.sample({site!r}, vae.prior()) if the prior is meant to be the guide."
        )
    here = list(_of_data(get_plates()))
    dims = {frame.dim for frame in here}  # to their left the guide may have been drawn many times
    there = _of_data(guide.nodes[site]["cond_indep_stack"])
    _checks.same_plates(site, here, (frame for frame in there if frame.dim in dims))


@contextmanager
def free_names() -> Iterator[None]:
    """Explain the error that Pyro raises for a name that is used twice."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Multiple sample sites named"):
            raise
        taken = str(error).removeprefix("Multiple sample sites named ")
        raise ValueError(
            f"name: expected names that are free in this program; got {taken} for a second time; give each VAE a name, "
            "pv.VAE(..., name=...), put several calls of one into pyro.contrib.autoname.scope(prefix=...), and let "
            "those that share a plate over data be called inside of it."
        ) from error
