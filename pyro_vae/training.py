"""Training: a function on top of Pyro's SVI."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae._structure import forked_generator
from pyro_vae.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO
from pyro_vae.data import Dataset, from_tensor
from pyro_vae.diagnostics import RateDistortion, rate_distortion
from pyro_vae.optim import FusedAdam
from pyro_vae.vae import VAE

__all__ = ["DivergedError", "History", "fit"]

COMPILED = {Trace_ELBO: CompiledTrace_ELBO, TraceMeanField_ELBO: CompiledTraceMeanField_ELBO}

NUM_EVALUATED = 1000
"""How many training data rate and distortion are taken on, where there are no validation data."""
CHECKED_TOGETHER = 100
"""Compiled steps whose losses are looked at together, so that none waits for a number."""
DRAWN_TOGETHER = 1_000_000
"""Numbers in the batches that are drawn at a time, if there is more than one."""
WORTH_COMPILING = 5000
"""Steps; some times those that repay the seconds of compiling on two CPU cores (benchmarks/training.py)."""


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
    """

    train_elbo: list[float] = field(default_factory=list)
    validation_elbo: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    distortion: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, train_elbo: float, terms: RateDistortion, seconds: float, is_validation: bool) -> None:
        """Take in one epoch."""
        self.train_elbo.append(train_elbo)
        self.rate.append(terms.rate.mean().item())
        self.distortion.append(terms.distortion.mean().item())
        self.seconds.append(seconds)
        if is_validation:
            self.validation_elbo.append(terms.elbo.mean().item())

    def as_dict(self) -> dict[str, list[float]]:
        """All columns, for JSON or a data frame."""
        return asdict(self)

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

    Whatever else stops it, such as data outside of a support or a shape that does not fit, is raised as it is, with a
    note that names the step.

    Attributes:
        history: the epochs finished until then.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def fit(
    vae: VAE,
    data: Dataset | Tensor,
    *,
    objective: ELBO | None = None,
    optim: PyroOptim | None = None,
    num_epochs: int = 20,
    batch_size: int = 100,
    seed: int = 0,
    validation: Dataset | Tensor | None = None,
    compile: bool | Literal["auto"] = "auto",
    progress: bool = True,
) -> History:
    r"""Maximise the ELBO by stochastic gradients, with Pyro's `SVI`.

    Batches are rows of tensors in memory, in a new order each epoch; data with dynamic binarization are drawn anew for
    each batch. One seed gives the same parameters to the bit on the same machine; torch's generator is left as it was.
    The modules are left in evaluation mode.

    Args:
        vae: the VAE to train.
        data: a `pyro_vae.data.Dataset`, or a tensor or numpy array `(N, ...)`.
        objective: one of Pyro's ELBOs with a single loss; `TraceMeanField_ELBO()` by default.
        optim: one of Pyro's optimizers; `FusedAdam({"lr": 1e-3})` by default. A learning-rate schedule
            (`pyro.optim.CosineAnnealingLR` and the like, `FusedAdam(..., lr_scheduler=...)`) takes a step after each
            epoch.
        num_epochs, batch_size: whole numbers; the last batch of an epoch may be smaller.
        seed: of the order, the binarization and the draws of z.
        validation: data of the same kind, on which the ELBO is taken after each epoch.
        compile: whether a `Trace_ELBO` or `TraceMeanField_ELBO` runs as `CompiledTrace_ELBO` or
            `CompiledTraceMeanField_ELBO`; with `FusedAdam` a step is one graph then. `"auto"`: from 5,000 steps on, of
            these two. The numbers are the same to rounding.
        progress: show a bar with the ELBO of training and validation.

    Returns:
        `History`, nats per datum.

    Raises:
        TypeError, ValueError: for data or numbers that cannot be, and for a batch of one datum where a BatchNorm needs
            more, before any parameter changes.
        DivergedError: (a ValueError) for a loss, gradient or parameter that is NaN or infinite; it names the step. The
            parameters are then the last that had a finite loss, or, compiled, those of at most 100 steps before.

    Examples:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.StandardNormal(1), pv.Gaussian(pv.nn.MLP(1, [], 3)), pv.DiagonalNormal(pv.nn.MLP(3, [], 2))
        ... )
        >>> history = pv.fit(vae, torch.randn(500, 3), num_epochs=2, progress=False)
        >>> history.train_elbo[1] > history.train_elbo[0]
        True
    """
    num_epochs = _checks.whole_number("num_epochs", num_epochs)
    batch_size = _checks.whole_number("batch_size", batch_size)
    seed = _checks.seed(seed)
    objective = TraceMeanField_ELBO() if objective is None else objective
    optim = FusedAdam({"lr": 1e-3}) if optim is None else optim
    _refuse_strangers(vae, objective, optim)
    device = next(vae.parameters()).device
    train = _as_dataset("data", data, vae).to(device)
    held_out = None if validation is None else _as_dataset("validation", validation, vae).to(device)
    train_x = vae.check(train.x, "data")
    evaluated = train_x[:NUM_EVALUATED] if held_out is None else vae.check(held_out.x, "validation")
    objective = _compiled(compile, objective, num_epochs * math.ceil(len(train) / batch_size))
    history = History()
    with forked_generator(device), tqdm(total=num_epochs, disable=not progress, unit="epoch") as bar:
        _rehearse(vae, objective, train)
        if 1 in (batch_size, len(train) % batch_size):
            _rehearse_a_batch_of_one(vae, objective, train, batch_size)
        torch.manual_seed(seed)
        stepper = _Stepper(vae, objective, optim, history)
        for _ in range(num_epochs):
            started = time.perf_counter()
            train_elbo = _epoch(vae, stepper, train, batch_size)
            seconds = time.perf_counter() - started
            if isinstance(optim, (PyroLRScheduler, FusedAdam)):
                optim.step()
            terms = stepper.guarded(lambda: rate_distortion(vae.model, vae.guide, evaluated))
            history.add(train_elbo, terms, seconds, is_validation=held_out is not None)
            bar.set_postfix_str(_latest(history))
            bar.update()
    return history


