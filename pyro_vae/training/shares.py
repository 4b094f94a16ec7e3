"""A batch in shares, one after the other or in several processes, with the noise and the loss of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_vae._private import sample_dirichlet, standard_gamma
from pyro_vae._random import generators, seeded, set_generators
from pyro_vae.distributed import Team
from pyro_vae.objectives.base import as_it_is
from pyro_vae.program.sites import plates_of
from pyro_vae.training.trainee import Trainee

__all__ = ["Shares"]

Batch = tuple[Any, ...]

FILLS = {
    Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_, Tensor.log_normal_, Tensor.geometric_,
}  # fmt: skip
"""Functions that fill a tensor with noise, of as many random numbers as it has elements."""
MAKES = {torch.randn, torch.rand}
LIKE = {torch.randn_like, torch.rand_like}
OF_INPUT = {
    torch.bernoulli, functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d,
    functional.alpha_dropout, functional.feature_alpha_dropout,
}  # fmt: skip
"""Functions of a tensor with rows, which take as many random numbers for each row."""
VARYING = {standard_gamma, sample_dirichlet, torch.poisson, torch.binomial, torch.multinomial}
"""Functions that take as many random numbers as their values need: another share would get other noise."""
REJECTING = ("VonMises", "SineBivariateVonMises", "SineSkewed", "ProjectedNormal")
"""Distributions that draw until they accept."""
LARGEST_DIFFERENCE = 1e-3
"""Of the loss, relative, by which shares may differ from the whole: float32 rounding, and more."""
OF_PARTICLES = "num_particles_vectorized"


class _Rows(NamedTuple):
    """The rows of a batch that are one share."""

    start: int
    stop: int
    total: int
    """How many the whole batch has."""
    is_empty: bool = False
    """Whether this is the first row once more, for a process that has none: it counts as nothing."""

    @property
    def number(self) -> int:
        return self.stop - self.start

    def of(self, batch: Batch) -> Batch:
        """Take these rows of all that has rows."""
        return tuple(value[self.start : self.stop] if _has_rows(value, self.total) else value for value in batch)


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
        self.programs: dict[tuple[int, _Rows], nn.Module] = {}
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

    def pair(self, model: Any, guide: Any) -> tuple[Any, Any]:
        """Return the pair of this process's first share, as it was trained."""
        programs = {key[0]: program for key, program in reversed(self.programs.items())}
        return programs.get(id(model), model), programs.get(id(guide), guide)

    def check(self, objective: ELBO, batch: Batch) -> None:
        """Compare the loss of a batch in shares with that of the whole.

        Raises:
            ValueError: for a program whose loss is not the sum of its rows': with BatchNorm, say, or without a plate.
        """

        if not getattr(objective, "sums_over_rows", True):
            self._refuse(f"{type(objective).__name__}, whose value depends on the batch as a whole")

        def own() -> tuple[float, float]:
            return self._compared(as_it_is(objective), batch)

        found = [own()] if self.team is None else self.team.together(own)
        whole, in_shares = found[0][0], sum(share for _, share in found)
        if abs(in_shares - whole) > LARGEST_DIFFERENCE * max(1.0, abs(whole)):
            self._refuse(f"{whole:.6g} of {_num_rows(batch)} rows together, and {in_shares:.6g} of their shares")

    def _refuse(self, found: str) -> NoReturn:
        """Refuse a loss that cannot be taken in shares."""
        error = ValueError(
            f"program: expected a loss that is the sum of its rows', to be taken in shares; got {found}; put the rows "
            "in a pyro.plate, replace BatchNorm, which sees other rows, by GroupNorm or LayerNorm, leave out free "
            "bits, or train in one process with accumulate=1."
        )
        if self.team is not None:
            self.team.leave_the_word_to(0, error)
        raise error

    def _compared(self, objective: ELBO, batch: Batch) -> tuple[float, float]:
        """Return the loss of the whole batch, and the sum over this process's shares, in training mode."""
        trainee, in_shares = self.trainee, 0.0
        pair = trainee.model, trainee.guide
        values = {name: tensor.detach().clone() for name, tensor in trainee.tensors().items()}
        trainee.train()
        try:
            with seeded(trainee.device, 0):
                before = generators(trainee.device)
                whole = float(objective.loss(*pair, *batch))
                for rows in self._rows(_num_rows(batch)):
                    set_generators(trainee.device, before)
                    in_shares += 0.0 if rows.is_empty else self._loss(objective, *pair, batch, rows)
        finally:
            trainee.train(False)
            trainee.load(values, "program")
        return whole, in_shares

    def _own(self, objective: ELBO, model: Any, guide: Any, batch: Batch) -> float:
        """Take the shares of this process."""
        total, loss = _num_rows(batch), 0.0
        before = generators(self.trainee.device)
        for rows in self._rows(total):
            set_generators(self.trainee.device, before)
            if rows.is_empty:
                self._loss(objective, model, guide, batch, rows)
            else:
                pair = self._of(model, rows), self._of(guide, rows)
                loss += float(objective.loss_and_grads(*pair, *rows.of(batch)))
        return loss

    def _loss(self, objective: ELBO, model: Any, guide: Any, batch: Batch, rows: _Rows) -> float:
        return float(objective.loss(self._of(model, rows), self._of(guide, rows), *rows.of(batch)))

    def _of(self, program: Callable[..., Any], rows: _Rows) -> nn.Module:
        """Return the program of a share: the same object each time, for which a graph stands."""
        key = id(program), rows
        if key not in self.programs:
            self.programs[key] = _OfShare(program, rows)
        return self.programs[key]

    def _rows(self, total: int) -> Iterator[_Rows]:
        rank, size = (0, 1) if self.team is None else (self.team.rank, self.team.size)
        pieces = size * self.number
        ends = [total * i // pieces for i in range(pieces + 1)]
        found = [
            _Rows(ends[i], ends[i + 1], total)
            for i in range(rank * self.number, (rank + 1) * self.number)
            if ends[i] < ends[i + 1]
        ]
        yield from found or [_Rows(0, 1, total, is_empty=True)]

    def _summed(self, team: Team, loss: float, error: Exception | None) -> float:
        """Sum losses and gradients over all processes; end together where one of them failed or got a signal."""
        parameters = self.trainee.parameters()
        own = [parameter.grad for parameter in parameters]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        flags = [float(grad is not None) for grad in own]
        heard = self.heard.get("signal", 0)
        told = torch.tensor([*flags, loss, error is not None, *(float(heard == each) for each in SIGNALS)])
        pieces = [
            torch.zeros_like(parameter) if grad is None else grad
            for parameter, grad in zip(parameters, own, strict=True)
        ]
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


SIGNALS = (2, 15)
"""SIGINT and SIGTERM; the last of them counts."""


def _num_rows(batch: Batch) -> int:
    return next((len(value) for value in batch if isinstance(value, Tensor) and value.ndim), 1)


def _has_rows(value: Any, total: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == total


class _OfShare(nn.Module):
    """A program that is called with some rows of a batch, as if it were called with all."""

    def __init__(self, program: Callable[..., Any], rows: _Rows) -> None:
        super().__init__()
        self.program, self.rows = program, rows

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        noise = _NoiseOfAll(self.rows)
        with noise, _SitesOfShare(self.rows, noise):
            return self.program(*args, **kwargs)


class _SitesOfShare(Messenger):
    """Scale what counts once a batch, and not once a row; tell where the rows of a site are."""

    def __init__(self, rows: _Rows, noise: _NoiseOfAll) -> None:
        super().__init__()
        self.rows, self.noise = rows, noise

    def _pyro_sample(self, msg: Any) -> None:
        frames = [frame for frame in plates_of(msg) if frame.size == self.rows.number and frame.name != OF_PARTICLES]
        is_subsampled = any(frame.full_size not in (None, frame.size) for frame in frames)
        if not frames or is_subsampled:
            msg["scale"] = msg["scale"] * (self.rows.number / self.rows.total)
        fn = msg["fn"]
        if any(name in type(_base_of(fn)).__name__ for name in REJECTING) and msg["value"] is None:
            _refuse_noise(type(_base_of(fn)).__name__)
        self.noise.axis_from_right = -frames[0].dim + fn.event_dim if frames else 0

    def _pyro_post_sample(self, msg: Any) -> None:
        self.noise.axis_from_right = None


class _NoiseOfAll(TorchFunctionMode):
    """Draws noise for all rows of a batch, and keeps that of a share."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self.rows = rows
        self.axis_from_right: int | None = None
        """Where the rows are in the noise of the site at hand; 0 for a site that has none, None outside of a site."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in VARYING:
            _refuse_noise(getattr(func, "__name__", str(func)))
        if func in FILLS:
            return self._filled(func, *args, **kwargs)
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        if func in MAKES:
            return self._made(func, args, kwargs)
        if func in LIKE:
            full, axis = self._widened(args[0].shape)
            return self._kept(func(args[0].new_empty(full), *args[1:], **kwargs), axis)
        if func in OF_INPUT:
            return self._of_input(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _axis(self, shape: Any) -> int | None:
        """Find the dimension of rows; None for noise that all rows share."""
        if self.axis_from_right is not None:
            axis = len(shape) - self.axis_from_right
            if self.axis_from_right == 0:
                return None
            if 0 <= axis < len(shape) and shape[axis] == self.rows.number:
                return axis
        return next((axis for axis, size in enumerate(shape) if size == self.rows.number), None)

    def _widened(self, shape: Any) -> tuple[list[int], int | None]:
        """Return the shape that noise of the whole batch has, and the dimension of its rows."""
        axis = self._axis(shape)
        return [self.rows.total if i == axis else size for i, size in enumerate(shape)], axis

    def _kept(self, noise: Tensor, axis: int | None) -> Tensor:
        return noise if axis is None else noise.narrow(axis, self.rows.start, self.rows.number)

    def _filled(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        full, axis = self._widened(tensor.shape)
        if axis is None:
            return func(tensor, *args, **kwargs)
        return tensor.copy_(self._kept(func(tensor.new_empty(full), *args, **kwargs), axis))

    def _normal(self, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
        if size is not None:
            full, axis = self._widened(size)
            return self._kept(torch.normal(mean, std, full, **kwargs), axis)
        given = [each for each in (mean, std) if isinstance(each, Tensor)]
        like = given[0].new_empty(torch.broadcast_shapes(*(each.shape for each in given)))
        return mean + std * self._filled(Tensor.normal_, like)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        size = kwargs.pop("size", None) or (args if args and isinstance(args[0], int) else args[0] if args else ())
        full, axis = self._widened(tuple(size))
        return self._kept(func(full, **kwargs), axis)

    def _of_input(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        axis = self._axis(x.shape)
        if axis is None:
            return func(x, *args, **kwargs)
        after = self.rows.total - self.rows.stop
        padded = functional.pad(x, [*[0, 0] * (x.ndim - 1 - axis), self.rows.start, after])
        return self._kept(func(padded, *args, **kwargs), axis)


def _base_of(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _refuse_noise(name: str) -> None:
    raise ValueError(
        f"program: expected draws of a fixed number of random numbers each, such as Gaussian ones, to be drawn in "
        f"shares; got {name}, which draws as many as its values need; train in one process with accumulate=1."
    )
