"""Programs that run on all of their rows, and on no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.program.core import Program
from pyro_vae.program.runs import Latents, Sites

__all__ = ["UndividedProgram"]


@dataclass(frozen=True)
class UndividedProgram(Program):
    """A program that runs on all rows, whichever are asked for.

    For models that know the number of their rows, or their places. The other rows have latents of their own meanwhile,
    on which nothing of those that were asked for depends.
    """

    whole: Program = field(kw_only=True)
    """The program on all rows."""
    columns: Tensor = field(kw_only=True)
    """Which of them are asked for."""
    others: Latents = field(kw_only=True)
    """A draw for all rows, `(1, ..., N, ...)`."""

    @classmethod
    def of(cls, program: Program, others: Latents) -> UndividedProgram:
        """Ask for all rows of a program."""
        everyone = torch.arange(program.num_data, device=program.device)
        arguments = program.model, program.guide, program.args, program.kwargs, program.structure, program.counting
        return cls(*arguments, whole=program, columns=everyone, others=others)

    @property
    def num_data(self) -> int:
        return len(self.columns)

    def at(self, rows: Tensor) -> UndividedProgram:
        return replace(self, columns=self.columns[rows])

    def with_guide(self, guide: Callable[..., Any]) -> UndividedProgram:
        return replace(self, guide=guide, whole=self.whole.with_guide(guide))

    @property
    def with_masked_latents(self) -> UndividedProgram:
        return replace(self, counting={}, whole=self.whole.with_masked_latents)

    def draw(self, num_samples: int) -> tuple[Latents, Tensor]:
        latents, log_q = self.whole.draw(num_samples)
        return self.choose(latents, self.columns), log_q[:, self.columns]

    def log_joint(self, latents: Latents) -> tuple[Tensor, Tensor]:
        prior, likelihood = self.whole.log_joint(self._among_others(latents))
        return prior[:, self.columns], likelihood[:, self.columns]

    def log_guide(self, latents: Latents) -> Tensor:
        return self.whole.log_guide(self._among_others(latents))[:, self.columns]

    def log_drawn(self, latents: Latents) -> Tensor | None:
        log_q = self.whole.log_drawn(self._among_others(latents))
        return None if log_q is None else log_q[:, self.columns]

    def draw_prior(self, num_samples: int) -> Latents:
        return self.choose(self.whole.draw_prior(num_samples), self.columns)

    def log_prior(self, latents: Latents) -> Tensor:
        return self.whole.log_prior(self._among_others(latents))[:, self.columns]

    def parts_that_count(self, latents: Latents, event_dims: dict[str, int]) -> dict[str, Tensor]:
        return self.choose(self.whole.parts_that_count(self._among_others(latents), event_dims), self.columns)

    def sites(self) -> Sites:
        return self.whole.sites()

    def guide_sites(self, num_samples: int) -> dict[str, Any]:
        return self.whole.guide_sites(num_samples)

    def model_sites(self, latents: Latents) -> dict[str, Any]:
        return self.whole.model_sites(self._among_others(latents))

    def _among_others(self, latents: Latents) -> Latents:
        """Put the latents of some rows in their places among those of all."""
        axis = self.structure.data_axis
        num_samples = len(next(iter(latents.values())))
        return {
            name: self.others[name]
            .to(value.dtype)
            .expand(num_samples, *self.others[name].shape[1:])
            .index_copy(axis, self.columns, value)
            for name, value in latents.items()
        }
