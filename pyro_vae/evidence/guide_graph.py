"""Guide and model as one compiled graph."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.compile.graph import compiled
from pyro_vae.program.core import LogDensities, Program
from pyro_vae.program.joint import joint_of
from pyro_vae.program.runs import Latents
from pyro_vae.program.tiles import Draw, Evaluate, evaluating

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

        def evaluate(num_samples: int) -> tuple[Latents, LogDensities]:
            if self.num_samples is None:
                self._compile(program, num_samples)
            if num_samples != self.num_samples:
                return as_it_is(num_samples)
            *latents, prior, likelihood, guide = self.run(*program.rows)
            return dict(zip(self.names, latents, strict=True)), LogDensities(prior, likelihood, guide)

        return evaluate

    def _compile(self, program: Program, num_samples: int) -> None:
        def run(*args: Tensor) -> tuple[Tensor, ...]:
            on_these = program.with_rows(args)
            latents, densities = evaluating(on_these, on_these.draw)(num_samples)
            self.names = tuple(latents)
            return (*latents.values(), *densities)

        self.num_samples = num_samples
        self.run = compiled(run, *program.rows)
        self.is_compiled = self.run is not run
