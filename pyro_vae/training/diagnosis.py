"""What is said of a step that diverged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MAX_LISTED", "Cause", "Diagnosis"]

Cause = Literal["data", "learning rate", "scale", "module", "density", "gradient", "unknown"]

MAX_LISTED = 5
"""Data that are listed in a message."""

REMEDIES: dict[Cause, str] = {
    "data": "repair or remove those data (torch.nan_to_num; a mask, if numbers are missing)",
    "learning rate": "lower the learning rate, or clip gradients: fit(clip_grad_norm=10.0)",
    "scale": "give that scale a floor: min_scale=1e-2 of pv.likelihoods.Gaussian, or scale + 1e-2 in a model",
    "module": "bound the output of that module (a clamp before exp, say), or clip gradients: fit(clip_grad_norm=10.0)",
    "density": "look at those data: the density there is zero or infinite; move them off the edge of the support, or "
    "take another distribution",
    "gradient": "keep that operation away from where its derivative is infinite: (x + 1e-12).sqrt(), say",
    "unknown": "lower the learning rate, or bound the scale of the likelihood",
}


@dataclass(frozen=True)
class Diagnosis:
    """Why a step diverged, as far as one more run of it, eager and without validation, can tell.

    Attributes:
        step, epoch: where it happened, counted from 1.
        cause: what came first, which decides on the remedy: "data", "learning rate", "scale", "module", "density",
            "gradient", or "unknown".
        data: the data concerned, by their index in the data, counted from 0; empty if it is the whole batch.
        data_are_of: "the data"; "the batch" where a loader does not tell which data it took.
        site: the first sample site whose value or log density was not finite.
        module: the first module that made, from finite inputs, an output (or a gradient) that is not finite or whose
            square is not; by its qualified name.
        output: its largest output: "NaN", "infinity" or a number.
        operation: the first operation whose gradient was not finite, where the loss was.
        code: the line of the program that it comes from.
        parameter: the first parameter that was not finite, or whose gradient was not.
        growth: how many times as long the parameters are as they were before the last step or at the start.
        smallest_scale, smallest_scale_site: of all distributions that have a scale.
        error: what the program raised when it was run once more.
    """

    step: int
    epoch: int
    cause: Cause
    data: tuple[int, ...] = ()
    data_are_of: Literal["the data", "the batch"] = "the data"
    site: str | None = None
    module: str | None = None
    output: str | None = None
    operation: str | None = None
    code: str | None = None
    parameter: str | None = None
    growth: float | None = None
    smallest_scale: float | None = None
    smallest_scale_site: str | None = None
    error: str | None = None

    @property
    def remedy(self) -> str:
        """What to do about this cause."""
        return REMEDIES[self.cause]

    def __str__(self) -> str:
        lines = {
            "cause": self.cause,
            "data": self._listed(),
            "first site that is not finite": self.site,
            "module": self.module and (f"{self.module}, output {self.output}" if self.output else self.module),
            "gradient of": self.operation and (f"{self.operation}, {self.code}" if self.code else self.operation),
            "parameter": self.parameter,
            "parameters grew": self.growth and f"{self.growth:.3g} times",
            "smallest scale": self.smallest_scale_site
            and f"{self.smallest_scale:.3g}, site {self.smallest_scale_site}",
            "run once more, it raised": self.error,
            "what to do": self.remedy,
        }
        return "\n".join(f"  {name}: {words}" for name, words in lines.items() if words)

    def _listed(self) -> str:
        shown = ", ".join(map(str, self.data[:MAX_LISTED]))
        more = len(self.data) - MAX_LISTED
        return shown and f"{shown}{f' and {more} more' if more > 0 else ''} of {self.data_are_of}"
