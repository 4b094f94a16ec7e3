"""Training steps; one that diverges is found, looked into and undone."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae._private import validate_sample_code
from pyro_vae._random import generators, set_generators
from pyro_vae.compile.graph import kind_of
from pyro_vae.objectives.base import Objective, as_it_is
from pyro_vae.optim import FusedAdam
from pyro_vae.training import optimizers
from pyro_vae.training.batches import Batch, Batches
from pyro_vae.training.diagnosis import Diagnosis
from pyro_vae.training.doctor import Patient, add_note_of_bad_data, diagnose
from pyro_vae.training.history import DivergedError, History
from pyro_vae.training.kl_weight import KLWeight
from pyro_vae.training.optimizers import Schedule
from pyro_vae.training.precision import Precision, in_bfloat16
from pyro_vae.training.shares import Shares
from pyro_vae.training.trainee import Trainee

__all__ = ["Stepper"]


CHECKED_TOGETHER = 100
"""Compiled steps whose losses are checked together, so that no step waits for its loss."""
KEPT_TOGETHER = 2**24
"""Numbers in the batches of these steps, which are kept until they are checked; a single batch may have more."""
LARGEST_MOVE = 1.0
"""Times the length of all parameters together, by which no healthy step moves them."""
LARGEST_GROWTH = 100.0
"""Times the length at the start, which no healthy training gives them."""


class _Taken(NamedTuple):
    """What it takes to take a step again."""

    number: int
    """Counted from 1."""
    place: tuple[int, int]
    """The epoch, and the batch in it."""
    batch: Batch
    generators: list[Tensor]


class Stepper:
    """Takes steps; stops at a loss or a gradient that is not finite, and restores the last finite state.

    Pyro's own step is checked before its update. A compiled step includes the update: many are checked together, so
    that none waits for its loss. If one of them diverged, they are taken again, to find out which.
    """

    def __init__(
        self,
        trainee: Trainee,
        objective: ELBO,
        optim: PyroOptim,
        history: History,
        batches: Batches,
        clip_grad_norm: float | None = None,
        weight: KLWeight | None = None,
        schedule: Schedule | None = None,
        precision: Precision = "float32",
        shares: Shares | None = None,
    ) -> None:
        self.trainee, self.objective, self.optim, self.history = trainee, objective, optim, history
        self.batches, self.clip_grad_norm, self.weight, self.schedule = batches, clip_grad_norm, weight, schedule
        self.model, self.guide = (self._as_trained(each, precision) for each in (trainee.model, trainee.guide))
        self.svi = SVI(self.model, self.guide, optim, loss=objective.loss, loss_and_grads=self._loss_and_grads)
        self.shares = shares
        self.num_steps = 0
        self.waiting: list[Tensor] = []
        """Losses of compiled steps that are not checked yet."""
        self.taken: list[_Taken] = []
        """These steps; or the last, where it was not compiled."""
        self.graphs: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}
        """Of the steps since the program was looked at, by the kinds of tensors in a batch."""
        self.before: list[tuple[Tensor, Tensor]] = []
        """Parameters and the optimizer's numbers, with their values before these steps."""
        self.state = list(trainee.tensors().values())
        self.last_good = [tensor.detach().clone() for tensor in self.state]
        self.length_at_the_start = _length(self._trained(self.last_good))

    def step(self, batch: Batch, place: tuple[int, int]) -> float | Tensor:
        """Take one step with the batch at this place, its epoch and its number there; return the loss."""
        self._prepare(self.num_steps + 1)
        taken = _Taken(self.num_steps + 1, place, batch, generators(self.trainee.device))
        if not self.waiting and self._may_compile:
            self.before = [(tensor, tensor.detach().clone()) for tensor in self._changing()]
        loss = self._compiled_step(batch)
        if loss is None:
            self.check()
            self.taken = [taken]
            return float(self.svi.step(*batch))
        self.taken = [*self.taken, taken] if self.waiting else [taken]
        self.num_steps += 1
        self.waiting.append(loss)
        if len(self.waiting) >= min(CHECKED_TOGETHER, KEPT_TOGETHER / _num_numbers(batch)):
            self.check()
        return loss

    def rehearse(self, run: Callable[[], Any]) -> None:
        """Take steps that do not count; the optimizer's state is for the caller to restore."""
        before, num_steps = [tensor.detach().clone() for tensor in self.state], self.num_steps
        try:
            run()
        finally:
            self.waiting, self.taken = [], []
            self._copy(before, self.state)
            self._copy(before, self.last_good)
            self.num_steps = num_steps

    def check(self) -> None:
        """Check the losses of the compiled steps since the last check, and the state that they led to."""
        if not self.waiting:
            return
        are_finite = torch.stack(self.waiting).isfinite()
        first, self.waiting = self.num_steps - len(self.waiting), []
        kept = f"those after step {first}"
        if not are_finite.all():
            raise self._stopped_in_between("a loss that is no number", kept)
        if not torch.stack([tensor.sum() for tensor in self.state]).isfinite().all():
            raise self._stopped_in_between("a gradient of NaN or infinity", kept)
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
            if self.taken:
                rows = self.batches.rows(*self.taken[-1].place)
                add_note_of_bad_data(error, self.trainee, self.taken[-1].batch, rows)
            raise

    def _as_trained(self, program: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
        weighted = program if self.weight is None else self.weight.applied_to(program)
        return in_bfloat16(weighted) if precision == "bfloat16" else weighted

    def _prepare(self, step: int) -> None:
        """Set the learning rate and the weight of the KL term for a step, counted from 1."""
        if self.schedule is not None:
            optimizers.set_learning_rate(self.optim, self.schedule.rate(step - 1))
        if self.weight is not None:
            self.weight.set(step)

    @property
    def _may_compile(self) -> bool:
        is_whole = self.shares is None  # between shares' gradients and the update, the others' are added
        may = isinstance(self.objective, Objective) and self.objective.compile and type(self.optim) is FusedAdam
        return is_whole and may

    def _compiled_step(self, batch: Batch) -> Tensor | None:
        if not self._may_compile:
            return None
        assert isinstance(self.objective, Objective) and isinstance(self.optim, FusedAdam)
        kinds = tuple(map(kind_of, batch)) if all(isinstance(each, Tensor) for each in batch) else None
        if kinds in self.graphs:
            return self.graphs[kinds](*batch)[0]
        found = self.objective.update(self.model, self.guide, self.optim, *batch)
        if found is None:
            return None
        graph, loss = found
        if kinds is not None:
            self.graphs[kinds] = graph
        return loss

    def look_again(self) -> None:
        """Look at the program before the next step: something else than a step may have changed it."""
        self.graphs = {}

    def _loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        self.num_steps += 1
        whole, shares = self.objective.loss_and_grads, self.shares
        loss: float = self.guarded(
            lambda: (
                whole(model, guide, *args)
                if shares is None
                else shares.loss_and_grads(self.objective, model, guide, *args)
            )
        )
        if not math.isfinite(loss):
            raise self._said_once(self._stopped(f"a loss of {loss}"))
        self._copy(self.state, self.last_good)
        trained = [tensor for tensor in self.state if tensor.grad is not None]
        if not math.isfinite(sum(tensor.grad.sum() for tensor in trained if tensor.grad is not None)):
            raise self._said_once(self._stopped("a gradient of NaN or infinity"))
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, self.clip_grad_norm)
        return loss

    def _said_once(self, error: DivergedError) -> DivergedError:
        """Return an error that all processes met, in the first; the others end."""
        team = None if self.shares is None else self.shares.team
        if team is not None:
            team.leave_the_word_to(0, error)
        return error

    def _stopped_in_between(self, found: str, kept: str) -> DivergedError:
        """Go back to before the compiled step that diverged, look into it, and undo all since the last check."""
        previous = self._back_to_before_it()
        error = self._stopped(found, kept, previous)
        self._restore()
        self._copy(self.last_good, self.state)
        return error

    def _back_to_before_it(self) -> list[Tensor] | None:
        """Take the steps since the last check again, but for the first that leads to no numbers.

        Returns:
            The parameters one step before that, if there was one.
        """
        self._restore()
        previous, now = None, [tensor.detach().clone() for tensor in self.state]
        for each in self.taken:
            self.num_steps, self.taken = each.number, [each]
            self._prepare(each.number)
            set_generators(self.trainee.device, each.generators)
            loss = self._compiled_step(each.batch)
            if loss is None or not all(tensor.isfinite().all() for tensor in (loss, *self.state)):
                self._copy(now, self.state)
                break
            previous, now = now, [tensor.detach().clone() for tensor in self.state]
        return previous

    def _restore(self) -> None:
        """Go back to before the compiled steps that wait."""
        with torch.no_grad():
            for tensor, value in self.before:
                tensor.copy_(value)

    def _stopped(
        self, found: str, kept: str = "the last that had a finite loss", previous: list[Tensor] | None = None
    ) -> DivergedError:
        diagnosis = self._diagnosed(self.last_good if previous is None else previous)
        self._copy(self.last_good, self.state)
        if diagnosis.cause == "unknown":  # the parameters are no more those of the step, by an error in its middle
            diagnosis = self._diagnosed(self.last_good)
            self._copy(self.last_good, self.state)
        self.trainee.zero_grad()
        return DivergedError(
            f"objective: expected finite numbers; got {found} {self._place()}; the parameters are {kept}: "
            f"{diagnosis.remedy}.",
            self.history,
            diagnosis,
        )

    def _diagnosed(self, previous: list[Tensor]) -> Diagnosis:
        """Run the last step once more, eagerly and watched."""
        (*_, taken) = self.taken
        objective = as_it_is(self.objective)
        self._prepare(taken.number)

        def run() -> None:
            set_generators(self.trainee.device, taken.generators)
            objective.loss_and_grads(self.model, self.guide, *taken.batch)

        rows = self.batches.rows(*taken.place)
        growth = self._growth(previous)
        return diagnose(Patient(self.trainee, run, taken.batch, rows, taken.number, taken.place[0] + 1, growth))

    def _growth(self, previous: list[Tensor]) -> float | None:
        """Return how far the parameters went, times their length, if that is further than can be healthy."""
        now, before = self._trained(self.state), self._trained(previous)
        move = _length([one - other for one, other in zip(now, before, strict=True)]) / max(_length(before), TINY)
        growth = _length(now) / max(self.length_at_the_start, TINY)
        found = max(move, growth) if move > LARGEST_MOVE or growth > LARGEST_GROWTH else None
        return found if found is not None and math.isfinite(found) else None

    def _trained(self, tensors: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.state, tensors, strict=True)
        return [tensor.detach() for own, tensor in pairs if own.requires_grad]

    def _changing(self) -> list[Tensor]:
        """Return all tensors that a compiled step changes."""
        states = [state for optimizer in self.optim.optim_objs.values() for state in optimizer.state.values()]
        once = {id(tensor): tensor for state in states for tensor in state.values() if isinstance(tensor, Tensor)}
        return [*self.state, *once.values()]

    def _place(self) -> str:
        return f"at step {self.num_steps}, in epoch {len(self.history) + 1}"

    @torch.no_grad()
    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        for old, new in zip(source, target, strict=True):
            new.copy_(old)


TINY = 1e-30


def _num_numbers(batch: Batch) -> int:
    return max(1, sum(value.numel() for value in batch if isinstance(value, Tensor)))


def _length(tensors: list[Tensor]) -> float:
    """Return the length of all tensors together, in float64, where squares of float32 are finite."""
    return math.sqrt(sum(tensor.abs().double().square().sum().item() for tensor in tensors))


def _refuses_infinity(error: Exception) -> bool:
    """Tell whether an error, or its cause, is torch's refusal of parameters or draws that are NaN or infinite."""
    refusals = (Distribution.__init__.__code__, validate_sample_code())
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code in refusals)
    values = (frame.f_locals.get("value") for frame in frames)
    if any(isinstance(value, Tensor) and not value.isfinite().all() for value in values):
        return True
    return isinstance(error.__cause__, Exception) and _refuses_infinity(error.__cause__)