def _compiled(compile: bool | Literal["auto"], objective: ELBO, num_steps: int) -> ELBO:
    """The objective to train by: the compiled one of the same options, where that is wanted."""
    if compile not in (True, False, "auto"):
        raise ValueError(f'compile: expected True, False or "auto"; got {compile!r}; pass one of these.')
    counterpart = COMPILED.get(type(objective))
    if compile is True and counterpart is None and not isinstance(objective, tuple(COMPILED.values())):
        raise TypeError(
            f"compile: expected an objective that can be compiled, {' or '.join(each.__name__ for each in COMPILED)}; "
            f"got {type(objective).__name__}; leave compile out."
        )
    if not compile or counterpart is None or (compile == "auto" and num_steps < WORTH_COMPILING):
        return objective
    chosen = counterpart()
    chosen.__dict__.update(objective.__dict__)
    return chosen


def _rehearse(vae: VAE, objective: ELBO, train: Dataset) -> None:
    """Take the loss of one datum, before anything trains.

    It shows whether the objective has a loss. And a vectorised ELBO looks at the plates the first time, and draws
    random numbers to do so.
    """
    vae.eval()
    x = train.batch(torch.zeros(1, dtype=torch.long, device=train.device))
    loss = objective.loss_and_grads(vae.model, vae.guide, x)
    vae.zero_grad()
    if not isinstance(loss, (float, int)):
        raise TypeError(
            f"objective: expected an ELBO with one loss; got {type(objective).__name__}, which has {loss!r}."
        )


