"""Inspect a (model, guide) pair: make a program of it, or say why it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoGuide

from pyro_vae import _checks
from pyro_vae._random import seeded
from pyro_vae.program.arguments import as_tensors, rows_alone
from pyro_vae.program.automatic import gaussian_of
from pyro_vae.program.company import (
    Densities,
    refuse_company,
    refuse_draws_that_meet,
    refuse_place,
    refuse_values_that_meet,
)
from pyro_vae.program.core import Program
from pyro_vae.program.counting import with_masks
from pyro_vae.program.draws import AS_ROWS, ONE_BY_ONE, SIDE_BY_SIDE, Way
from pyro_vae.program.listed import ListedProgram
from pyro_vae.program.points import WithPoints
from pyro_vae.program.refusals import is_refusal, refuse_autocast, refuse_missing_numbers, said
from pyro_vae.program.runs import LOOKED_AT_TOGETHER, has_rows, in_place_of_rows
from pyro_vae.program.sites import drawn_sites
from pyro_vae.program.structure import ENUMERABLE, NothingToDraw, OtherPrograms, enumerable, initialise, look_at
from pyro_vae.program.undivided import UndividedProgram
from pyro_vae.program.volume import refuse_other_volume
from pyro_vae.program.whole import dims_of_rows, prior_of, with_rows_first, with_unused_latent

__all__ = ["program_of"]


def program_of(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    plate: str | int | None = None,
) -> Program:
    """Make a program of a pair by looking at its runs; refuse one that has no log p(x) for each datum.

    Without a guide, the prior takes its place.
    """
    refuse_autocast()
    _checks.program("model", model)
    if guide is not None:
        _checks.program("guide", guide)
    if not (plate is None or isinstance(plate, str) or (type(plate) is int and plate < 0)):
        raise TypeError(f"plate: expected the name of the plate over data, or None; got {plate!r}; pass its name.")
    kwargs = _checks.keyword_arguments(kwargs)
    model, guide, args, kwargs = rows_alone(model, guide, args, kwargs, plate)
    pair = _Pair(model, guide, as_tensors(args), kwargs, plate)
    with seeded(pair.args[0].device, 0):  # whatever runs draw, the caller's generator stays where it was
        return _inspected(pair)


def _inspected(pair: _Pair) -> Program:
    try:
        program = _in_some_reading(pair)
    except ValueError as error:
        refuse_missing_numbers(pair.args, pair.kwargs, error)
        raise
    some = (
        program.at(torch.zeros(1, dtype=torch.long, device=program.device)) if program.structure.amortized else program
    )
    structure = program.structure
    if structure.auxiliary:
        structure = replace(structure, guide_has_density=_guide_has_density(some))
    program = with_masks(replace(program, structure=replace(structure, can_draw_prior=_can_draw_prior(some))))
    return program if structure.amortized else _undivided(program)


def _in_some_reading(pair: _Pair) -> Program:
    """Return the program whose rows come first among the arguments; if there is none, one whose rows lie elsewhere."""
    try:
        return _of_pair(pair)
    except (TypeError, ValueError) as error:
        try:
            readings = dims_of_rows(pair.model, pair.args, pair.kwargs, pair.plate)
        except Exception as reason:  # a model that does not run on these arguments has no plate to tell
            error.add_note(f"The model alone, on these arguments, raised {said(reason)}.")
            readings = []
        reasons = []
        for dims in readings:
            turned = pair.with_rows_in(dims)
            try:
                return _of_pair(turned)
            except (TypeError, ValueError) as reason:
                if len(turned.args[0]) != len(pair.args[0]):  # no plate has the size of the first dimension
                    reasons.append(reason)
        if reasons:
            raise reasons[0] from None
        raise


@torch.no_grad()
def _undivided(program: Program) -> Program:
    """Run the program on all rows, whichever are asked for, unless its model runs on any."""
    found, reason = Densities.of(program), "other densities of the same rows among fewer"
    try:
        if all(found.has(torch.arange(first, program.num_data, 2)) for first in range(min(2, program.num_data))):
            return program
    except Exception as error:  # whatever it stumbles over on fewer rows, it has run on all of them
        reason = said(error)
    program = replace(program, structure=replace(program.structure, undivided_because=reason))
    return UndividedProgram.of(program, found.latents)


def _of_pair(pair: _Pair) -> Program:
    _refuse_other_rows(pair.args)
    if pair.guide is None:
        return _without_guide(pair._replace(guide=prior_of(pair.model)))
    return _with_guide(pair)


def _without_guide(pair: _Pair) -> Program:
    """Draw from the prior, and sum discrete latents out; where that is not possible, draw them too, and warn."""
    program = _looked_at(pair._replace(guide=config_enumerate(pair.guide)))
    left = enumerable(program.guide_sites(1))
    if left:
        _checks.warn(
            f"guide: expected discrete latents that can be summed out, as there is no guide to draw them; got "
            f"{', '.join(sorted(left))}, all of whose values the model does not take; they are drawn from the prior."
        )
    return program


def _with_guide(pair: _Pair) -> Program:
    """Return the program with the guide, or with Gaussians for an automatic guide of all data together."""
    try:
        return _looked_at(pair)
    except ValueError as error:
        if not isinstance(pair.guide, AutoGuide) or isinstance(pair.plate, int):
            raise
        try:
            program = _looked_at(pair._replace(guide=gaussian_of(pair.guide, pair.model, pair.args, pair.kwargs)))
        except ValueError:
            raise error from None
    name = type(pair.guide).__name__
    _checks.warn(
        f"guide: expected one density for each datum; got {name}, an automatic guide of all latents of all data "
        "together; Gaussians take its place, site by site, also for the ELBO: of the moments of its draws, or of unit "
        "variance about points."
    )
    return program


def _looked_at(pair: _Pair) -> Program:
    try:
        found = _amortized(pair)
        return found if isinstance(found, Program) else _not_amortized(pair, found)
    except OtherPrograms as other:
        change = with_unused_latent if isinstance(other, NothingToDraw) else WithPoints
        model, guide = (change(program, *other.args) for program in (pair.model, pair.guide))
        return _looked_at(pair._replace(model=model, guide=guide))


@torch.no_grad()
def _guide_has_density(program: Program) -> bool:
    with seeded(program.device, 0), pyro.validation_enabled(False):
        drawn = program.guide_sites(1)
        made = {f"{name}_unconstrained" for name in program.structure.latents}
        given = {
            name: site["value"].clone() for name, site in drawn.items() if name in program.structure.latents | made
        }
        try:
            program.log_guide(given)
        except ValueError:
            return False
    return True


@torch.no_grad()
def _can_draw_prior(program: Program) -> bool:
    with seeded(program.device, 0), pyro.validation_enabled(False):
        try:
            program.draw_prior(1)
        except ValueError:
            return False
    return True


class _Pair(NamedTuple):
    """A model and a guide, with what they are called on."""

    model: Callable[..., Any]
    guide: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plate: str | int | None

    def with_rows_in(self, dims: tuple[int | None, ...]) -> _Pair:
        """Move these dimensions of the arguments to the front."""
        model, guide = (fn and with_rows_first(fn, dims) for fn in (self.model, self.guide))
        turned = (arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(self.args, dims, strict=True))
        return self._replace(model=model, guide=guide, args=tuple(turned))

    def on(self, args: tuple[Any, ...], amortized: bool, way: Way) -> Program:
        """Inspect the pair on these arguments."""
        structure = look_at(self.model, self.guide, args, self.kwargs, self.plate, amortized, way)
        program = Program(self.model, self.guide, args, self.kwargs, structure)
        return program if way.in_dimensions or not structure.summed else ListedProgram.of(program)

    def ways(self, *arrangements: str) -> Iterator[Way]:
        """List the ways to run the pair, the best first.

        Discrete latents that the guide marks to be enumerated are drawn only where they cannot be summed out. Others
        are summed out where the model does not run on draws of them.
        """
        guide_trace = initialise(self.guide, self.args, self.kwargs)
        marks = enumerable(drawn_sites(guide_trace)).values()
        sums = sorted({any(marks), not any(marks)}, reverse=any(marks)) if marks else [False]
        for sums_guide, in_dimensions, draws in product(sums, (True, False), arrangements):
            if in_dimensions or sums_guide or self._leaves_out_discrete(guide_trace):
                yield Way(draws, sums_guide, in_dimensions)

    def _leaves_out_discrete(self, guide_trace: poutine.Trace) -> bool:
        """Tell whether the guide leaves out discrete latents of the model."""
        try:
            with poutine.block(), seeded(self.args[0].device, 0), pyro.validation_enabled(False):
                model = poutine.replay(self.model, trace=guide_trace)
                sites = drawn_sites(poutine.trace(model).get_trace(*self.args, **self.kwargs))
        except Exception:  # a model that does not run like this is not run like this; `_enumerated` says why
            return False
        return any(name not in guide_trace and getattr(sites[name]["fn"], ENUMERABLE, False) for name in sites)


def _amortized(pair: _Pair) -> Program | str:
    """Return the program, if it runs on any rows, each on its own; otherwise what went wrong."""
    reason = ""
    # What runs on another number of rows runs on any. Two are tried, as there may be a plate of the first's size.
    for way in pair.ways(SIDE_BY_SIDE, AS_ROWS):
        for size in (7, 11):
            try:
                return _warned_of_listing(_on_any_rows(pair, way, size), reason)
            except OtherPrograms:
                raise
            except Exception as error:  # whatever it is: the pair may run on all data together, or fail there again
                reason = reason or _first_line(error)
    return reason


def _on_any_rows(pair: _Pair, way: Way, size: int) -> Program:
    """Run the pair on so many rows, and return the program, or raise an error if rows or draws see each other."""
    found = pair.on(_repeated(pair.args, size), True, way)
    densities = refuse_draws_that_meet(found)
    found = _noting(found, refuse_values_that_meet(found))
    refuse_other_volume(found)
    refuse_place(densities, and_alone=True)
    program = found.with_rows(arg for arg in pair.args if has_rows(arg)).knowing(densities.of_guide is not None)
    if isinstance(program, ListedProgram):  # values may be others for other rows
        program = ListedProgram.of(program)
    some = program.at(torch.arange(min(program.num_data, LOOKED_AT_TOGETHER), device=program.device))
    refuse_place(Densities.of(some))
    return program


def _noting(program: Program, reason: str) -> Program:
    """Keep the reason why a value of discrete latents was not compared with itself alone, if there is one."""
    return replace(program, structure=replace(program.structure, not_compared_because=reason)) if reason else program


def _warned_of_listing(program: Program, reason: str) -> Program:
    """Warn if each value of discrete latents is a draw, and keep the reason."""
    if not isinstance(program, ListedProgram):
        return program
    _checks.warn(
        f"model: expected discrete latents that take all their values at once, in a dimension to the left; got "
        f"{', '.join(sorted(program.structure.summed.names))}, whose {program.num_values} joint values are draws, "
        f"{program.structure.draws}, and as much slower ({reason.rstrip('.')})."
    )
    return replace(program, structure=replace(program.structure, listed_because=reason))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _not_amortized(pair: _Pair, reason: str) -> Program:
    """Return the program, which runs on all rows together, and warn of the reason."""
    program = _on_all(pair)
    refuse_company(program)
    _warn_of(program, reason, is_whole=isinstance(pair.plate, int))
    return replace(program, structure=replace(program.structure, not_amortized_because=reason))


def _warn_of(program: Program, reason: str, is_whole: bool) -> None:
    if is_whole:
        _checks.warn(
            "model, guide: expected programs that take dimensions of draws to the left of their plates, as "
            f"(w * x).sum(-1) does and x @ w does not; got others ({reason.rstrip('.')}); draws are run one by one, "
            "which is slow."
        )
        return
    _checks.warn(
        "model, guide: expected a pair that runs on any rows, so that a datum's numbers are those of its place; got "
        f"one that runs on all {program.num_data} data together, its draws {program.structure.draws} "
        f"({reason.rstrip('.')}); its numbers are the same only where the same data are evaluated together."
    )


def _on_all(pair: _Pair) -> Program:
    """Return the program on all rows, in the first way in which draws do not see each other."""
    errors: dict[Way, Exception] = {}
    for way in pair.ways(SIDE_BY_SIDE, ONE_BY_ONE):
        try:
            program = pair.on(pair.args, False, way)
            densities = refuse_draws_that_meet(program)
            program = _noting(program, refuse_values_that_meet(program))
            refuse_other_volume(program)
            program = program.knowing(densities.of_guide is not None)
            return _warned_of_listing(program, _first_line(next(iter(errors.values()))) if errors else "")
        except OtherPrograms:
            raise
        except Exception as error:  # another way may do; if none does, the plainest has the best reason
            errors[way] = error
    plain = [error for way, error in errors.items() if way.draws == ONE_BY_ONE]
    raise next((error for error in plain if is_refusal(error)), plain[0])


def _refuse_other_rows(args: tuple[Any, ...]) -> None:
    """Raise unless all tensors, but for single numbers, have one row for each datum."""
    for i, arg in enumerate(args):
        if has_rows(arg) and len(arg) != len(args[0]):
            raise ValueError(
                f"args[{i}]: expected one row for each of the {len(args[0])} data, as all tensors by position; got "
                f"{len(arg)} rows; pass what is shared by the data in kwargs={{...}}."
            )


def _repeated(args: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Repeat rows up to a number that is not their own."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return in_place_of_rows(
        args, (arg[torch.arange(size, device=arg.device) % num_data] for arg in args if has_rows(arg))
    )
