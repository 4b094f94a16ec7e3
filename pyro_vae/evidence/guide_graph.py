"""Guide and model as one compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pyro_vae.compile.graph import compiled
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Draw, Evaluate, Strip, evaluating, noise

__all__ = ["GuideAndModel"]


REPAID_BY = 4
"""Blocks of data, for which a second graph for their last tiles is worth compiling."""

Run = Callable[..., tuple[Tensor, ...]]


class GuideAndModel:
    """Draw from the guide and evaluate the draws as one graph of a tile's size.

    It saves the cost of Pyro's handlers in the guide, and the repeated rows of `CompiledJoint`. Of 5,000 draws in tiles
    of 1,667 the last has one less: where there are several blocks, it has a graph of its own. Which tiles run as graphs
    does not depend on those that ran before, so that all processes do alike.
    """

    def __init__(self, num_blocks: int) -> None:
        self.has_several = num_blocks >= REPAID_BY
        self.runs: dict[int, Run] = {}
        """Graphs, by the number of draws."""
        self.is_compiled = False

    def __call__(self, program: Program, draw: Draw) -> Evaluate:
        if program.counting:  # the masks of the latents differ from block to block
            return evaluating(program, draw, joint_of(compile=True))
        as_it_is = evaluating(program, draw)

        def evaluate(strips: Sequence[Strip]) -> tuple[Latents, LogDensities]:
            (strip,) = strips  # of a whole block, each is a tile
            run = self._run_of(program, strip)
            if run is None:
                return as_it_is(strips)
            with noise(program, strip.seed, strip.place):
                *latents, prior, likelihood, guide = run(*program.rows)
            return dict(zip(self.names, latents, strict=True)), LogDensities(prior, likelihood, guide)

        return evaluate

    def _run_of(self, program: Program, strip: Strip) -> Run | None:
        number = strip.num_draws
        if number not in self.runs and (not self.runs or self.has_several):
            self.runs[number] = self._compiled(program, strip)
        return self.runs.get(number)

    def _compiled(self, program: Program, strip: Strip) -> Run:
        def run(*args: Tensor) -> tuple[Tensor, ...]:
            on_these = program.with_rows(args)
            latents, guide = on_these.draw(strip.num_draws)
            self.names = tuple(latents)
            return (*latents.values(), *on_these.log_joint(latents), guide)

        with noise(program, strip.seed, strip.place):
            found = compiled(run, *program.rows)
        self.is_compiled = self.is_compiled or found is not run
        return found