def _rehearse_a_batch_of_one(vae: VAE, objective: ELBO, train: Dataset, batch_size: int) -> None:
    """Take its loss in training mode, where a BatchNorm over the rows alone has nothing to compare a datum with."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in vae.modules()):
        return
    buffers = [(buffer, buffer.clone()) for buffer in vae.buffers()]
    x = train.batch(torch.zeros(1, dtype=torch.long, device=train.device))
    vae.train()
    try:
        objective.loss_and_grads(vae.model, vae.guide, x)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        last = "the last batch" if len(train) > 1 < batch_size else "each batch"
        raise ValueError(
            "batch_size: expected at least two data in each batch, for BatchNorm in training mode; got one datum in "
            f"{last}, of {len(train)} data and batch_size={batch_size}; take another batch_size, drop a row, or "
            "replace BatchNorm by GroupNorm or LayerNorm."
        ) from error
    finally:
        vae.eval()
        vae.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _epoch(vae: VAE, stepper: _Stepper, train: Dataset, batch_size: int) -> float:
    """One pass over the data in a new order; the mean ELBO per datum."""
    order = torch.randperm(len(train)).to(train.device)
    vae.train()
    try:
        losses = [stepper.step(x) for x in _batches(train, order, batch_size)]
        stepper.check()
        return -sum(map(float, losses)) / len(train)
    finally:
        vae.eval()


def _batches(train: Dataset, order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The data in an order; some batches are drawn at a time, which takes less time than to draw each."""
    num_together = max(1, DRAWN_TOGETHER // max(1, batch_size * train.x[0].numel()))
    for rows in order.split(num_together * batch_size):
        yield from train.batch(rows).split(batch_size)


class _Stepper:
    """Takes steps; stops at a loss or a gradient that is no number, and goes back to where it was one.

    A step of Pyro's own is looked at before its update. A compiled one is an update too: it is looked at when there are
    some, and nothing waits for its loss.
    """

    def __init__(self, vae: VAE, objective: ELBO, optim: PyroOptim, history: History) -> None:
        self.vae, self.objective, self.optim, self.history = vae, objective, optim, history
        self.svi = SVI(vae.model, vae.guide, optim, loss=objective.loss, loss_and_grads=self._loss_and_grads)
        self.num_steps = 0
        self.waiting: list[Tensor] = []
        self.state = [*vae.parameters(), *vae.buffers()]
        self.last_good = [tensor.detach().clone() for tensor in self.state]

    def step(self, x: Tensor) -> float | Tensor:
        """One step; the loss."""
        loss = self._compiled_step(x)
        if loss is None:
            self.check()
            return float(self.svi.step(x))
        self.num_steps += 1
        self.waiting.append(loss)
        if len(self.waiting) == CHECKED_TOGETHER:
            self.check()
        return loss

    def check(self) -> None:
        """Look at the losses of the compiled steps since the last look, and at what they have led to."""
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
        """Tell an error that comes of NaN or infinity from all others, which only get a note of where they were met."""
        try:
            return compute()
        except Exception as error:
            if not torch.stack([tensor.isfinite().all() for tensor in self.state]).all():
                raise self._stopped("parameters of NaN or infinity") from error
            if _refuses_infinity(error):
                raise self._stopped("a distribution whose numbers are NaN or infinite") from error
            error.add_note(f"pyro_vae.fit met this {self._place()}.")
            raise

    def _compiled_step(self, x: Tensor) -> Tensor | None:
        if (
            isinstance(self.objective, (CompiledTrace_ELBO, CompiledTraceMeanField_ELBO))
            and type(self.optim) is FusedAdam
        ):
            return self.objective.update(self.vae.model, self.vae.guide, self.optim, x)
        return None

    def _loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> float:
        self.num_steps += 1
        loss: float = self.guarded(lambda: self.objective.loss_and_grads(model, guide, x))
        if not math.isfinite(loss):
            raise self._stopped(f"a loss of {loss}")
        self._copy(self.state, self.last_good)
        if not math.isfinite(sum(p.grad.sum() for p in self.vae.parameters() if p.grad is not None)):
            raise self._stopped("a gradient of NaN or infinity")
        return loss

    def _stopped(self, found: str, kept: str = "the last that had a finite loss") -> DivergedError:
        self._copy(self.last_good, self.state)
        self.vae.zero_grad()
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
    """Whether this is torch's refusal of a distribution's parameters, or of a draw, that are NaN or infinite."""
    refusals = (Distribution.__init__.__code__, Distribution._validate_sample.__code__)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code in refusals)
    values = (frame.f_locals.get("value") for frame in frames)
    return any(isinstance(value, Tensor) and not value.isfinite().all() for value in values)


def _as_dataset(name: str, data: Any, vae: VAE) -> Dataset:
    return data if isinstance(data, Dataset) else from_tensor(vae.check(data, name))


def _refuse_strangers(vae: Any, objective: Any, optim: Any) -> None:
    for name, value, expected in (("vae", vae, VAE), ("objective", objective, ELBO), ("optim", optim, PyroOptim)):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected an instance of {expected.__name__}; got {value!r}; make one.")
    if vae.model.datum.context_shapes:
        raise ValueError(
            "vae: expected one without context, for which there are no further arguments to train with; got "
            f"context_shapes={vae.model.datum.context_shapes}; train it by pyro.infer.SVI."
        )
    if not any(parameter.requires_grad for parameter in vae.parameters()):
        raise ValueError(
            "vae: expected parameters to train; got none that requires a gradient; call vae.requires_grad_(True)."
        )
    if getattr(optim, "pt_scheduler_constructor", None) is torch.optim.lr_scheduler.ReduceLROnPlateau:
        raise TypeError(
            "optim: expected a schedule of epochs alone; got ReduceLROnPlateau; use CosineAnnealingLR, say."
        )
    if isinstance(optim.pt_optim_args, dict) and "lr" in optim.pt_optim_args:
        _checks.positive("optim: lr, the learning rate", optim.pt_optim_args["lr"])


def _latest(history: History) -> str:
    validation = f", validation {history.validation_elbo[-1]:.2f}" if history.validation_elbo else ""
    return f"ELBO: train {history.train_elbo[-1]:.2f}{validation} nats"
