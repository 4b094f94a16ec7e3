"""What a pair says of a draw, a value or a datum alone is what it says of it among others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae._random import seeded
from pyro_vae.program.core import Program
from pyro_vae.program.draws import ONE_BY_ONE
from pyro_vae.program.listed import ListedProgram
from pyro_vae.program.refusals import said
from pyro_vae.program.runs import Latents

__all__ = [
    "Densities",
    "agree",
    "refuse_company",
    "refuse_draws_that_meet",
    "refuse_place",
    "refuse_values_that_meet",
]


def refuse_place(found: Densities, and_alone: bool = False) -> None:
    """Raise if a row's density depends on its place, on the number of rows or on others: halves must give the same.

    With `and_alone`, so must a row in a batch of one.
    """
    num_data = found.program.num_data
    firsts = range(min(2, num_data))
    if not all(found.has(torch.arange(first, num_data, 2).flip(0)) for first in firsts):
        raise ValueError("model, guide: got other densities of the same rows in another place, or among fewer.")
    if and_alone and not all(found.has(torch.tensor([first])) for first in firsts):
        raise ValueError("model, guide: got other densities of the same row in a batch of one.")


def refuse_values_that_meet(program: Program) -> str:
    """Raise if a value of what is summed out has another density beside the others than alone.

    Returns:
        Why a value could not be looked at alone; nothing if all could.
    """
    reasons: list[str] = []
    if not program.structure.summed or isinstance(program, ListedProgram):
        return ""
    with torch.no_grad(), seeded(program.device, 0), pyro.validation_enabled(False):
        latents, _ = program.draw(1)
        for place in range(NUM_VALUES_LOOKED_AT):
            if not all(agree(*both) for both in program.densities_at_one_value(latents, place, reasons.append)):
                names = ", ".join(sorted(program.structure.summed.names))
                raise ValueError(
                    f"model, guide: expected values of the discrete latents {names} that have the same density beside "
                    "others, in a dimension to the left, as alone; got another; let every function say which dimension "
                    "it is about, counted from the right: softmax(-1), sum(-1)."
                )
    return next(iter(reasons), "")


NUM_VALUES_LOOKED_AT = 3


@torch.no_grad()
def refuse_draws_that_meet(program: Program) -> Densities:
    """Raise if a draw has another density beside another than in a run without a dimension of draws, or none.

    Returns:
        The first draw, with what was found of it.
    """
    alone = replace(program, structure=replace(program.structure, draws=ONE_BY_ONE))
    with seeded(program.device, 0), pyro.validation_enabled(False):
        drawn = [alone.draw(1) for _ in range(2)]
        one_by_one = [(*_at_a_draw(alone, latents), log_q) for latents, log_q in drawn]
        _refuse_own_seed(*(latents for latents, _ in drawn))
        both = {name: torch.cat([latents[name] for latents, _ in drawn]) for name in drawn[0][0]}
        together = _of_two_draws(program, both)
    for name, one, other in zip(("model", "model", "guide"), zip(*one_by_one, strict=True), together, strict=True):
        if other is not None and not agree(torch.cat(one), other):
            _refuse_noise(one_by_one[0], lambda: alone.log_joint(drawn[0][0]))
            size = len(program.args[0])
            raise ValueError(
                f"{name}: expected the same density of a draw alone, among {size} data, as beside another, in a "
                f"dimension to the left, of shape (2, {size}, ...); got another one; let every function say "
                "which dimension it is about, counted from the right: Softmax(dim=-1), mean(-1); the channels of "
                "BatchNorm1d, PReLU and GroupNorm are dimension 1, so give them rows by a reshape to (-1, channels)."
            )
    prior, likelihood, log_q = together
    return Densities(program, drawn[0][0], (prior[:1], likelihood[:1]), None if log_q is None else log_q[:1])


def _at_a_draw(program: Program, latents: Latents) -> tuple[Tensor, Tensor]:
    """Return log p(z) and log p(x|z) at a draw of the guide."""
    try:
        return program.log_joint(latents)
    except RuntimeError as error:  # of a distribution without a support, or of values that do not fit
        names = ", ".join(sorted(latents))
        raise ValueError(
            f"model: expected a log density at the guide's draws of {names}; got {said(error)}; give model and guide "
            "latents of one shape, with distributions that have a support and a density."
        ) from error


def _of_two_draws(program: Program, both: Latents) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return log p(z), log p(x|z) and log q(z|x), `(2, N)`; raise unless the pair runs on two draws at once."""
    expected = (2, program.num_data)
    try:
        prior, likelihood = program.log_joint(both)
        log_q = program.log_drawn(both)
        drawn = program.draw(2)[1] if log_q is None else log_q
    except (RuntimeError, ValueError, IndexError) as error:
        if ": expected " in str(error):  # it says more itself
            raise
        raise _other_shape(expected, (str(error).splitlines() or [type(error).__name__])[0]) from None
    for density in (prior, likelihood, drawn):
        if density.shape != expected:
            raise _other_shape(expected, tuple(density.shape))
    return prior, likelihood, log_q


