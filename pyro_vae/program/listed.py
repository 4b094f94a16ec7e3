"""Discrete latents that are summed out by running the program on each of their values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae._random import seeded
from pyro_vae.program.core import Program
from pyro_vae.program.enumeration import for_each_datum, joint_values
from pyro_vae.program.runs import Latents, Sites
from pyro_vae.program.summing import NOTHING

__all__ = ["ListedProgram"]

NUM_DRAWS = 64
MOST_ROWS = 100_000
MOST_ROUNDS = 4
MOST_VALUES = 100
"""Joint values of a datum's discrete latents; each is a run of the decoder."""


@dataclass(frozen=True)
class ListedProgram(Program):
    """A program whose discrete latents take each of their values beside every draw of the others.

    For programs that do not take all values at once, in a dimension to the left. To them each value is a draw.
    """

    values: Latents = field(kw_only=True)
    """Each joint value that the latents of a datum can have, `(C, ..., 1, ...)`."""

    @classmethod
    def of(cls, program: Program) -> ListedProgram:
        """List the values, or raise an error if they are too many."""
        summed = program.structure.summed.names
        whole, axis = cls._whole_of(program), program.structure.data_axis
        sites, draws = whole.sites(), cls._several_draws(whole)
        values = joint_values(_of(summed, sites.latent | sites.observed), axis, MOST_VALUES)
        for _ in range(MOST_ROUNDS):
            if values is None:
                break
            listed = cls._with(program, values)
            there = whole.model_sites(listed._with_values(draws))
            again = joint_values(_of(summed, there), axis, MOST_VALUES)
            if again is not None and _is_same(again, values):
                return listed
            values = again
        raise ValueError(
            f"model: expected at most {MOST_VALUES} joint values of the discrete latents of a datum, "
            f"{', '.join(sorted(summed))}, which the guide does not draw, and the same whatever the others are; got "
            "more, or no list of them; draw them in the guide."
        )

    @classmethod
    def _with(cls, program: Program, values: Latents) -> ListedProgram:
        arguments = program.model, program.guide, program.args, program.kwargs
        return cls(*arguments, program.structure, program.counting, values=values)

    @staticmethod
    def _several_draws(whole: Program) -> Latents:
        """Draw the latents that the guide draws, on which the values of the others may depend."""
        num_samples = max(1, min(NUM_DRAWS, MOST_ROWS // (MOST_VALUES * whole.num_data)))
        with torch.no_grad(), seeded(whole.device, 0), pyro.validation_enabled(False):
            latents, _ = whole.draw(num_samples)
        return latents

    @staticmethod
    def _whole_of(program: Program) -> Program:
        """Return the program with the discrete latents as latents that are drawn."""
        structure = program.structure
        latents = structure.latents | structure.summed.names
        structure = replace(structure, latents=latents, summed=NOTHING, summed_in_guide=NOTHING)
        return Program(program.model, program.guide, program.args, program.kwargs, structure, program.counting)

    @property
    def num_values(self) -> int:
        """How many joint values there are."""
        return len(next(iter(self.values.values())))

    @property
    def whole(self) -> Program:
        """The program with the discrete latents as latents that are drawn."""
        return self._whole_of(self)

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        latents, log_q = self.whole.draw(num_samples)
        if not self.structure.summed_in_guide:
            return latents, log_q
        latents = self._without_values(latents)
        return latents, self.log_guide(latents)

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        prior, likelihood = (self._by_value(each) for each in self.whole.log_joint(self._with_values(latents)))
        joint, prior = (prior + likelihood).logsumexp(1), prior.logsumexp(1)
        return prior, (joint - prior).masked_fill(prior.isneginf(), 0.0)

    def log_guide(self, latents: Latents) -> Tensor:
        if not self.structure.summed_in_guide:
            return self.whole.log_guide(latents)
        return self._by_value(self.whole.log_guide(self._with_values(latents))).logsumexp(1)

    def log_drawn(self, latents: Latents) -> Tensor | None:
        try:
            return self.log_guide(latents)
        except ValueError:
            return None

    def draw_prior(self, num_samples: int) -> Latents:
        return self._without_values(self.whole.draw_prior(num_samples))

    def log_prior(self, latents: Latents) -> Tensor:
        given = {name: value for name, value in latents.items() if name in self.structure.latents}
        return self._by_value(self.whole.log_prior(self._with_values(given))).logsumexp(1)

    def parts_that_count(self, latents: Latents, event_dims: dict[str, int]) -> dict[str, Tensor]:
        return self.whole.parts_that_count(latents, event_dims)

    def sites(self) -> Sites:
        return Sites(*map(self._without_values, self.whole.sites()))

    def guide_sites(self, num_samples: int) -> dict[str, Any]:
        return self._without_values(self.whole.guide_sites(num_samples))

    def model_sites(self, latents: Latents) -> dict[str, Any]:
        return self._without_values(self.whole.model_sites(latents))

    def _without_values(self, sites: dict[str, Any]) -> dict[str, Any]:
        return {name: site for name, site in sites.items() if name not in self.structure.summed.names}

    def _with_values(self, latents: Latents) -> Latents:
        """Put each value beside each of K draws: `(K C, ..., N, ...)`."""
        latents = self._without_values(latents)
        num_samples, num_values = (len(next(iter(each.values()), [None])) for each in (latents, self.values))
        repeated = {name: value.repeat_interleave(num_values, 0) for name, value in latents.items()}
        axis = self.structure.data_axis
        values = {name: for_each_datum(value, self.num_data, axis) for name, value in self.values.items()}
        return repeated | {
            name: value.expand(num_samples, *value.shape).flatten(0, 1) for name, value in values.items()
        }

    def _by_value(self, log_density: Tensor) -> Tensor:
        """Arrange log densities `(K C, N)` as `(K, C, N)`."""
        num_values = len(next(iter(self.values.values())))
        return log_density.unflatten(0, (-1, num_values))


def _of(names: frozenset[str], sites: dict[str, Any]) -> dict[str, Any]:
    return {name: sites[name] for name in sorted(names)}


def _is_same(some: Latents, others: Latents) -> bool:
    return all(some[name].shape == others[name].shape and bool((some[name] == others[name]).all()) for name in some)
