"""Guide and model as one compiled graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_vae.compile.graph import compiled
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Draw, Evaluate, Strip, evaluating, noise

__all__ = ["GuideAndModel"]


class GuideAndModel:
    """Draw from the guide and evaluate the draws as one graph of the first tile's size; other tiles run eagerly.

    It saves the cost of Pyro's handlers in the guide, and the repeated rows of `CompiledJoint`.
    """

    is_compiled = False

    def __init__(self) -> None:
        self.num_samples: int | None = None

    def __call__(self, program: Program, draw: Draw) -> Evaluate:
        if program.counting:  # the masks of the latents differ from block to block
            return evaluating(program, draw, joint_of(compile=True))
        as_it_is = evaluating(program, draw)

        def evaluate(strips: Sequence[Strip]) -> tuple[Latents, LogDensities]:
            (strip,) = strips  # of a whole block, each is a tile
            if self.num_samples is None:
                self._compile(program, strip)
            if strip.num_draws != self.num_samples:
                return as_it_is(strips)
            with noise(program, strip.seed, strip.place):
                *latents, prior, likelihood, guide = self.run(*program.rows)
            return dict(zip(self.names, latents, strict=True)), LogDensities(prior, likelihood, guide)

        return evaluate

    def _compile(self, program: Program, strip: Strip) -> None:
        def run(*args: Tensor) -> tuple[Tensor, ...]:
            on_these = program.with_rows(args)
            latents, guide = on_these.draw(strip.num_draws)
            self.names = tuple(latents)
            return (*latents.values(), *on_these.log_joint(latents), guide)

        self.num_samples = strip.num_draws
        with noise(program, strip.seed, strip.place):
            self.run = compiled(run, *program.rows)
        self.is_compiled = self.run is not run
