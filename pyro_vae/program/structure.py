"""What a run of a (model, guide) pair shows: its plate over data, and why it may have no log p(x) for each datum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.util import check_site_shape

from pyro_vae._random import seeded
from pyro_vae.program.data_plate import dim_of_data
from pyro_vae.program.draws import SIDE_BY_SIDE, Way
from pyro_vae.program.in_turn import InTurn
from pyro_vae.program.points import IS_POINT, WithPoints, delta_of, refuse_draw_at_point
from pyro_vae.program.refusals import (
    refuse_densities_without_volume,
    refuse_draws_as_distributions,
    refuse_half_precision,
    refuse_mismatch,
    refuse_subsampling,
    refusing_noisy_modules,
    refusing_what_has_no_batch,
    said,
)
from pyro_vae.program.sites import drawn_sites, plates_of, sample_sites
from pyro_vae.program.summing import NOTHING, Summed, summing

ENUMERABLE = "has_enumerate_support"
"""What Pyro's distributions say of themselves that have a list of values."""


class OtherPrograms(Exception):
    """Raised for a pair that has to be changed first."""


class NothingToDraw(OtherPrograms):
    """All latents are summed out, or points. The argument is the dimension of data."""


class PointsAmongLatents(OtherPrograms):
    """Latents of the model are points. The argument names them, and tells which have a log density that is not 0."""


@dataclass(frozen=True)
class Structure:
    """Where data and draws lie among the batch dimensions, counted from the right (negative)."""

    data_dim: int
    particle_dim: int
    amortized: bool
    """Whether the pair runs on any number of rows. A guide with parameters for each datum runs on all of them only."""
    draws: str = SIDE_BY_SIDE
    """How several draws are run at once: an arrangement."""
    latents: frozenset[str] = frozenset()
    """The model's latent sites, but for those that are summed out."""
    summed: Summed = NOTHING
    """Discrete latent sites that are summed out."""
    summed_in_guide: Summed = NOTHING
    """Those of them that the guide draws."""
    auxiliary: frozenset[str] = frozenset()
    """What else the guide draws."""
    guide_has_density: bool = True
    """Whether the guide's density is known at values that it has not drawn."""
    can_draw_prior: bool = True
    """Whether the latents can be drawn from the model."""
    not_amortized_because: str = ""
    """What went wrong on other numbers of rows."""
    undivided_because: str = ""
    """What went wrong on fewer rows than all, where all are run whichever are asked for."""
    not_compared_because: str = ""
    """What went wrong where a value of discrete latents was to be compared with itself alone."""
    listed_because: str = ""
    """What went wrong with all values of discrete latents at once, where each is a draw."""
    in_turn: InTurn | None = None
    """How the sites of each datum make those of all, for programs that visit data one after the other."""

    @property
    def data_axis(self) -> int:
        """Where data lie in values with draws, counted from the left: draws come first."""
        return self.data_dim - self.particle_dim


