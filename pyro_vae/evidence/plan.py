"""How long an evaluation will take, from a few of its data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_vae import distributed
from pyro_vae.evidence.estimator import Estimator, Task, run

__all__ = ["Plan", "planned"]

FEWEST = 8
"""Data that are timed, at least."""
SHARE = 20
"""Otherwise one in so many, so that a plan costs a twentieth of what it plans."""


@dataclass(frozen=True)
class Plan:
    """What an evaluation is likely to cost.

    Attributes:
        seconds: of all data, on this machine as busy as it is now; few data take longer, each, than many.
        num_evaluations: of log p(x, z), the mean over the data that were timed.
        num_data: how many data there are.
        num_timed: how many were timed, the first.
    """

    seconds: float
    num_evaluations: float
    num_data: int
    num_timed: int

    def __str__(self) -> str:
        return (
            f"about {_in_words(self.seconds)} for {self.num_data:,} data, by the first {self.num_timed:,}: "
            f"{self.num_evaluations:,.0f} evaluations each"
        )


def planned(estimator: Estimator[Any], task: Task) -> Plan:
    """Evaluate the first data, and take the others to cost as much.

    Raises:
        ValueError: for a pair that runs on all its data together, of which none can be timed alone.
    """
    program = task.program
    if not program.structure.amortized:
        raise ValueError(
            "plan: expected a model and a guide that run on any rows; got a pair that runs on all data together; leave "
            "plan out, or pass fewer data."
        )
    number = min(program.num_data, estimator.block_size(program), max(FEWEST, math.ceil(program.num_data / SHARE)))
    some = replace(task, program=program.at(torch.arange(number, device=program.device)), progress=False, partial=None)
    team = distributed.team()
    if team is not None:
        return team.by_the_first(lambda: _timed(estimator, some, program.num_data, team.size))
    return _timed(estimator, some, program.num_data)


def _timed(estimator: Estimator[Any], some: Task, num_data: int, num_processes: int = 1) -> Plan:
    """Take the time of some data, in one process; a graph is compiled before."""
    if some.is_to_be_compiled:
        run(estimator, some)
    started = time.perf_counter()
    found = run(estimator, some)
    number = some.program.num_data
    seconds = (time.perf_counter() - started) * num_data / number / num_processes
    return Plan(seconds, found.num_evaluations.double().mean().item(), num_data, number)


def _in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