def _other_shape(expected: tuple[int, int], found: Any) -> ValueError:
    return ValueError(
        f"model, guide: expected log weights of shape {expected} for 2 draws at once; got {found}; let the "
        "functions inside accept dimensions to the left of the plate's, as Pyro's vectorize_particles=True needs."
    )


@torch.no_grad()
def _refuse_noise(first: tuple[Tensor, ...], again: Callable[[], tuple[Tensor, ...]]) -> None:
    """Raise if the model gives one draw other densities at another time."""
    with pyro.validation_enabled(False):
        if not all(map(agree, first, again())):
            raise ValueError(
                "model: expected one density for given latents; got another in a second run, as where torch.randn, a "
                "counter or a Monte Carlo estimate is inside; make noise a sample site, or leave it out."
            )


def _refuse_own_seed(one: Latents, other: Latents) -> None:
    """Raise if two draws are the same: errors and certificates need draws that are independent."""
    for name, value in one.items():
        is_continuous = value.is_floating_point() and not (value == value.round()).all()
        if is_continuous and torch.equal(value, other[name]):
            raise ValueError(
                f"guide: expected draws by torch's generator, new ones each time; got the same of {name!r} twice; take "
                "poutine.seed, pyro.set_rng_seed and torch.manual_seed out of model and guide."
            )


def refuse_company(program: Program) -> None:
    """Raise if a row's density depends on other rows or their latents: replace every second row by one of them.

    That of the guide may: q(z|x) is a proposal, whatever it is made of.
    """
    places, found = torch.arange(program.num_data), Densities.of(program)
    for first in range(min(2, program.num_data)):
        beside_others = torch.where(places % 2 == first, places, first)
        if not found.has(beside_others, slice(first, None, 2), and_of_guide=False):
            raise ValueError(
                "model: expected each datum's density to depend on its own row and latents; got others where different "
                "data lay beside it; use no statistics of the batch, let no latent reach other data, pass what they "
                "share in kwargs={...}, and say plate=... if the rows of x are those of another plate."
            )


class Densities(NamedTuple):
    """A draw for all rows, with its densities among all of them."""

    program: Program
    latents: Latents
    of_model: tuple[Tensor, Tensor]
    of_guide: Tensor | None
    """None if the guide has no density at given values."""

    @classmethod
    @torch.no_grad()
    def of(cls, program: Program) -> Densities:
        with seeded(program.device, 0), pyro.validation_enabled(False):
            latents, _ = program.draw(1)
            return cls(program, latents, program.log_joint(latents), program.log_drawn(latents))

    @torch.no_grad()
    def has(self, rows: Tensor, compared: slice = slice(None), and_of_guide: bool = True) -> bool:
        """Tell whether these rows, with their latents and no others, have the same densities."""
        rows = rows.to(self.program.device)
        some, latents = self.program.at(rows), self.program.choose(self.latents, rows)
        with seeded(rows.device, 0), pyro.validation_enabled(False):
            pairs = list(zip(self.of_model, some.log_joint(latents), strict=True))
            here = some.log_drawn(latents) if and_of_guide else None
        if self.of_guide is not None and here is not None:
            pairs.append((self.of_guide, here))
        return all(agree(one[:, rows[compared]], other[:, compared]) for one, other in pairs)


def agree(one: Tensor, other: Tensor) -> bool:
    """Tell whether densities are the same, to rounding in float32."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-3, equal_nan=True)
