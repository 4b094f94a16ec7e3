"""Training steps; one that diverges is found and undone."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae._private import validate_sample_code
from pyro_vae.objectives.base import Objective
from pyro_vae.optim import FusedAdam
from pyro_vae.training.history import DivergedError, History
from pyro_vae.training.kl_weight import KLWeight
from pyro_vae.training.trainee import Trainee

__all__ = ["Stepper"]


CHECKED_TOGETHER = 100
"""Compiled steps whose losses are checked together, so that no step waits for its loss."""


class Stepper:
    """Takes steps; stops at a loss or a gradient that is not finite, and restores the last finite state.

    Pyro's own step is checked before its update. A compiled step includes the update: many are checked together, so
    that none waits for its loss.
    """

    def __init__(
        self,
        trainee: Trainee,
        objective: ELBO,
        optim: PyroOptim,
        history: History,
        clip_grad_norm: float | None = None,
        weight: KLWeight | None = None,
    ) -> None:
        self.trainee, self.objective, self.optim, self.history = trainee, objective, optim, history
        self.clip_grad_norm = clip_grad_norm
        self.model: Any = trainee.model if weight is None else weight.applied_to(trainee.model)
        self.guide: Any = trainee.guide if weight is None else weight.applied_to(trainee.guide)
        self.svi = SVI(self.model, self.guide, optim, loss=objective.loss, loss_and_grads=self._loss_and_grads)
        self.num_steps = 0
        self.waiting: list[Tensor] = []
        self.state = list(trainee.tensors().values())
        self.last_good = [tensor.detach().clone() for tensor in self.state]

    def step(self, *args: Any) -> float | Tensor:
        """Take one step; return the loss."""
        loss = self._compiled_step(args)
        if loss is None:
            self.check()
            return float(self.svi.step(*args))
        self.num_steps += 1
        self.waiting.append(loss)
        if len(self.waiting) == CHECKED_TOGETHER:
            self.check()
        return loss

    def rehearse(self, run: Callable[[], Any]) -> None:
        """Take steps that do not count; the optimizer's state is for the caller to restore."""
        before, num_steps = [tensor.detach().clone() for tensor in self.state], self.num_steps
        try:
            run()
        finally:
            self.waiting = []
            self._copy(before, self.state)
            self._copy(before, self.last_good)
            self.num_steps = num_steps

    def check(self) -> None:
        """Check the losses of the compiled steps since the last check, and the state that they led to."""
        if not self.waiting:
            return
        are_finite = torch.stack(self.waiting).isfinite()
        first, self.waiting = self.num_steps - len(self.waiting), []
        if not are_finite.all():
            self.num_steps = first + 1 + int((~are_finite).nonzero()[0])
            raise self._stopped("a loss that is no number", f"those after step {first}")
        if not torch.stack([tensor.sum() for tensor in self.state]).isfinite().all():
            raise self._stopped("a gradient of NaN or infinity", f"those after step {first}")
        self._copy(self.state, self.last_good)

    def guarded(self, compute: Callable[[], Any]) -> Any:
        """Raise `DivergedError` for an error that comes from NaN or infinity; add a note of the place to all others."""
        try:
            return compute()
        except Exception as error:  # a user's program may raise anything; none is kept from the user
            if not torch.stack([tensor.isfinite().all() for tensor in self.state]).all():
                raise self._stopped("parameters of NaN or infinity") from error
            if _refuses_infinity(error):
                raise self._stopped("a distribution whose numbers are NaN or infinite") from error
            error.add_note(f"pyro_vae.fit met this {self._place()}.")
            raise

    def _compiled_step(self, args: tuple[Any, ...]) -> Tensor | None:
        clips = self.clip_grad_norm is not None
        if isinstance(self.objective, Objective) and type(self.optim) is FusedAdam and not clips:
            return self.objective.update(self.model, self.guide, self.optim, *args)
        return None

    def _loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        self.num_steps += 1
        loss: float = self.guarded(lambda: self.objective.loss_and_grads(model, guide, *args))
        if not math.isfinite(loss):
            raise self._stopped(f"a loss of {loss}")
        self._copy(self.state, self.last_good)
        trained = [tensor for tensor in self.state if tensor.grad is not None]
        if not math.isfinite(sum(tensor.grad.sum() for tensor in trained if tensor.grad is not None)):
            raise self._stopped("a gradient of NaN or infinity")
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, self.clip_grad_norm)
        return loss

    def _stopped(self, found: str, kept: str = "the last that had a finite loss") -> DivergedError:
        self._copy(self.last_good, self.state)
        self.trainee.zero_grad()
        return DivergedError(
            f"objective: expected finite numbers; got {found} {self._place()}; the parameters are {kept}: lower the "
            "learning rate, or bound the scale of the likelihood.",
            self.history,
        )

    def _place(self) -> str:
        return f"at step {self.num_steps}, in epoch {len(self.history) + 1}"

    @torch.no_grad()
    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        for old, new in zip(source, target, strict=True):
            new.copy_(old)


def _refuses_infinity(error: Exception) -> bool:
    """Tell whether torch refused a distribution's parameters, or a draw, that are NaN or infinite."""
    refusals = (Distribution.__init__.__code__, validate_sample_code())
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code in refusals)
    values = (frame.f_locals.get("value") for frame in frames)
    return any(isinstance(value, Tensor) and not value.isfinite().all() for value in values)