@torch.no_grad()
def initialise(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """Run the guide once on all data: parameters that it makes at its first call get the size that they should have.

    Those of its distributions are validated, above all as to NaN.
    """
    with poutine.block(), seeded(args[0].device, 0), refusing_noisy_modules(), pyro.validation_enabled(True):
        return traced(guide, args, kwargs)


def traced(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """Run a program for the first time: its arguments may not be what it takes."""
    try:
        return _trace(program, args, kwargs)
    except TypeError as error:
        if ": expected " in str(error):  # it says itself what to do
            raise
        raise TypeError(
            f"model, guide: expected programs that run on the {len(args)} arguments by position and those of "
            f"kwargs; got {error}; pass options by name, num_samples=1000, and what the program takes by name in "
            "kwargs={...}."
        ) from error


@torch.no_grad()
def look_at(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str | int | None,
    amortized: bool,
    way: Way,
) -> Structure:
    """Read the structure of the pair off a run on these rows, or raise an error that says what it lacks."""
    seen = _run_of(model, guide, args, kwargs, plate, way)
    refuse_half_precision({**seen.guide_sites, **seen.model_sites})
    data_dim, deepest = _dims_of(seen, len(args[0]), plate)
    points = {name for name, site in seen.model_sites.items() if site["infer"].get(IS_POINT)}
    with_draws = {name: site for name, site in seen.model_sites.items() if name not in seen.summed.names | points}
    drawn = {name: site for name, site in seen.guide_sites.items() if name not in seen.summed.names}
    if (seen.summed or isinstance(model, WithPoints)) and all(site["is_observed"] for site in with_draws.values()):
        raise NothingToDraw(data_dim, seen.turns)
    refuse_mismatch(with_draws, drawn)
    refuse_densities_without_volume(with_draws, drawn)
    latents = frozenset(name for name, site in with_draws.items() if not site["is_observed"])
    return Structure(
        data_dim=data_dim,
        particle_dim=deepest - 1,
        amortized=amortized,
        draws=way.draws,
        latents=latents,
        summed=seen.summed,
        summed_in_guide=seen.summed.only(seen.guide_sites),
        auxiliary=frozenset(drawn) - latents,
        in_turn=seen.turns,
    )


class _Seen(NamedTuple):
    """The sites of one run of guide and model, with log densities."""

    guide_sites: dict[str, Any]
    model_sites: dict[str, Any]
    summed: Summed
    turns: InTurn | None


def _run_of(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plate: str | int | None,
    way: Way,
) -> _Seen:
    with poutine.block(), seeded(args[0].device, 0), refusing_noisy_modules():
        with pyro.validation_enabled(False):
            guide_trace = _trace(guide, args, kwargs)
        with pyro.validation_enabled(True):  # of parameters, above all NaN; those of the guide were validated before
            enumerated = _enumerated(model, guide_trace, args, kwargs, way)
        with pyro.validation_enabled(False):  # a draw outside the prior's support is no error: its weight is zero
            model_trace = _model_trace(model, guide_trace, enumerated, args, kwargs)
            for trace in (guide_trace, model_trace):
                refuse_subsampling(trace)
                refuse_draws_as_distributions(trace)
            _find_points(guide_trace, model_trace)
            turns, summed = _in_turn((guide_trace, model_trace), len(args[0]), plate), enumerated.summed
            if turns is not None:
                summed = _summed_in_turn(turns, enumerated, model_trace)
                guide_trace, model_trace = turns.joined(guide_trace), turns.joined(model_trace)
            for trace in (guide_trace, model_trace):
                with refusing_what_has_no_batch():
                    trace.compute_log_prob()
    return _Seen(drawn_sites(guide_trace), dict(sample_sites(model_trace)), summed, turns)


def _dims_of(seen: _Seen, num_data: int, plate: str | int | None) -> tuple[int, int]:
    """Return the dimension of data and the leftmost of all plates; refuse sites that do not fit into these."""
    sites = [*seen.model_sites.values(), *seen.guide_sites.values()]
    data_dim = dim_of_data(sites, num_data, plate)
    deepest = min([data_dim, *(frame.dim for site in sites for frame in plates_of(site))])
    for site in sites:
        if data_dim in [frame.dim for frame in plates_of(site)]:
            check_site_shape(site, -deepest)
    return data_dim, deepest


def _find_points(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Raise for latents of the model that have one value, given those before them, and that the guide does not draw."""
    drawn, points = drawn_sites(guide_trace), {}
    for name, site in drawn_sites(model_trace).items():
        delta = delta_of(site["fn"])
        if delta is None:
            continue
        if name in drawn and delta_of(drawn[name]["fn"]) is None:
            refuse_draw_at_point(name, f"a {type(drawn[name]['fn']).__name__}, whose draws have a weight of 0")
        if f"{name}_unconstrained" in drawn:  # of one of Pyro's automatic guides
            refuse_draw_at_point(name, "a draw of an automatic guide, which has a weight of 0", is_automatic=True)
        points[name] = bool(delta.log_density.any())
    if points:
        raise PointsAmongLatents(points)


def _in_turn(traces: tuple[poutine.Trace, ...], num_rows: int, plate: str | int | None) -> InTurn | None:
    """Find a plate that visits data in turn, where there is no dimension of data."""
    sites = [site for trace in traces for _, site in sample_sites(trace)]
    if isinstance(plate, int) or all(frame.vectorized for site in sites for frame in site["cond_indep_stack"]):
        return None
    try:
        dim_of_data(sites, num_rows, plate)
    except ValueError:
        return InTurn.of(traces, num_rows, plate)
    return None


def _summed_in_turn(turns: InTurn, enumerated: _Enumerated, model_trace: poutine.Trace) -> Summed:
    """Name what is summed out, each of whose values has to be a draw."""
    if enumerated.summed and enumerated.first_dim is not None:
        raise ValueError("model: expected one value at a time of discrete latents of data that are visited in turn.")
    sites = dict(sample_sites(model_trace))
    names = {name: turns.name_of_all(sites[name]) for name in enumerated.summed.names}
    return Summed(*(frozenset(names[name] for name in part) for part in enumerated.summed))


class _Enumerated(NamedTuple):
    """Latents that are summed out, and the first dimension that is free for their values."""

    summed: Summed
    first_dim: int | None
    """None if the values are draws."""


def enumerable(guide_sites: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Find the sites of a guide with a list of values, and tell which are marked to be enumerated."""
    return {
        name: site["infer"].get("enumerate") in ("parallel", "sequential")
        for name, site in guide_sites.items()
        if getattr(site["fn"], ENUMERABLE, False)
    }


def _enumerated(
    model: Callable[..., Any],
    guide_trace: poutine.Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    way: Way,
) -> _Enumerated:
    """Find what to sum out: what the guide enumerates, if asked, and what it leaves out of a list of values."""
    drawn = drawn_sites(guide_trace)
    found, alone = {}, ""
    if way.sums_guide:
        marks = enumerable(drawn)
        found = {name: drawn[name] for name, is_marked in marks.items() if is_marked or not any(marks.values())}
    try:
        model_sites = dict(sample_sites(_trace(poutine.replay(model, trace=guide_trace), args, kwargs)))
    except Exception as error:  # A model may be written for all values at once, and not run with one for each datum.
        if not found:
            raise
        model_sites, alone = {}, said(error)
    for name, site in model_sites.items():
        if name not in drawn and not site["is_observed"] and getattr(site["fn"], ENUMERABLE, False):
            found[name] = site
    sites = [*drawn.values(), *model_sites.values()]
    deepest = min((frame.dim for site in sites for frame in plates_of(site)), default=-1)
    expanded = frozenset(name for name, site in found.items() if site["infer"].get("expand", name in drawn))
    enumerated = _Enumerated(Summed(frozenset(found), expanded), deepest - 1 if way.in_dimensions else None)
    if found:
        try:
            _model_trace(model, guide_trace, enumerated, args, kwargs)
        except Exception as error:
            if alone:
                error.add_note(f"With one value of {', '.join(sorted(found))} for each datum, it raised {alone}.")
            raise
    return enumerated


def _model_trace(
    model: Callable[..., Any],
    guide_trace: poutine.Trace,
    enumerated: _Enumerated,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> poutine.Trace:
    if not enumerated.summed or enumerated.first_dim is None:
        return _trace(poutine.replay(model, trace=guide_trace), args, kwargs)
    given = guide_trace.copy()
    for name in enumerated.summed.names & given.nodes.keys():
        given.remove_node(name)
    with_all_values = summing(model, enumerated.summed, enumerated.first_dim)
    return _trace(poutine.replay(with_all_values, trace=given), args, kwargs)


def _trace(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    with refusing_what_has_no_batch():
        return poutine.trace(fn).get_trace(*args, **kwargs)
