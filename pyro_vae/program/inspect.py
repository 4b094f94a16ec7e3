"""Inspect a (model, guide) pair: make a program of it, or say why it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._random import seeded
from pyro_vae.program.core import LOOKED_AT_TOGETHER, Latents, Program
from pyro_vae.program.masks import Counting, elements_of, parts_that_count
from pyro_vae.program.structure import drawn_sites, initialise, look_at, name_of_latent, refuse_autocast, sample_sites
from pyro_vae.program.whole import prior_of

__all__ = ["program_of"]


def program_of(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    plate: str | None = None,
) -> Program:
    """Make a program of a pair by looking at its runs; refuse one that has no log p(x) for each datum.

    Without a guide, the prior takes its place.
    """
    refuse_autocast()
    guide = prior_of(model) if guide is None else guide
    rows, kwargs = _rows_of_data(args), _checks.keyword_arguments(kwargs)
    initialise(guide, rows, kwargs)
    found = _amortized(model, guide, rows, kwargs, plate)
    program = found if isinstance(found, Program) else _not_amortized(model, guide, rows, kwargs, plate, found)
    program.refuse_impossible_data()
    some = (
        program.at(torch.zeros(1, dtype=torch.long, device=rows[0].device)) if program.structure.amortized else program
    )
    structure = replace(
        program.structure, guide_has_density=_guide_has_density(some), can_draw_prior=_can_draw_prior(some)
    )
    return _with_masks(replace(program, structure=structure))


NUM_MASKED_DRAWS = 64  # to test that nothing that counts depends on what is masked


@torch.no_grad()
def _guide_has_density(program: Program) -> bool:
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        drawn = drawn_sites(program.run_guide(1))
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
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        try:
            program.draw_prior(1)
        except ValueError:
            return False
    return True


@torch.no_grad()
def _with_masks(program: Program) -> Program:
    """Leave masked latents out of the densities, where nothing that counts depends on them."""
    counting = _counting(program)
    if not counting:
        return program
    masked = replace(program, counting=counting)
    if not _masked_latents_matter(masked):
        return masked
    if any(each.mask is None for each in counting.values()):
        return program  # the latents' own densities integrate to one, whatever depends on them
    raise ValueError(
        "model: expected masked latents on which nothing depends that counts; got other densities of what counts for "
        "other values of what is masked; mask what depends on it too, or take the mask off the latent, whose prior "
        "then counts."
    )


class _Masked(NamedTuple):
    """What is masked of a latent in some draws."""

    mask: Tensor
    """Which of its parts count, in each of these draws."""
    event_dim: int

    @property
    def by_draw(self) -> bool:
        return bool((self.mask != self.mask[:1]).any())


def _counting(program: Program) -> dict[str, Counting]:
    """Find which parts of the latents count, by the model's masks."""
    pieces = [_masked(program.at(rows)) for rows in program.rows_at_a_time()]
    names = pieces[0].keys()
    if any(piece.keys() != names for piece in pieces):
        return {}
    if any(each.by_draw for piece in pieces for each in piece.values()):
        return {name: Counting(None, each.event_dim) for name, each in pieces[0].items()}
    axis = program.structure.data_axis
    return {
        name: Counting(torch.cat([piece[name].mask[:1] for piece in pieces], axis), each.event_dim)
        for name, each in pieces[0].items()
    }


def _masked(program: Program) -> dict[str, _Masked]:
    """Find the masked latents; none if the guide draws jointly what the model draws apart."""
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        drawn, sites = _drawn_with_model(program, 1)
        if all(elements_of(site).mask is None for name, site in sites.items() if name in drawn):
            return {}
        drawn, sites = _drawn_with_model(program, NUM_MASKED_DRAWS)
    if any(name_of_latent(site) not in sites for site in drawn.values()):
        return {}
    found = {}
    for name in drawn.keys() & sites.keys():
        if elements_of(sites[name]).mask is not None:
            event_dim = max(elements_of(site).fn.event_dim for site in (sites[name], drawn[name]))
            found[name] = _Masked(parts_that_count(sites[name], event_dim), event_dim)
    return found


