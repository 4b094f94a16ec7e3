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
from pyro_vae.data import Dataset, from_tensor
from pyro_vae.diagnostics import rate_distortion
from pyro_vae.program import forked_generator
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
        objective: any of Pyro's ELBOs; `TraceMeanField_ELBO()` by default.
        optim: any of Pyro's optimizers; Adam with a learning rate of 1e-3 by default. A learning-rate schedule
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
            are those from before it.

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
    seed = _checks.whole_number("seed", seed, minimum=0)
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
            history.train_elbo.append(_epoch(vae, svi, train, batch_size))
            history.seconds.append(time.perf_counter() - started)
            if isinstance(optim, PyroLRScheduler):
                optim.step()
            terms = rate_distortion(vae.model, vae.guide, evaluated)
            history.rate.append(terms.rate.mean().item())
            history.distortion.append(terms.distortion.mean().item())
            if held_out is not None:
                history.validation_elbo.append(terms.elbo.mean().item())
            bar.set_postfix_str(_latest(history))
            bar.update()
    return history


@torch.no_grad()
def _rehearse(vae: VAE, objective: ELBO, train: Dataset) -> None:
    """Take the loss once: a vectorised ELBO looks at the plates the first time, and draws random numbers to do so."""
    vae.eval()
    objective.loss(vae.model, vae.guide, train.batch(torch.zeros(1, dtype=torch.long, device=train.device)))


def _epoch(vae: VAE, svi: SVI, train: Dataset, batch_size: int) -> float:
    """One pass over the data in a new order; the mean ELBO per datum."""
    order = torch.randperm(len(train)).to(train.device)
    vae.train()
    try:
        return -sum(svi.step(train.batch(rows)) for rows in order.split(batch_size)) / len(train)
    finally:
        vae.eval()


class _FiniteLoss:
    """An objective that stops, before the parameters change, at a loss or a gradient that is no number."""

    def __init__(self, objective: ELBO, vae: VAE, history: History) -> None:
        self.objective = objective
        self.vae = vae
        self.history = history
        self.num_steps = 0

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> float:
        self.num_steps += 1
        try:
            loss = self.objective.loss_and_grads(model, guide, x)
        except ValueError as error:
            raise self._stopped(str(error)) from error
        if not math.isfinite(loss):
            raise self._stopped(f"a loss of {loss}")
        if not math.isfinite(sum(p.grad.sum() for p in self.vae.parameters() if p.grad is not None)):
            raise self._stopped("a gradient of NaN or infinity")
        return loss

    def _stopped(self, found: str) -> DivergedError:
        self.vae.zero_grad()
        return DivergedError(
            f"objective: expected finite numbers; got {found} at step {self.num_steps}, in epoch "
            f"{len(self.history) + 1}; the parameters are those from before the step: lower the learning rate, or "
            "bound the scale of the likelihood.",
            self.history,
        )


def _as_dataset(name: str, data: Any, vae: VAE) -> Dataset:
    return data if isinstance(data, Dataset) else from_tensor(vae.check(data, name))


def _refuse_strangers(vae: Any, objective: Any, optim: Any) -> None:
    for name, value, expected in (("vae", vae, VAE), ("objective", objective, ELBO), ("optim", optim, PyroOptim)):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected an instance of {expected.__name__}; got {value!r}; make one.")
    if isinstance(optim.pt_optim_args, dict) and "lr" in optim.pt_optim_args:
        _checks.positive("optim: lr, the learning rate", optim.pt_optim_args["lr"])


def _latest(history: History) -> str:
    validation = f", validation {history.validation_elbo[-1]:.2f}" if history.validation_elbo else ""
    return f"ELBO: train {history.train_elbo[-1]:.2f}{validation} nats"
