"""log p(z) and log p(x|z) of a program's latents: as the model gives them, in chunks, or as a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae.compile.graph import compiled, with_gradients
from pyro_vae.program.core import Program
from pyro_vae.program.identity import parameters_of
from pyro_vae.program.runs import Latents

__all__ = ["Compile", "CompiledJoint", "Joint", "as_it_is", "joint_of", "pays_to_compile"]

Joint = Callable[[Program, Latents], tuple[Tensor, Tensor]]
"""Returns log p(z) and log p(x|z) of a program's latents, `(K, N)` each, differentiable by them once."""

PAIRS_AT_A_TIME = {"cpu": 1024, "cuda": 65_536}
"""How many (draw, datum) pairs a graph evaluates: on one H200, 2**16 and 2**18 take as long."""


Compile = bool | Literal["auto"]

WORTH_COMPILING = {"cpu": 1e12, "cuda": 1e14}
"""Evaluations times the parameters they read, which about repay compiling from scratch on two CPU cores. The figure for
a GPU is a guess."""
FEWEST = 1e4
"""Evaluations of all data, below which nobody need look at the parameters."""


def pays_to_compile(compile: Compile, program: Program, evaluations: float) -> bool:
    """Tell whether to compile for so many evaluations of each datum, of which one with a gradient counts twice.

    It depends on the work that is asked for and not on a clock: the same call gives the same numbers.
    """
    if compile != "auto":
        return compile
    evaluations *= program.num_data
    if not _runs_on_any_pairs(program) or evaluations < FEWEST:
        return False
    return evaluations * _num_parameters(program) >= WORTH_COMPILING.get(program.device.type, WORTH_COMPILING["cpu"])


def _runs_on_any_pairs(program: Program) -> bool:
    return program.structure.amortized and not program.counting and not program.structure.in_turn


def _num_parameters(program: Program) -> int:
    """Count the numbers that an evaluation of one datum reads."""
    of_model, _ = parameters_of(program)
    return sum(parameter.numel() for parameter in of_model)


def joint_of(chunk_size: int | None = None, compile: bool = False) -> Joint:
    """Make the densities, on so many (draw, datum) pairs at a time: that changes memory and speed but no draw."""
    if chunk_size is not None:
        _checks.whole_number("chunk_size", chunk_size)
    if compile:
        return CompiledJoint(chunk_size)
    return as_it_is if chunk_size is None else partial(_in_chunks, chunk_size=chunk_size)


def as_it_is(program: Program, latents: Latents) -> tuple[Tensor, Tensor]:
    """Evaluate all pairs in one run of the model; on a GPU in as few as its memory is likely to bear."""
    if program.device.type == "cpu":
        return program.log_joint(latents)
    return _in_chunks(program, latents, PAIRS_AT_A_TIME["cuda"])


