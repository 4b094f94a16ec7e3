"""The loop over epochs: steps, validation, checkpoints, and signals to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import _checks
from pyro_vae._files import bytes_of, sha256_of
from pyro_vae._random import forked_generator, generators, seeded, set_generators
from pyro_vae.compile.steps import announcing
from pyro_vae.diagnostics import terms_of
from pyro_vae.distributed import Team, alone, ends_all
from pyro_vae.program.core import Program
from pyro_vae.program.inspect import program_of
from pyro_vae.training import optimizers
from pyro_vae.training.batches import Batch, Batches, Rows
from pyro_vae.training.callbacks import Callback, Progress
from pyro_vae.training.checkpoint import Checkpoint
from pyro_vae.training.early_stopping import EarlyStopping
from pyro_vae.training.history import NotSavedError
from pyro_vae.training.run import Run
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.trainee import Trainee

__all__ = ["Loop"]

NUM_EVALUATED = 1000
"""Training data to evaluate rate and distortion on, where there are no validation data."""
GENERATORS = ("generator", "generator_of_device")
CALLS_UNTIL_A_GRAPH = 2
"""Calls of one shape after which a step is a graph: the first runs eagerly, the second compiles."""


@dataclass
class _Place:
    """Where in training the next step is."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    """Sum of the epoch's losses until here."""
    seconds: float = 0.0
    """Time of the epoch's steps until here."""


