"""The record of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from pyro_vae.diagnostics import RateDistortion

__all__ = ["DivergedError", "History"]


@dataclass
class History:
    """A record of training: one number an epoch in each list, nats per datum.

    Attributes:
        train_elbo: mean over the epoch's steps, at the parameters of each step.
        validation_elbo: on the validation data after the epoch, one draw for each datum and the same noise each time;
            empty without validation data.
        rate, distortion: the two terms of the ELBO after the epoch, on the validation data or, without them, on the
            first 1,000 training data.
        seconds: time of the epoch's steps.
        execution: whether the steps were compiled or run as they are, and why.
    """

    train_elbo: list[float] = field(default_factory=list)
    validation_elbo: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    distortion: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    execution: str = ""

    def add(self, train_elbo: float, terms: RateDistortion, seconds: float, is_validation: bool) -> None:
        """Add one epoch."""
        self.train_elbo.append(train_elbo)
        self.rate.append(terms.rate.mean().item())
        self.distortion.append(terms.distortion.mean().item())
        self.seconds.append(seconds)
        if is_validation:
            self.validation_elbo.append(terms.elbo.mean().item())

    def as_dict(self) -> dict[str, list[float]]:
        """Return all columns, for JSON or a data frame."""
        return {name: column for name, column in asdict(self).items() if name != "execution"}

    def __len__(self) -> int:
        return len(self.train_elbo)

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
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history