def _drawn_with_model(program: Program, num_samples: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sites that the guide draws, and all sites of the model on these draws."""
    drawn = drawn_sites(program.run_guide(num_samples))
    return drawn, dict(sample_sites(program.run_model({name: site["value"] for name, site in drawn.items()})))


def _masked_latents_matter(program: Program) -> bool:
    """Tell whether what counts depends on what is masked: log p(x) would then integrate over a flat density."""
    for rows in program.rows_at_a_time():
        some = program.at(rows)
        with seeded(rows.device, 0), pyro.validation_enabled(False):
            (latents, _), (others, _) = some.draw(NUM_MASKED_DRAWS), some.draw(NUM_MASKED_DRAWS)
            before, after = some.log_joint(latents), some.log_joint(some.exchanged(latents, others))
        if not all(map(_agree, before, after)):
            return True
    return False


def _amortized(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    rows: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
) -> Program | str:
    """Return the program, if it runs on any rows, each on its own; otherwise what went wrong."""
    reason = ""
    # What runs on another number of rows runs on any. Two are tried, as there may be a plate of the first's size.
    for trial in (_repeated(rows, 7), _repeated(rows, 11)):
        try:
            found = Program(model, guide, trial, kwargs, look_at(model, guide, trial, kwargs, plate, True))
            _refuse_fixed_shapes(found)
            _refuse_draws_that_meet(found)
            _refuse_place(found, and_alone=True)
            program = replace(found, args=rows)
            _refuse_place(program.at(torch.arange(min(program.num_data, LOOKED_AT_TOGETHER), device=rows[0].device)))
            return program
        except Exception as error:  # whatever it is: the pair may run on all data together, or fail there again
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    return reason


def _not_amortized(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    rows: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    plate: str | None,
    reason: str,
) -> Program:
    """Return the program, which runs on all rows together, and warn of the reason."""
    program = Program(model, guide, rows, kwargs, look_at(model, guide, rows, kwargs, plate, False))
    _refuse_fixed_shapes(program)
    _refuse_draws_that_meet(program)
    _refuse_company(program)
    _checks.warn(
        "model, guide: expected a pair that runs on any rows, so that a datum's numbers are those of its place; got "
        f"one that runs on all {len(rows[0])} data together ({reason.rstrip('.')}); its numbers are the same only "
        "where the same data are evaluated together."
    )
    return replace(program, structure=replace(program.structure, not_amortized_because=reason))


def _refuse_fixed_shapes(program: Program) -> None:
    """Raise unless the pair runs on two draws at once, as evaluations do."""
    expected = (2, program.num_data)
    found: Any
    try:
        found = tuple(_weights_of_two_draws(program).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
    if found != expected:
        raise ValueError(
            f"model, guide: expected log weights of shape {expected} for 2 draws at once; got {found}; let the "
            "functions inside accept dimensions to the left of the plate's, as Pyro's vectorize_particles=True needs."
        )


@torch.no_grad()
def _weights_of_two_draws(program: Program) -> Tensor:
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        latents, guide = program.draw(2)
        return sum(program.log_joint(latents)) - guide


def _rows_of_data(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    if not args:
        raise TypeError("x: expected the data after model and guide; got nothing; pass a tensor (N, ...).")
    for i, arg in enumerate(args[1:], start=1):
        if not hasattr(arg, "__len__"):
            raise TypeError(
                f"args[{i}]: expected a tensor with one row a datum, as all positional arguments; got {arg!r}; pass "
                "what has no rows by name: options such as num_samples=1000, and arguments of the program in "
                "kwargs={...}."
            )
    names = ["x", *(f"args[{i}]" for i in range(1, len(args)))]
    rows = tuple(_checks.tensor(name, arg) for name, arg in zip(names, args, strict=True))
    for name, arg in zip(names, rows, strict=True):
        if len(arg) != len(rows[0]):
            raise ValueError(
                f"{name}: expected one row for each of the {len(rows[0])} data, as all positional arguments; got "
                f"{len(arg)} rows; pass what is shared by the data in kwargs={{...}}."
            )
    return rows


def _refuse_place(program: Program, and_alone: bool = False) -> None:
    """Raise if a row's density depends on its place, on the number of rows or on others: halves must give the same.

    With `and_alone`, so must a row in a batch of one.
    """
    firsts = range(min(2, program.num_data))
    found = _Densities.of(program)
    if not all(found.has(torch.arange(first, program.num_data, 2).flip(0)) for first in firsts):
        raise ValueError("model: got other densities of the same rows in another place, or among fewer.")
    if and_alone and not all(found.has(torch.tensor([first])) for first in firsts):
        raise ValueError("model: got other densities of the same row in a batch of one.")


def _refuse_draws_that_meet(program: Program) -> None:
    """Raise if a draw has another density beside others than in a run without a dimension of draws."""
    alone, together = _two_draws(program)
    for name, one, other in zip(("model", "model", "guide"), zip(*alone, strict=True), together, strict=True):
        if other is not None and not _agree(torch.cat(one), other):
            size = len(program.args[0])
            raise ValueError(
                f"{name}: expected the same density of a draw alone, among {size} data, as beside another, in a "
                f"dimension to the left, of shape (2, {size}, ...); got another one; let every function say "
                "which dimension it is about, counted from the right: Softmax(dim=-1), mean(-1); the channels of "
                "BatchNorm1d, PReLU and GroupNorm are dimension 1, so give them rows by a reshape to (-1, channels)."
            )


@torch.no_grad()
def _two_draws(program: Program) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor | None, ...]]:
    """Return log p(z), log p(x|z) and log q(z|x) of two draws: `(1, N)` each alone, and `(2, N)` side by side."""
    with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
        alone = [program.alone(program.draw_alone()) for _ in range(2)]
        latents = {name: torch.cat([each.latents[name] for each in alone]) for name in alone[0].latents}
        together = (*program.log_joint(latents), program.log_drawn(latents))
    return [each.densities for each in alone], together


def _refuse_company(program: Program) -> None:
    """Raise if a row's density depends on other rows or their latents: replace every second row by one of them."""
    places, found = torch.arange(program.num_data), _Densities.of(program)
    for first in range(min(2, program.num_data)):
        beside_others = torch.where(places % 2 == first, places, first)
        if not found.has(beside_others, slice(first, None, 2)):
            raise ValueError(
                "model: expected each datum's density to depend on its own row and latents; got others where different "
                "data lay beside it; use no statistics of the batch, let no latent reach other data, pass what they "
                "share in kwargs={...}, and say plate=... if the rows of x are those of another plate."
            )


class _Densities(NamedTuple):
    """A draw for all rows, with its densities among all of them."""

    program: Program
    latents: Latents
    among_all: tuple[Tensor, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, program: Program) -> _Densities:
        with seeded(program.args[0].device, 0), pyro.validation_enabled(False):
            latents, _ = program.draw(1)
            return cls(program, latents, program.log_joint(latents))

    @torch.no_grad()
    def has(self, rows: Tensor, compared: slice = slice(None)) -> bool:
        """Tell whether these rows, with their latents and no others, have the same densities."""
        rows = rows.to(self.program.args[0].device)
        with seeded(rows.device, 0), pyro.validation_enabled(False):
            here = self.program.at(rows).log_joint(self.program.choose(self.latents, rows))
        pairs = zip(self.among_all, here, strict=True)
        return all(_agree(one[:, rows[compared]], other[:, compared]) for one, other in pairs)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Tell whether densities are the same, to rounding in float32."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-3, equal_nan=True)


def _repeated(args: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Repeat rows up to a number that is not their own."""
    num_data = len(args[0])
    size += 6 if size == num_data else 0
    return tuple(arg[torch.arange(size, device=arg.device) % num_data] for arg in args)
