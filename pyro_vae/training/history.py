"""The record of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae.training.diagnosis import Diagnosis

from pyro_vae import _html
from pyro_vae._html import Card

__all__ = ["DivergedError", "History", "NotSavedError"]


@dataclass
class History:
    """A record of training: one number an epoch in each list, nats per datum.

    Attributes:
        train_elbo: mean over the epoch's steps, at the parameters of each step: minus the loss of the objective, which
            is the ELBO of an ELBO, and of another objective what that one says of its value.
        validation_elbo: the same on the validation data after the epoch, one draw for each datum and the same noise
            each time; empty without validation data.
        rate, distortion: the two terms of the ELBO after the epoch, on the validation data or, without them, on the
            first 1,000 training data; empty for a program that has no ELBO for each datum.
        seconds: time of the epoch's steps.
        execution: whether the steps were compiled or run as they are, and why.
    """

    train_elbo: list[float] = field(default_factory=list)
    validation_elbo: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    distortion: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    execution: str = ""

    def add(self, **values: float) -> None:
        """Add one epoch: a number for each column that has one."""
        for name, value in values.items():
            getattr(self, name).append(value)

    def as_dict(self) -> dict[str, list[float]]:
        """Return all columns, for JSON or a data frame."""
        return {name: column for name, column in asdict(self).items() if name != "execution"}

    def row(self, epoch: int) -> dict[str, float]:
        """Return what is known of an epoch, counted from 0; its number counts from 1."""
        columns = {name: column[epoch] for name, column in self.as_dict().items() if column}
        return {"epoch": epoch + 1, **columns}

    def __len__(self) -> int:
        return len(self.train_elbo)

    def _repr_html_(self) -> str:
        cards = [Card(name, f"{column[-1]:.2f}") for name, column in self.as_dict().items() if column]
        return _html.in_a_notebook(f"<p>{len(self)} epochs; of the last:</p>", _html.cards(cards))

    def __repr__(self) -> str:
        if not self.train_elbo:
            return "History(0 epochs)"
        validation = f", validation_elbo={self.validation_elbo[-1]:.2f}" if self.validation_elbo else ""
        return (
            f"History({len(self)} epochs, train_elbo={self.train_elbo[-1]:.2f}{validation}, {sum(self.seconds):.0f} s)"
        )


class DivergedError(ValueError):
    """Training met a loss, a gradient or a parameter that is NaN or infinite.

    Other errors, such as data outside a support or a shape that does not fit, are raised as they are, with a note that
    names the step.

    Attributes:
        history: the epochs finished until then.
        diagnosis: what the step looked like when it was run once more, a `pv.training.Diagnosis`.
    """

    def __init__(self, message: str, history: History, diagnosis: Diagnosis) -> None:
        super().__init__(f"{message}\n{diagnosis}")
        self.history, self.diagnosis = history, diagnosis


class NotSavedError(OSError):
    """A checkpoint could not be written: no room, no leave, or no folder any more.

    Training ends. The parameters of the last step are in memory, in the program that was trained; the last checkpoint
    before, where the disk still has it, is as it was.

    Attributes:
        history: the epochs finished until then.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history
