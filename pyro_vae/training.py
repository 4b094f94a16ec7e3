"""Training: a function on top of Pyro's SVI."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, TraceMeanField_ELBO
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae._structure import forked_generator
from pyro_vae.data import Dataset, from_tensor
from pyro_vae.diagnostics import RateDistortion, rate_distortion
from pyro_vae.vae import VAE

__all__ = ["DivergedError", "History", "fit"]

NUM_EVALUATED = 1000
"""How many training data rate and distortion are taken on, where there are no validation data."""


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
    """Training met a loss or a gradient that is no number.

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
        optim: one of Pyro's optimizers; Adam with a learning rate of 1e-3 by default. A learning-rate schedule
            (`pyro.optim.CosineAnnealingLR` and the like) takes a step after each epoch.
        num_epochs, batch_size: whole numbers; the last batch of an epoch may be smaller.
        seed: of the order, the binarization and the draws of z.
        validation: data of the same kind, on which the ELBO is taken after each epoch.
        progress: show a bar with the ELBO of training and validation.

    Returns:
        `History`, nats per datum.

    Raises:
        TypeError, ValueError: for data or numbers that cannot be, before any parameter changes.
        DivergedError: (a ValueError) for a loss or gradient that is no number; it names the step, and the parameters
            are the last that had a finite loss.

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
    optim = pyro.optim.Adam({"lr": 1e-3}) if optim is None else optim
    _refuse_strangers(vae, objective, optim)
    device = next(vae.parameters()).device
    train = _as_dataset("data", data, vae).to(device)
    held_out = None if validation is None else _as_dataset("validation", validation, vae).to(device)
    train_x = vae.check(train.x, "data")
    evaluated = train_x[:NUM_EVALUATED] if held_out is None else vae.check(held_out.x, "validation")
    history = History()
    with forked_generator(device), tqdm(total=num_epochs, disable=not progress, unit="epoch") as bar:
        _rehearse(vae, objective, train)
        torch.manual_seed(seed)
        loss = _FiniteLoss(objective, vae, history)
        svi = SVI(vae.model, vae.guide, optim, loss=objective.loss, loss_and_grads=loss.loss_and_grads)
        for _ in range(num_epochs):
            started = time.perf_counter()
            train_elbo = _epoch(vae, svi, train, batch_size)
            seconds = time.perf_counter() - started
            if isinstance(optim, PyroLRScheduler):
                optim.step()
            terms = loss.guarded(lambda: rate_distortion(vae.model, vae.guide, evaluated))
            history.add(train_elbo, terms, seconds, is_validation=held_out is not None)
            bar.set_postfix_str(_latest(history))
            bar.update()
    return history


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


def _epoch(vae: VAE, svi: SVI, train: Dataset, batch_size: int) -> float:
    """One pass over the data in a new order; the mean ELBO per datum."""
    order = torch.randperm(len(train)).to(train.device)
    vae.train()
    try:
        return -sum(svi.step(train.batch(rows)) for rows in order.split(batch_size)) / len(train)
    finally:
        vae.eval()


class _FiniteLoss:
    """An objective that stops at a loss or a gradient that is no number, and goes back to where it was one."""

    def __init__(self, objective: ELBO, vae: VAE, history: History) -> None:
        self.objective = objective
        self.vae = vae
        self.history = history
        self.num_steps = 0
        self.state = [*vae.parameters(), *vae.buffers()]
        self.last_good = [tensor.detach().clone() for tensor in self.state]

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> float:
        self.num_steps += 1
        loss: float = self.guarded(lambda: self.objective.loss_and_grads(model, guide, x))
        if not math.isfinite(loss):
            raise self._stopped(f"a loss of {loss}")
        self._copy(self.state, self.last_good)
        if not math.isfinite(sum(p.grad.sum() for p in self.vae.parameters() if p.grad is not None)):
            raise self._stopped("a gradient of NaN or infinity")
        return loss

    def guarded(self, compute: Callable[[], Any]) -> Any:
        """What Pyro's validation refuses here, after a rehearsal, are parameters that are no numbers any more."""
        try:
            return compute()
        except ValueError as error:
            raise self._stopped("parameters that Pyro refuses") from error

    def _stopped(self, found: str) -> DivergedError:
        self._copy(self.last_good, self.state)
        self.vae.zero_grad()
        return DivergedError(
            f"objective: expected finite numbers; got {found} at step {self.num_steps}, in epoch "
            f"{len(self.history) + 1}; the parameters are the last that had a finite loss: lower the learning rate, or "
            "bound the scale of the likelihood.",
            self.history,
        )

    @torch.no_grad()
    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        for old, new in zip(source, target, strict=True):
            new.copy_(old)


def _as_dataset(name: str, data: Any, vae: VAE) -> Dataset:
    return data if isinstance(data, Dataset) else from_tensor(vae.check(data, name))


def _refuse_strangers(vae: Any, objective: Any, optim: Any) -> None:
    for name, value, expected in (("vae", vae, VAE), ("objective", objective, ELBO), ("optim", optim, PyroOptim)):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected an instance of {expected.__name__}; got {value!r}; make one.")
    if getattr(optim, "pt_scheduler_constructor", None) is torch.optim.lr_scheduler.ReduceLROnPlateau:
        raise TypeError(
            "optim: expected a schedule of epochs alone; got ReduceLROnPlateau; use CosineAnnealingLR, say."
        )
    if isinstance(optim.pt_optim_args, dict) and "lr" in optim.pt_optim_args:
        _checks.positive("optim: lr, the learning rate", optim.pt_optim_args["lr"])


def _latest(history: History) -> str:
    validation = f", validation {history.validation_elbo[-1]:.2f}" if history.validation_elbo else ""
    return f"ELBO: train {history.train_elbo[-1]:.2f}{validation} nats"
