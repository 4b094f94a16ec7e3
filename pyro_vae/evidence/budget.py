"""The budget of `log_evidence` for a datum, and how the pilots divide it."""

from __future__ import annotations

from dataclasses import dataclass

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
    "NUM_CHAINS",
    "NUM_LEAPFROG",
    "PILOT_LENGTH",
    "Budget",
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
SAFETY_OF_CHAINS = 8.0  # the same for annealing, whose pilot has few chains
FEWEST_TEMPERATURES = 10  # fewer are not worth their pilot run, and their weights are skewed
LEVELS = 4  # lengths of annealing to choose from, each half the next


@dataclass(frozen=True)
class Budget:
    """What may be spent on a datum, and the error that is wanted for it."""

    tolerance: float
    max_evaluations: int
    num_posterior_draws: int
    amortized: bool
    always_seeks_modes: bool = False
    """Whether to look for modes also where the guide's draws look good: a guide on one mode sees no other."""

    @property
    def annealing_pilot(self) -> int:
        return PILOT_CHAINS * (1 + PILOT_LENGTH * NUM_LEAPFROG)

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

    def affordable_temperatures(self, spent: Tensor) -> Tensor:
        """Return how many temperatures of a measured run are affordable, rounded down to one of few numbers."""
        left = self.max_evaluations - spent - self.num_posterior_draws
        return rounded_down(1 + (torch.div(left, NUM_CHAINS, rounding_mode="floor") - 1).div(NUM_LEAPFROG).floor())

    def num_temperatures(self, seen: Pilot, most: Tensor) -> Tensor:
        """Return how many temperatures are enough, one of a few lengths: the variance of log w falls with them."""
        needed = SAFETY_OF_CHAINS * PILOT_LENGTH * seen.variance / (NUM_CHAINS * self.tolerance**2)
        chosen = most.to(needed.dtype)
        for level in range(1, LEVELS):
            length = (most / 2**level).floor().clamp(min=FEWEST_TEMPERATURES)
            chosen = torch.where(needed <= length, length.to(needed.dtype), chosen)
        return self._for_all(chosen)

    def _for_all(self, needed: Tensor) -> Tensor:
        """Give all data what the worst needs, if the guide has parameters for each datum and runs on all or none."""
        return needed if self.amortized else needed.max().expand_as(needed)


def rounded_down(number: Tensor) -> Tensor:
    """Round down to a power of the fourth root of two."""
    return (number.double().clamp(min=1).log2() * 4 + 1e-9).floor().div(4).exp2().floor()
