"""The budget of `log_evidence`, how pilots divide that of a datum, and how data share that of their block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pyro_vae.evidence.elsewhere import Elsewhere
from pyro_vae.evidence.laplace import EXPLORING
from pyro_vae.evidence.pilot import PILOT_CHAINS, Pilot
from pyro_vae.evidence.survey import NUM_POINTS
from pyro_vae.evidence.weights import Estimate

__all__ = [
    "FEWEST_DRAWS",
    "FEWEST_TEMPERATURES",
    "FIT_PILOT",
    "GUIDE_PILOT",
    "LAPLACE_PILOT",
    "LARGEST_LAPLACE_KHAT",
    "LARGEST_MULTIPLE",
    "NUM_CHAINS",
    "NUM_LEAPFROG",
    "PILOT_LENGTH",
    "Budget",
    "chains_of",
    "rounded_down",
]

GUIDE_PILOT = 200
LAPLACE_PILOT = 100
FIT_PILOT = 64  # where the guide seems to have seen what Laplace's Gaussian missed
NUM_CHAINS, NUM_LEAPFROG = 16, 3
FEWEST_DRAWS = 128
PILOT_LENGTH = 10  # temperatures from a fitted Gaussian, which is near; from the prior so few would be a poor pilot
LARGEST_KHAT = 0.3  # of a pilot run, whose k-hat is rough: well below the measured run's threshold
LARGEST_LAPLACE_KHAT = 0.1  # the same of Laplace's Gaussian, after which annealing costs little more
SAFETY = 3.0  # factor on the variance that a pilot run saw, which is rough
SAFETY_OF_CHAINS = 5.0  # the same for annealing, whose pilot has few chains; lengths are rounded up besides
FEWEST_TEMPERATURES = 16  # fewer are not worth their pilot run, and their weights are skewed
ENOUGH_TEMPERATURES = 64  # beyond, where weights are even, more chains help as much, reach more modes, and run together
EVEN = 0.1  # the largest variance of log weights that are: more chains do not mend uneven ones
MOST_CHAINS = 64  # which bounds the memory
LARGEST_MULTIPLE = 4  # of the mean budget, for one datum

Number = TypeVar("Number", int, Tensor)


@dataclass(frozen=True)
class Budget:
    """What may be spent on a datum, and the error that is wanted for it."""

    tolerance: float
    max_evaluations: int
    num_posterior_draws: int
    amortized: bool
    is_shared: bool
    """Whether `max_evaluations` are the mean over a block, whose data share what some of them leave."""
    always_seeks_modes: bool = False
    """Whether to look for modes also where the guide's draws look good: a guide on one mode sees no other."""

    @property
    def annealing_pilot(self) -> int:
        return PILOT_CHAINS * (1 + PILOT_LENGTH * NUM_LEAPFROG)

    @property
    def cheapest_annealing(self) -> int:
        """What annealing takes at least, its pilot included."""
        return self.annealing_pilot + self.cost_of_annealing(FEWEST_TEMPERATURES)

    def can_find_modes(self, dim: int) -> bool:
        """Tell whether the budget pays for two rounds of the search, pilots of what it finds, and draws after it."""
        search = 14 + 4 * dim + EXPLORING
        return GUIDE_PILOT + 2 * NUM_POINTS + search + 2 * LAPLACE_PILOT + FEWEST_DRAWS <= self.max_evaluations

    def num_draws(self, pilot: Estimate, num_pilot: int, seen: Elsewhere, largest_khat: float = LARGEST_KHAT) -> Tensor:
        """Return how many draws, a power of two, reach the tolerance; infinity where the pilot cannot tell."""
        variance = num_pilot / pilot.ess.clamp(min=1) - 1
        if not seen.log_weight.isnan().any():
            variance = torch.maximum(variance, seen.relative_variance(pilot.log_evidence, self.tolerance / 4))
        needed = (SAFETY * variance / self.tolerance**2).clamp(min=FEWEST_DRAWS).log2().ceil().exp2()
        return self._for_all(needed.where((pilot.khat < largest_khat) & ~seen.contradicts(pilot), torch.inf))

    @property
    def cap(self) -> int:
        """The most that one datum may take."""
        return self.max_evaluations * (LARGEST_MULTIPLE if self.is_shared else 1)

    def share(self, spent: Tensor, left: Tensor, num_open: int) -> Tensor:
        """Return what data may spend by now: an equal part of what the block has left, if it is shared."""
        if not self.is_shared:
            return self.max_evaluations - spent
        return torch.div(left, num_open, rounding_mode="floor").clamp(max=self.cap - spent)

    def granted(self, wanted: Tensor, spent: Tensor, left: Tensor) -> Tensor:
        """Return what each datum's last run may spend: all that it wants, up to the level that the block can pay."""
        if self.is_shared:
            return wanted.minimum(level_of(wanted, left))
        most = self.max_evaluations - spent
        return wanted.minimum(most if self.amortized else rounded_down(most.min()).long())

    def affordable_length(self, evaluations: Tensor) -> Tensor:
        """Return for how many temperatures of 16 chains, and draws of z, these are enough, one of few lengths."""
        left = torch.div(evaluations - self.num_posterior_draws, NUM_CHAINS, rounding_mode="floor")
        return rounded_down(1 + (left - 1).div(NUM_LEAPFROG).floor())

    def cost_of_annealing(self, length: Number) -> Number:
        """Return the evaluations of so many temperatures of 16 chains, and draws of z."""
        return NUM_CHAINS * (1 + (length - 1) * NUM_LEAPFROG) + self.num_posterior_draws

    def length(self, seen: Pilot) -> Tensor:
        """Return how many temperatures of 16 chains are enough, a power of two: with them the variance falls."""
        needed = SAFETY_OF_CHAINS * PILOT_LENGTH * seen.variance / (NUM_CHAINS * self.tolerance**2)
        most = self.affordable_length(torch.tensor(self.cap)).item()
        needed = needed.nan_to_num(nan=most).clamp(max=most).clamp(min=FEWEST_TEMPERATURES)
        return self._for_all(needed.log2().ceil().exp2())

    def _for_all(self, needed: Tensor) -> Tensor:
        """Give all data what the worst needs, if the guide has parameters for each datum and runs on all or none."""
        return needed if self.amortized else needed.max().expand_as(needed)


def level_of(wanted: Tensor, total: Tensor) -> Tensor:
    """Return the level L at which the smaller of L and what is wanted sum to the total, or one above all of them."""
    ordered = wanted.sort().values
    before = ordered.cumsum(0) - ordered
    others = torch.arange(len(ordered), 0, -1, device=ordered.device)
    return torch.div(total - before, others, rounding_mode="floor").max()


def chains_of(length: Tensor, seen: Pilot) -> tuple[Tensor, Tensor]:
    """Divide so many temperatures of 16 chains into temperatures and chains.

    Chains are doubled where as many temperatures are left as are enough, and make the weights even.
    """
    enough = (PILOT_LENGTH * seen.variance / EVEN).nan_to_num(nan=math.inf).clamp(min=ENOUGH_TEMPERATURES)
    multiple = (length / enough).clamp(1, MOST_CHAINS // NUM_CHAINS).log2().floor().exp2()
    return (length / multiple).floor().long(), (NUM_CHAINS * multiple).long()


def rounded_down(number: Tensor) -> Tensor:
    """Round down to a power of the fourth root of two."""
    return (number.double().clamp(min=1).log2() * 4 + 1e-9).floor().div(4).exp2().floor()