def _in_chunks(program: Program, latents: Latents, chunk_size: int) -> tuple[Tensor, Tensor]:
    num_samples = len(next(iter(latents.values())))
    height = max(1, chunk_size // program.num_data)
    if num_samples <= height:
        return program.log_joint(latents)
    pieces = [
        program.log_joint({name: value[top : top + height] for name, value in latents.items()})
        for top in range(0, num_samples, height)
    ]
    prior, likelihood = (torch.cat(column) for column in zip(*pieces, strict=True))
    return prior, likelihood


class CompiledJoint:
    """The densities of any number of draws and data, by one graph of a fixed number of (draw, datum) pairs.

    Rows of the data are repeated for their draws, and the last run is filled up with the first pair. Calls that would
    fill less than a quarter of a graph run eagerly. Where a gradient is needed, a second graph returns it with the
    densities; it cannot be differentiated further.
    """

    def __init__(self, num_pairs: int | None = None) -> None:
        self.num_pairs = num_pairs
        self.graphs: dict[bool, Callable[..., Any]] = {}
        self.rows = _RepeatedRows()
        self.has_warned = False
        self.is_compiled = False
        """Whether a graph was made, and runs some of the calls."""

    def __call__(self, program: Program, latents: Latents) -> tuple[Tensor, Tensor]:
        if not _runs_on_any_pairs(program):
            self._say_that_it_runs_as_it_is()
            return program.log_joint(latents)
        names = sorted(latents)  # a graph takes them in one order, whichever the guide's and the model's are
        values = [program.draws_first(latents[name]) for name in names]
        shape = values[0].shape[:2]
        most = PAIRS_AT_A_TIME.get(values[0].device.type, PAIRS_AT_A_TIME["cpu"])
        size = min(self.num_pairs or most, most)
        if 4 * shape.numel() < size:
            return program.log_joint(latents)
        densities = self._of_pairs(program, names, [value.flatten(0, 1) for value in values], size)
        prior, likelihood = densities.unflatten(-1, shape)
        return prior, likelihood

    def _of_pairs(self, program: Program, names: list[str], pairs: list[Tensor], size: int) -> Tensor:
        """Evaluate P pairs; return `(2, P)`."""
        needs_gradient = torch.is_grad_enabled() and any(value.requires_grad for value in pairs)
        everyone = torch.arange(len(pairs[0]), device=pairs[0].device)
        filled = torch.nn.functional.pad(everyone, (0, -len(everyone) % size))
        found = []
        for place, some in enumerate(filled.split(size)):
            inputs = [value.detach()[some] for value in pairs]
            inputs += self.rows.of(program, place * size % program.num_data, size)
            if needs_gradient not in self.graphs:
                as_it_is = _graph_of(program, names, needs_gradient)
                self.graphs[needs_gradient] = compiled(as_it_is, *inputs)
                self.is_compiled = self.is_compiled or self.graphs[needs_gradient] is not as_it_is
            found.append(self.graphs[needs_gradient](*inputs))
        densities, *gradients = (torch.cat(column, dim=1)[:, : len(everyone)] for column in zip(*found, strict=True))
        return with_gradients(densities, gradients, pairs) if needs_gradient else densities

    def _say_that_it_runs_as_it_is(self) -> None:
        if not self.has_warned:
            self.has_warned = True
            _checks.warn(
                "compile: expected a model and a guide that run on any rows at once, without masked latents; got a "
                "pair that runs on all data together, or visits them in turn, or has masked latents; it runs as it is."
            )


class _RepeatedRows:
    """The rows of the data, over and over, as graphs of pairs take them.

    Chains ask hundreds of times for the same, so that the last two of a program are kept.
    """

    def __init__(self) -> None:
        self.program: Program | None = None
        self.kept: dict[int, list[Tensor]] = {}

    def of(self, program: Program, first: int, number: int) -> list[Tensor]:
        """Return so many rows of each argument, from one of them on."""
        if program is not self.program:
            self.program, self.kept = program, {}
        if first not in self.kept:
            rows = torch.arange(first, first + number, device=program.device) % program.num_data
            self.kept = dict([*self.kept.items()][-1:])
            self.kept[first] = [arg[rows] for arg in program.rows]
        return self.kept[first]


def _graph_of(program: Program, names: list[str], with_gradients: bool) -> Callable[..., tuple[Tensor, ...]]:
    """Make a function of P pairs: densities `(2, P)` and, if asked for, gradients `(2, P, ...)` by each latent."""

    def densities(latents: tuple[Tensor, ...], args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        as_one_draw = {
            name: value[None].movedim(1, program.structure.data_axis)
            for name, value in zip(names, latents, strict=True)
        }
        return program.with_rows(args).log_joint(as_one_draw)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        latents, args = inputs[: len(names)], inputs[len(names) :]
        if not with_gradients:
            return (torch.cat(densities(latents, args)),)
        latents = tuple(latent.detach().requires_grad_() for latent in latents)
        with torch.enable_grad():
            found = densities(latents, args)
            by_each = [_gradients(density.sum(), latents) for density in found]
        return (torch.cat(found).detach(), *map(torch.stack, zip(*by_each, strict=True)))

    return run


def _gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
