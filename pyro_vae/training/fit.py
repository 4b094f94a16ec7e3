"""Training: a function on top of Pyro's SVI."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae import _checks
from pyro_vae._private import BatchNorm
from pyro_vae._random import forked_generator
from pyro_vae.data.dataset import Dataset, from_tensor
from pyro_vae.diagnostics import rate_distortion
from pyro_vae.objectives.base import Objective
from pyro_vae.objectives.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO
from pyro_vae.optim import FusedAdam
from pyro_vae.training.history import History
from pyro_vae.training.stepper import Stepper
from pyro_vae.vae import VAE

__all__ = ["fit"]

COMPILED = {Trace_ELBO: CompiledTrace_ELBO, TraceMeanField_ELBO: CompiledTraceMeanField_ELBO}

NUM_EVALUATED = 1000
"""Training data to evaluate rate and distortion on, where there are no validation data."""
DRAWN_TOGETHER = 1_000_000
"""The most numbers in batches that are drawn together; a single batch may have more."""
WORTH_COMPILING = 5000
"""Steps, a few times as many as repay the seconds of compiling on two CPU cores (benchmarks/training.py)."""


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
    each batch. One seed gives the same parameters, to the bit, on the same machine; torch's generator is left as it
    was. The modules end in evaluation mode.

    Args:
        vae: the VAE to train.
        data: a `pyro_vae.data.Dataset`, or a tensor or numpy array `(N, ...)`.
        objective: a `pv.objectives.Objective`, or a Pyro ELBO with a single loss, such as `RenyiELBO` or a subclass of
            your own; `TraceMeanField_ELBO()` by default.
        optim: one of Pyro's optimizers; `FusedAdam({"lr": 1e-3})` by default. A learning-rate schedule
            (`pyro.optim.CosineAnnealingLR` and the like, `FusedAdam(..., lr_scheduler=...)`) takes a step after each
            epoch.
        num_epochs, batch_size: whole numbers; the last batch of an epoch may be smaller.
        seed: fixes the order, the binarization and the draws of z.
        validation: data of the same kind, on which the ELBO is evaluated after each epoch.
        compile: whether a `Trace_ELBO` or `TraceMeanField_ELBO` runs as `CompiledTrace_ELBO` or
            `CompiledTraceMeanField_ELBO`; with `FusedAdam` a step is then one graph. `"auto"` compiles these two, and a
            `pv.objectives.Objective` of your own, from 5,000 steps on. The numbers are the same to rounding.
            `History.execution` says how the steps ran.
        progress: show a bar with the ELBO of training and validation.

    Returns:
        `History`, nats per datum.

    Raises:
        TypeError, ValueError: for impossible data or numbers, and for a batch of one datum where a BatchNorm needs
            more, before any parameter changes.
        DivergedError: (a ValueError) for a loss, gradient or parameter that is NaN or infinite; it names the step. The
            parameters are then the last that had a finite loss, or, if compiled, those of at most 100 steps before.

    Examples:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(1),
        ...     pv.likelihoods.Gaussian(pv.nn.MLP(1, [], 3)),
        ...     pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2)),
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
    execution = _execution(compile, objective, num_epochs * math.ceil(len(train) / batch_size))
    objective, history = execution.objective, History()
    with forked_generator(device), tqdm(total=num_epochs, disable=not progress, unit="epoch") as bar:
        _rehearse(vae, objective, train)
        if 1 in (batch_size, len(train) % batch_size):
            _rehearse_a_batch_of_one(vae, objective, train, batch_size)
        torch.manual_seed(seed)
        stepper = Stepper(vae, objective, optim, history)
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
    history.execution = execution.how(vae)
    return history


class _Execution(NamedTuple):
    """The objective to train by, and why it runs as it is, if it does."""

    objective: ELBO
    why_as_it_is: str = ""

    def how(self, vae: VAE) -> str:
        """Say how the steps ran."""
        if self.why_as_it_is or not isinstance(self.objective, Objective):
            return f"as it is: {self.why_as_it_is}"
        return self.objective.execution(vae.model, vae.guide)


def _execution(compile: bool | Literal["auto"], objective: ELBO, num_steps: int) -> _Execution:
    """Choose the compiled objective with the same options where that is wanted, or give the reason why not."""
    if compile not in (True, False, "auto"):
        raise ValueError(f'compile: expected True, False or "auto"; got {compile!r}; pass one of these.')
    counterpart, name = COMPILED.get(type(objective)), type(objective).__name__
    if counterpart is None and not isinstance(objective, Objective):
        names = " or ".join(each.__name__ for each in COMPILED)
        if compile is True:
            raise TypeError(
                f"compile: expected an objective that can be compiled, {names}; got {name}; leave compile out, or "
                "derive the objective from pv.objectives.Objective."
            )
        return _Execution(
            objective, f"{name} is neither {names.replace(' or ', ' nor ')}, nor a pv.objectives.Objective"
        )
    is_asked_for = compile is True or isinstance(objective, tuple(COMPILED.values()))
    if compile is False or (not is_asked_for and num_steps < WORTH_COMPILING):
        why = "compile=False" if compile is False else f"{num_steps:,} steps do not repay compiling"
        return _Execution(_as_it_is(objective), why)
    if counterpart is None:
        return _Execution(objective)
    chosen = counterpart()
    chosen.__dict__.update(objective.__dict__)
    return _Execution(chosen)


def _as_it_is(objective: ELBO) -> ELBO:
    """Return an objective with the same options that is not compiled."""
    if not isinstance(objective, Objective):
        return objective
    chosen = copy.copy(objective)
    chosen.compile = False
    return chosen


def _rehearse(vae: VAE, objective: ELBO, train: Dataset) -> None:
    """Take the loss of one datum, before anything trains.

    It shows whether the objective has a single loss. Also, a vectorised ELBO draws random numbers at its first call, to
    look at the plates.
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
    """Take its loss in training mode, where a BatchNorm over rows alone cannot normalise one datum."""
    if not any(isinstance(module, BatchNorm) for module in vae.modules()):
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


def _epoch(vae: VAE, stepper: Stepper, train: Dataset, batch_size: int) -> float:
    """Make one pass over the data in a new order; return the mean ELBO per datum."""
    order = torch.randperm(len(train)).to(train.device)
    vae.train()
    try:
        losses = [stepper.step(x) for x in _batches(train, order, batch_size)]
        stepper.check()
        return -sum(map(float, losses)) / len(train)
    finally:
        vae.eval()


def _batches(train: Dataset, order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield the data in an order; several batches are drawn together, which is faster than one by one."""
    num_together = max(1, DRAWN_TOGETHER // max(1, batch_size * train.x[0].numel()))
    for rows in order.split(num_together * batch_size):
        yield from train.batch(rows).split(batch_size)


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
