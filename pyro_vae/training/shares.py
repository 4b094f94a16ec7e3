"""A batch in shares, one after the other or in several processes, with the noise and the loss of the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae._files import bytes_of
from pyro_vae._random import generators, seeded, set_generators
from pyro_vae.distributed import Team
from pyro_vae.objectives.base import as_it_is
from pyro_vae.training.noise import Drawn, Numbers, OfShare, Recording, Rows, refuse_noise
from pyro_vae.training.trainee import Trainee

__all__ = ["Shares"]

Batch = tuple[Any, ...]

LARGEST_DIFFERENCE = 1e-3
"""Of the loss, relative, by which shares may differ from the whole: float32 rounding, and more."""
NUM_CHECKED = 64
"""Rows on which that is checked, unless there are more shares."""
SIGNALS = (2, 15)
"""SIGINT and SIGTERM; the last of them counts."""


class Shares:
    """Takes the loss of a batch and its gradient in shares.

    Each share has the noise that its rows have in the whole: all noise is drawn for the whole batch, of which a share
    keeps its rows. So loss and gradient are those of the whole batch, up to rounding, in whatever number of shares and
    of processes; and generators stay in step.

    Args:
        trainee: what is trained, equal in all processes.
        team: the processes that share a batch; None for this one alone.
        number: into how many shares a process cuts its part of the batch, one after the other.
    """

    def __init__(self, trainee: Trainee, team: Team | None, number: int = 1) -> None:
        self.trainee, self.team, self.number = trainee, team, number
        self.drawn: dict[str, Drawn] = {}
        """What `check` found of the model's noise and of the guide's."""
        self.programs: dict[tuple[str, int, int], OfShare] = {}
        self.batches = hashlib.sha256()
        """Of those that a loader gave, which have to be the same in all processes."""
        self.heard: dict[str, int] = {}
        """The signal that this process has got, if it has."""
        self.asked: dict[str, int] = {}
        """The same, once all processes know."""

    def loss_and_grads(self, objective: ELBO, model: Any, guide: Any, *batch: Any) -> float:
        """Return the loss of the whole batch, and add its gradient to that of each parameter."""
        if self.team is None:
            return self._own(objective, model, guide, batch)
        error, loss = None, 0.0
        try:
            loss = self._own(objective, model, guide, batch)
        except Exception as failure:  # raised again, once the others know
            error = failure
        return self._summed(self.team, loss, error)

    def note(self, batch: Batch) -> None:
        """Note a batch, to be compared with those of the other processes."""
        for value in batch:
            if isinstance(value, Tensor):
                self.batches.update(bytes_of(value))

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield the pairs that stand for the program, one for each size of a share."""
        for (role, *size), model in self.programs.items():
            if role == "model":
                yield model, self.programs["guide", size[0], size[1]]

    def check(self, objective: ELBO, batch: Batch) -> None:
        """Find out where the rows are in a program's noise, and compare the loss of some rows in shares with the whole.

        Raises:
            ValueError: for a program whose loss is not the sum of its rows': with BatchNorm, say, or without a plate;
                for noise that cannot be taken in shares; for processes with other data or parameters.
        """
        if not getattr(objective, "sums_over_rows", True):
            self._refuse(f"{type(objective).__name__}, whose value depends on the batch as a whole")

        def own() -> _Losses:
            return self._losses(as_it_is(objective), self.few_of(batch))

        found = [own()] if self.team is None else self.team.together(own)
        whole, in_shares = found[0].whole, sum(each.in_shares for each in found)
        for rank, each in enumerate(found):
            if abs(each.whole - whole) > LARGEST_DIFFERENCE**2 * max(1.0, abs(whole)):
                self._refuse(f"{whole:.6g} of the same rows in rank 0 and {each.whole:.6g} in rank {rank}", OTHER_DATA)
        if abs(in_shares - whole) > LARGEST_DIFFERENCE * max(1.0, abs(whole)):
            self._refuse(f"{whole:.6g} of some rows together, and {in_shares:.6g} of their shares")

    def few_of(self, batch: Batch) -> Batch:
        """Take some rows of a batch, two for each share at least."""
        total, pieces = _num_rows(batch), self.number * (1 if self.team is None else self.team.size)
        return Rows(0, min(total, max(NUM_CHECKED, 2 * pieces)), total).of(batch)

    def _losses(self, objective: ELBO, batch: Batch) -> _Losses:
        """Return the loss of the whole batch, and the sum over this process's shares, in training mode."""
        trainee, in_shares = self.trainee, 0.0
        values = {name: tensor.detach().clone() for name, tensor in trainee.tensors().items()}
        trainee.train()
        try:
            with torch.no_grad(), seeded(trainee.device, 0):
                before = generators(trainee.device)
                shares = [*self._rows(_num_rows(batch))]
                whole, numbers = self._look(objective, batch, shares[0], before)
                for rows in shares:
                    set_generators(trainee.device, before)
                    with Numbers() as own:
                        loss = self._loss(objective, trainee.model, trainee.guide, batch, rows)
                    in_shares += 0.0 if rows.is_empty else loss
                    if own.found != numbers:
                        refuse_noise(next(_differences(own.found, numbers)))
        finally:
            trainee.train(False)
            trainee.load(values, "program")
        return _Losses(whole, in_shares)

    def _look(self, objective: ELBO, batch: Batch, rows: Rows, before: list[Tensor]) -> tuple[float, list[str]]:
        """Run on all rows and on some, and note where they are; return the loss of all, and their random numbers."""
        pair = {"model": self.trainee.model, "guide": self.trainee.guide}
        recorded, losses = [], []
        with Numbers() as numbers:
            losses.append(float(objective.loss(*pair.values(), *batch)))
        for some in (batch, rows.of(batch)):
            set_generators(self.trainee.device, before)
            recordings = {role: Recording() for role in pair}
            objective.loss(*(recordings[role].of(program) for role, program in pair.items()), *some)
            recorded.append({role: each.found for role, each in recordings.items()})
        self.drawn = {role: Drawn.of(recorded[0][role], recorded[1][role], rows) for role in pair}
        return losses[0], numbers.found

    def _refuse(self, found: str, remedy: str = "") -> NoReturn:
        """Refuse a loss that cannot be taken in shares."""
        error = ValueError(
            f"program: expected a loss that is the sum of its rows', to be taken in shares; got {found}; "
            f"{remedy or OTHER_ROWS}."
        )
        if self.team is not None:
            self.team.leave_the_word_to(0, error)
        raise error

    def _own(self, objective: ELBO, model: Any, guide: Any, batch: Batch) -> float:
        """Take the shares of this process."""
        total, loss = _num_rows(batch), 0.0
        before = generators(self.trainee.device)
        for rows in self._rows(total):
            set_generators(self.trainee.device, before)
            if rows.is_empty:
                self._loss(objective, model, guide, batch, rows)
            else:
                loss += float(objective.loss_and_grads(*self._of(model, guide, rows), *rows.of(batch)))
        return loss

    def _loss(self, objective: ELBO, model: Any, guide: Any, batch: Batch, rows: Rows) -> float:
        return float(objective.loss(*self._of(model, guide, rows), *rows.of(batch)))

    def _of(self, model: Any, guide: Any, rows: Rows) -> Iterator[Callable[..., Any]]:
        """Yield the pair of a share: the same objects for each of its size, for which a graph stands."""
        for role, program in (("model", model), ("guide", guide)):
            key = role, rows.number, rows.total
            made = self.programs.get(key)
            if made is None or made.program is not program:
                made = self.programs[key] = OfShare(program, self.drawn[role], rows, self.trainee.device)
            made.start.fill_(rows.start)
            yield made

    def _rows(self, total: int) -> Iterator[Rows]:
        rank, size = (0, 1) if self.team is None else (self.team.rank, self.team.size)
        pieces = size * self.number
        ends = [total * i // pieces for i in range(pieces + 1)]
        found = [
            Rows(ends[i], ends[i + 1], total)
            for i in range(rank * self.number, (rank + 1) * self.number)
            if ends[i] < ends[i + 1]
        ]
        yield from found or [Rows(0, 1, total, is_empty=True)]

    def _summed(self, team: Team, loss: float, error: Exception | None) -> float:
        """Sum losses and gradients over all processes; end together where one of them failed or got a signal."""
        parameters = self.trainee.parameters()
        own = [parameter.grad for parameter in parameters]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        flags = [float(grad is not None) for grad in own]
        heard = self.heard.get("signal", 0)
        told = torch.tensor([*flags, loss, error is not None, *(float(heard == each) for each in SIGNALS)])
        pieces = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, own, strict=True)]
        sizes = [piece.numel() for piece in pieces]
        buffer = torch.cat([*(piece.flatten().to(dtype) for piece in pieces), told.to(self.trainee.device, dtype)])
        team.sum(buffer)
        *gradients, told = buffer.split([*sizes, len(told)])
        *flags, loss, num_failed, first, second = told.tolist()
        if num_failed:
            self._end(team, error)
        for signal, number in zip(SIGNALS, (first, second), strict=True):
            if number:
                self.asked["signal"] = signal
        for parameter, gradient, flag in zip(parameters, gradients, flags, strict=True):
            if flag:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return loss

    def _end(self, team: Team, error: Exception | None) -> None:
        failed = team.gathered(error is not None)
        team.leave_the_word_to(failed.index(True), error)


class _Losses(NamedTuple):
    """Of some rows together, and of this process's shares of them."""

    whole: float
    in_shares: float


OTHER_ROWS = (
    "put the rows in a pyro.plate, replace BatchNorm, which sees other rows, by GroupNorm or LayerNorm, leave out free "
    "bits, or train in one process with accumulate=1"
)
OTHER_DATA = (
    "give all processes the same batches, without a DistributedSampler, as each takes its rows itself, and the same "
    "parameters"
)


def _num_rows(batch: Batch) -> int:
    return next((len(value) for value in batch if isinstance(value, Tensor) and value.ndim), 1)


def _differences(found: list[str], expected: list[str]) -> Iterator[str]:
    """Yield what random numbers a share took otherwise than the whole batch."""
    for one, other in zip(found, expected, strict=False):
        if one != other:
            yield f"{one.removeprefix('aten.')} for a share and {other.removeprefix('aten.')} for all rows"
    yield f"{len(found)} draws for a share and {len(expected)} for all rows"
