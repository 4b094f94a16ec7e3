"""When to stop before the last epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_vae import _checks

__all__ = ["EarlyStopping"]


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the validation ELBO has not grown for a while, and go back to the parameters with the best.

    Attributes:
        patience: epochs to wait for a gain.
        min_gain: by how many nats per datum the best has to be beaten.

    Raises:
        TypeError, ValueError: for a patience below 1, or a negative gain.
    """

    patience: int = 10
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        _checks.whole_number("patience", self.patience)
        if not (isinstance(self.min_gain, (int, float)) and 0 <= self.min_gain < math.inf):
            raise ValueError(f"min_gain: expected nats, 0 or more; got {self.min_gain!r}; pass such a number.")

    def best_of(self, elbos: list[float]) -> int:
        """Return the epoch with the best ELBO, counted from 0, by gains of more than the least that counts."""
        best = 0
        for epoch, elbo in enumerate(elbos):
            if not elbos[best] >= elbo - self.min_gain:
                best = epoch
        return best

    def is_over(self, elbos: list[float]) -> bool:
        """Tell whether the best lies too far back."""
        return bool(elbos) and len(elbos) - 1 - self.best_of(elbos) >= self.patience