class Loop:
    """Trains epoch by epoch, from the start or from a run's last checkpoint."""

    def __init__(
        self,
        trainee: Trainee,
        stepper: Stepper,
        train: Batches,
        validation: Batches | None,
        num_epochs: int,
        early_stopping: EarlyStopping | None,
        run: Run | None,
        callbacks: Sequence[Callback],
        is_kept: bool,
    ) -> None:
        self.trainee, self.stepper, self.train, self.validation = trainee, stepper, train, validation
        self.num_epochs, self.early_stopping = num_epochs, early_stopping
        self.folder, self.callbacks, self.is_kept = run, callbacks, is_kept
        self.team = None if stepper.shares is None else stepper.shares.team
        """Processes that train together, of which the first alone has the folder and the callbacks."""
        self.history = stepper.history
        self.has_others = not all(type(callback).__module__.startswith("pyro_vae.") for callback in callbacks)
        self.is_open = not isinstance(train, Rows) or any(map(_acts_at_steps, callbacks))
        """Whether other people's code runs between two steps, which may change the program."""
        self.place = _Place()
        self.best: dict[str, Tensor] | None = None
        self.program: Program | None = None
        self.saved: tuple[int, int] | None = None
        """The place of the last checkpoint that was written."""
        self.progress = Progress(self.history, num_epochs, train.num_batches)
        self.evaluated = (
            train.evaluated(NUM_EVALUATED) if validation is None else validation.evaluated(validation.num_data)
        )

    def run(self, seed: int) -> None:
        """Train until the last epoch."""
        torch.manual_seed(seed)
        try:
            before = self._state() if self.is_kept else None
            with self._as_before_if_it_fails(before):
                checkpoint = self._resume()
            with announcing(self._compiling), _stopping_by_signals(self.is_kept) as heard:
                asked = self._agreed_on(heard)
                self._tell(lambda callback: callback.on_start(self.progress))
                try:
                    with self._as_before_if_it_fails(before):
                        self._warm_up(checkpoint)
                    while self.place.epoch < self.num_epochs and not self._is_over():
                        self._epoch(asked)
                finally:
                    self.trainee.train(False)
                    self._tell(lambda callback: callback.on_end(self.progress))
            self._end()
        finally:
            if self.stepper.schedule is not None:  # the optimizer is the user's
                optimizers.set_learning_rate(self.stepper.optim, self.stepper.schedule.base)
            if self.folder is not None:
                self.folder.close()

    def _is_over(self) -> bool:
        return self.early_stopping is not None and self.early_stopping.is_over(self.history.validation_elbo)

    def _epoch(self, asked: dict[str, int]) -> None:
        """Take the steps of an epoch, or the rest of one, evaluate, and keep what was reached."""
        place, started = self.place, time.perf_counter()
        self.trainee.train()
        self.stepper.look_again()
        losses: list[Any] = []
        for batch in self.train.epoch(place.epoch, place.batch):
            losses.append(self._step(batch))
            place.batch += 1
            if asked and place.batch < self.train.num_batches:
                self._stop(asked, losses, started)
        self.stepper.check()
        self.trainee.train(False)
        place.loss = _sum(losses, place.loss)  # in this order, wherever an epoch was interrupted
        place.seconds += time.perf_counter() - started
        self._evaluate()
        self.place = _Place(epoch=place.epoch + 1)
        if isinstance(self.stepper.optim, pyro.optim.PyroLRScheduler) or hasattr(self.stepper.optim, "schedulers"):
            self.stepper.optim.step()
        self._first_saves(lambda: bool(asked) or (self.folder is not None and self.folder.is_due))
        self._tell(lambda callback: callback.on_epoch(self.progress))
        _leave(asked)

    def _step(self, batch: Batch) -> Any:
        if self.team is not None and not isinstance(self.train, Rows):  # whose rows the seed decides
            assert self.stepper.shares is not None
            self.stepper.shares.note(batch)
        loss = self.stepper.step(batch, (self.place.epoch, self.place.batch))
        self.progress.num_steps += 1
        self._tell(lambda callback: callback.on_step(self.progress, loss))
        if self.is_open:
            self.stepper.look_again()
        return loss

    def _stop(self, asked: dict[str, int], losses: list[Any], started: float) -> None:
        """Keep what was reached in the middle of an epoch, and end."""
        self.stepper.check()
        self.place.loss = _sum(losses, self.place.loss)
        self.place.seconds += time.perf_counter() - started
        self._first_saves()
        _leave(asked)

    def _first_saves(self, is_due: Callable[[], bool] = lambda: True) -> None:
        """Write a checkpoint if one is due; of several processes in the first, while the others wait."""

        def save() -> None:
            if is_due():
                self._save()

        save() if self.team is None else self.team.by_the_first(save)

    def _agreed_on(self, heard: dict[str, int]) -> dict[str, int]:
        """Return what says that a signal came: among several processes, once all know, after the same step."""
        if self.team is None:
            return heard
        assert self.stepper.shares is not None
        self.stepper.shares.heard = heard
        return self.stepper.shares.asked

    def _evaluate(self) -> None:
        """Add the epoch to the history: the same numbers in all processes."""
        values = self._values()
        if self.team is not None:
            values = self.team.told(values)
            self._refuse_other_parameters(self.team)
        self.history.add(**values)
        elbos = self.history.validation_elbo
        keeper = self.early_stopping or EarlyStopping()
        if elbos and keeper.best_of(elbos) == len(elbos) - 1:
            self.best = {name: tensor.detach().clone() for name, tensor in self.trainee.tensors().items()}

    def _refuse_other_parameters(self, team: Team) -> None:
        """Refuse to go on where processes have drifted apart."""
        remedy = (
            "train in one process what changes with the rows it sees, and noise or orders of data that torch knows not"
        )
        states = dict(zip(GENERATORS, generators(self.trainee.device), strict=False))
        tensors = self.trainee.tensors() | states
        digests = {name: sha256_of(bytes_of(tensor)) for name, tensor in tensors.items()}
        assert self.stepper.shares is not None
        team.refuse_others("program", digests | {"batches": self.stepper.shares.batches.hexdigest()}, remedy)

    def _values(self) -> dict[str, float]:
        place, values = self.place, {}
        terms = None if self.evaluated is None else self._terms(self.evaluated)
        if terms is not None:
            values = {"rate": terms.rate.mean().item(), "distortion": terms.distortion.mean().item()}
        if self.validation is not None:
            elbo = self._elbo(self.validation) if terms is None else terms.elbo.mean().item()
            values["validation_elbo"] = elbo
        train_elbo = -place.loss / self.train.num_data
        weight = self.stepper.weight
        if weight is not None and self.progress.num_steps - self.train.num_batches < weight.num_steps:
            train_elbo = -sum(values[name] for name in ("rate", "distortion")) if terms is not None else train_elbo
        return {"train_elbo": train_elbo, "seconds": place.seconds, **values}

    def _terms(self, batch: Batch) -> Any:
        """Return rate and distortion; None for a pair that has no ELBO for each datum."""
        if self.trainee.vae is not None:
            return self.stepper.guarded(lambda: terms_of(self._inspected(batch)))
        try:
            return terms_of(self._inspected(batch))
        except (TypeError, ValueError) as error:
            if ends_all(error):
                raise
            self.evaluated = None
            _checks.warn(
                "program: expected a pair with an ELBO for each datum; got one without; rate and distortion are left "
                "out of the history, the ELBO of validation is minus its loss per datum, and that of training has the "
                "weight of kl_warmup, where there is one."
            )
            return None

    def _inspected(self, batch: Batch) -> Program:
        """Inspect the pair, the first time."""
        if self.program is None:
            self.program = program_of(self.trainee.model, self.trainee.guide, batch)
        return self.program

    @torch.no_grad()
    def _elbo(self, batches: Batches) -> float:
        """Return minus the loss per datum, with the same noise each time."""
        with seeded(self.trainee.device, 0):
            objective, pair = self.stepper.objective, (self.trainee.model, self.trainee.guide)
            total = sum(float(objective.loss(*pair, *batch)) for batch in batches.epoch(0))
        return -total / batches.num_data

    def _end(self) -> None:
        """Write the last checkpoint, and go back to the best parameters if that was asked for."""
        self._first_saves()
        if self.early_stopping is not None and self.best is not None:
            self.trainee.load(self.best, "early_stopping")

    def _name_of(self, param: Tensor) -> str:
        names = {id(tensor): name for name, tensor in self.trainee.tensors().items()}
        return names[id(param)]

    def _save(self) -> None:
        place = self.place.epoch, self.progress.num_steps
        if self.folder is None or self.saved == place:
            return
        checkpoint = Checkpoint(self.trainee.tensors(), self._training(), self.best)
        try:
            self.folder.save(checkpoint, f"step-{self.progress.num_steps:09d}")
        except OSError as error:
            raise NotSavedError(
                f"run: expected to write a checkpoint to {str(self.folder.folder)!r} after step "
                f"{self.progress.num_steps}; got {error.strerror or error}; training ends, with the parameters of this "
                f"step in memory; the last checkpoint that was written is {self.folder.saved!r}: save the parameters "
                "elsewhere, or make room and go on from there by resume=True.",
                self.history,
            ) from error
        self.saved = place

    def _training(self) -> dict[str, Any]:
        """Return what is needed to go on from here, beside the weights."""
        training = {
            "place": asdict(self.place),
            "num_steps": self.progress.num_steps,
            "history": self.history.as_dict(),
            "optimizer": optimizers.state_of(self.stepper.optim, self._name_of),
            **dict(zip(GENERATORS, generators(self.trainee.device), strict=False)),
        }
        return training

    def _compiling(self) -> None:
        self._tell(lambda callback: callback.on_compile(self.progress))

    def _resume(self) -> Checkpoint | None:
        """Go back to the last checkpoint, if there is one."""
        checkpoint = self._last() if self.team is None else self.team.by_the_first(self._last)
        if checkpoint is None:
            return None
        training = checkpoint.training
        self.trainee.load(checkpoint.weights, "run")
        self.place, self.best = _Place(**training["place"]), checkpoint.best
        self.progress.num_steps = self.stepper.num_steps = training["num_steps"]
        for name, column in training["history"].items():
            getattr(self.history, name).extend(column)
        if self.place.epoch >= self.num_epochs:
            self._say_that_nothing_is_left("num_epochs", f"more than {self.place.epoch}", self.num_epochs)
        elif self._is_over():
            self._say_that_nothing_is_left("early_stopping", "more patience", self.early_stopping)
        return checkpoint

    def _last(self) -> Checkpoint | None:
        return None if self.folder is None else self.folder.last()

    def _say_that_nothing_is_left(self, name: str, expected: str, found: Any) -> None:
        _checks.warn(
            f"{name}: expected {expected}, to train on a run that has {self.place.epoch} epochs; got {found}; nothing "
            "is trained, and the parameters are the run's."
        )

    def _warm_up(self, checkpoint: Checkpoint | None) -> None:
        """Take steps that do not count until they are graphs, and restore the optimizer and the generators."""
        if checkpoint is None:
            return
        training = checkpoint.training
        self.stepper.rehearse(self._run_until_compiled)
        optimizers.restore(self.stepper.optim, training["optimizer"], self._name_of)
        set_generators(self.trainee.device, [training[name] for name in GENERATORS if name in training])
        self.saved = self.place.epoch, self.progress.num_steps

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copy parameters and optimizer, as they are before a run is resumed."""
        weights = {name: tensor.detach().clone() for name, tensor in self.trainee.tensors().items()}
        return weights, optimizers.state_of(self.stepper.optim, self._name_of)

    @contextmanager
    def _as_before_if_it_fails(self, before: tuple[dict[str, Tensor], dict[str, Any]] | None) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if before is not None:
                weights, optimizer = before
                self.trainee.load(weights, "run")
                optimizers.restore(self.stepper.optim, optimizer, self._name_of)
            raise

    def _run_until_compiled(self) -> None:
        """Take as many steps of each shape as were taken, until it is a graph.

        An eager step differs from a compiled one in its last digits.
        """
        counts: dict[Any, int] = {}
        self.trainee.train()
        for epoch in range(min(self.place.epoch + 1, CALLS_UNTIL_A_GRAPH)):
            last = self.train.num_batches if epoch < self.place.epoch else self.place.batch
            for place, batch in self._first_and_last(epoch, last):
                key = tuple(getattr(value, "shape", None) for value in batch)
                counts[key] = counts.get(key, 0) + 1
                if counts[key] <= CALLS_UNTIL_A_GRAPH:
                    self.stepper.step(batch, (epoch, place))
        self.trainee.train(False)

    def _first_and_last(self, epoch: int, num_batches: int) -> Iterator[tuple[int, Batch]]:
        """Yield the first batches of an epoch, and the last, which may be smaller, with their numbers."""
        yield from zip(range(min(num_batches, CALLS_UNTIL_A_GRAPH)), self.train.epoch(epoch), strict=False)
        if num_batches == self.train.num_batches > CALLS_UNTIL_A_GRAPH:
            yield from ((num_batches - 1, batch) for batch in self.train.epoch(epoch, num_batches - 1))

    def _tell(self, moment: Callable[[Callback], None]) -> None:
        """Call all callbacks; what other people's evaluate and draw there concerns neither training nor others."""
        if not self.has_others:
            for callback in self.callbacks:
                moment(callback)
            return
        with alone(), forked_generator(self.trainee.device):
            for callback in self.callbacks:
                moment(callback)


def _acts_at_steps(callback: Callback) -> bool:
    return not (getattr(callback.on_step, "__module__", None) or "").startswith("pyro_vae.")


def _sum(losses: list[Any], start: float) -> float:
    """Add losses one by one, all of which come from the device at once."""
    values = torch.stack(losses).tolist() if losses and all(isinstance(each, Tensor) for each in losses) else losses
    return sum(map(float, values), start)


@contextmanager
def _stopping_by_signals(is_kept: bool) -> Iterator[dict[str, int]]:
    """Note SIGTERM and SIGINT instead of obeying them, until the step is done and kept."""
    asked: dict[str, int] = {}
    if not is_kept or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        asked["signal"] = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(asked: dict[str, int]) -> None:
    """End as the signal asks, now that all is kept."""
    if asked.get("signal") == signal.SIGINT:
        raise KeyboardInterrupt
    if asked:
        raise SystemExit(128 + asked["signal"])
