"""Training: a function on top of Pyro's SVI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple

from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import _checks, distributed
from pyro_vae._options import refusing_unknown_options
from pyro_vae._private import BatchNorm
from pyro_vae._random import forked_generator
from pyro_vae.objectives.base import Objective, as_it_is
from pyro_vae.objectives.compiled import CompiledTrace_ELBO, CompiledTraceMeanField_ELBO
from pyro_vae.program.automatic import refuse_automatic_points
from pyro_vae.training.batches import Batches, batches_of
from pyro_vae.training.callbacks import Callback, ProgressBar
from pyro_vae.training.config import config_of
from pyro_vae.training.doctor import add_note_of_bad_data
from pyro_vae.training.early_stopping import EarlyStopping
from pyro_vae.training.history import History
from pyro_vae.training.kl_weight import KLWeight
from pyro_vae.training.loop import Loop
from pyro_vae.training.optimizers import Schedule, as_pyro, clipping, learning_rate
from pyro_vae.training.precision import Precision
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.together import agree, folder_of, shares_of
from pyro_vae.training.trainee import Trainee
from pyro_vae.vae import VAE

__all__ = ["fit"]

COMPILED = {Trace_ELBO: CompiledTrace_ELBO, TraceMeanField_ELBO: CompiledTraceMeanField_ELBO}

WORTH_COMPILING = 5000
"""Steps, a few times as many as repay the seconds of compiling on two CPU cores (benchmarks/training.py)."""


@refusing_unknown_options
def fit(
    program: VAE | tuple[Callable[..., Any], Callable[..., Any]],
    data: Any,
    *,
    objective: ELBO | None = None,
    optim: Any = None,
    schedule: Callable[[int], float] | None = None,
    clip_grad_norm: float | None = None,
    kl_warmup: float | None = None,
    precision: Precision = "float32",
    num_epochs: int = 20,
    batch_size: int = 100,
    drop_last: bool = False,
    accumulate: int = 1,
    seed: int = 0,
    validation: Any = None,
    early_stopping: EarlyStopping | int | None = None,
    compile: bool | Literal["auto"] = "auto",
    callbacks: Sequence[Callback] = (),
    run: str | PathLike[str] | None = None,
    resume: bool | Literal["auto"] = False,
    progress: bool = True,
) -> History:
    r"""Maximise the ELBO by stochastic gradients, with Pyro's `SVI`.

    Batches are rows of tensors in memory, in a new order each epoch; data with dynamic binarization are drawn anew for
    each batch. One seed gives the same parameters, to the bit, on the same machine; torch's generator is left as it
    was. The modules end in evaluation mode.

    Args:
        program: a VAE, or a pair (model, guide) of functions or modules, which are called with a batch.
        data: a `pyro_vae.data.Dataset`; a tensor or numpy array `(N, ...)`, with NaN where an entry is missing if the
            VAE's likelihood is `likelihoods.Incomplete`; a tuple `(x, *context)` of these, with
            labels or covariates, each of N rows; a torch `Dataset`, of data or tuples; or a `DataLoader`, whose batches
            are taken as they come.
        objective: a `pv.objectives.Objective`, or a Pyro ELBO with a single loss, such as `RenyiELBO` or a subclass of
            your own; by default `TraceMeanField_ELBO()` for a VAE, and `Trace_ELBO()` for a pair.
        optim: one of Pyro's optimizers, or a torch optimizer's class, alone or with options,
            `functools.partial(torch.optim.AdamW, lr=1e-3)`; `FusedAdam({"lr": 1e-3})` by default. A schedule of its own
            (`pyro.optim.CosineAnnealingLR` and the like, `FusedAdam(..., lr_scheduler=...)`) takes a step after each
            epoch.
        schedule: a function from the step, counted from 0, to a factor of the learning rate:
            `lambda step: min(1.0, (step + 1) / 1000)` warms up.
        clip_grad_norm: the largest norm of the gradient of all parameters together, to which a larger one is scaled, as
            by `torch.nn.utils.clip_grad_norm_`. With `FusedAdam` that is part of the compiled step.
        kl_warmup: epochs over which the weight of the KL term grows from 0 to 1, in equal steps; 0.5 is half an epoch.
            `train_elbo` is that of weight 1 all the same: of the epochs concerned, on the data of `rate` and
            `distortion`.
        precision: "bfloat16" to train with the linear and convolutional layers in bfloat16. Parameters, gradients and
            densities remain float32, and so does all that is evaluated: validation, `rate` and `distortion`.
        num_epochs, batch_size: whole numbers.
        accumulate: into how many shares to cut a batch, one after the other, for less memory. Their gradients are added
            before the step, which is that of the whole batch, noise included.
        drop_last: leave out the last batch of an epoch where it is smaller.
        seed: fixes the order, the binarization and the draws of z.
        validation: data of the same kind, on which the ELBO is evaluated after each epoch.
        early_stopping: an `EarlyStopping`, or its patience in epochs; needs `validation`. The parameters end as those
            of the best epoch.
        compile: whether a `Trace_ELBO` or `TraceMeanField_ELBO` runs as `CompiledTrace_ELBO` or
            `CompiledTraceMeanField_ELBO`; with `FusedAdam` a step is then one graph. `"auto"` compiles these two, and a
            `pv.objectives.Objective` of your own, from 5,000 steps on. The numbers are the same to rounding.
            `History.execution` says how the steps ran.
        callbacks: each a `pv.training.Callback`: `JSONLines(path)`, `CSV(path)`, `TensorBoard(folder)`, or your own.
        run: a folder to keep the run in: its configuration, and a checkpoint after each epoch, or less often where
            writing one takes more than 2 % of the time. A SIGTERM or Ctrl-C ends training after the step, with a
            checkpoint. `pv.load(run)` reads it.
        resume: True to go on with the run in that folder; "auto" to do so if there is one. What is resumed continues
            as if it had never stopped, to the bit on the same machine.
        progress: show a bar with the ELBO of training and validation.

    Returns:
        `History`, nats per datum.

    Raises:
        TypeError, ValueError: for impossible data or numbers, for a folder that holds another run, and for a batch of
            one datum where a BatchNorm needs more, before any parameter changes.
        DivergedError: (a ValueError) for a loss, gradient or parameter that is NaN or infinite. The step is run once
            more, watched, to say which datum, sample site, module or parameter was not finite first, and what to do;
            `error.diagnosis` has it in fields. The parameters are then the last that had a finite loss, or, if
            compiled, those of at most 100 steps before.
        SystemExit: with code 143, after a SIGTERM; KeyboardInterrupt after Ctrl-C.

    Examples:
        >>> import torch
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
    trainee = Trainee.of(program)
    num_epochs = _checks.whole_number("num_epochs", num_epochs)
    batch_size = _checks.whole_number("batch_size", batch_size)
    accumulate = _checks.whole_number("accumulate", accumulate)
    seed = _checks.seed(seed)
    objective = _objective(objective, trainee)
    optim = as_pyro(optim)
    early_stopping = _early_stopping(early_stopping, validation)
    clip_grad_norm = None if clip_grad_norm is None else _checks.positive("clip_grad_norm", clip_grad_norm)
    _checks.choice("precision", precision, ("float32", "bfloat16"))
    rates = None if schedule is None else Schedule(schedule, learning_rate(optim))
    device = trainee.device
    train = batches_of("data", data, trainee.vae, device, batch_size, drop_last, seed)
    held_out = None
    if validation is not None:
        held_out = batches_of("validation", validation, trainee.vae, device, batch_size, False, seed)
    execution = _execution(compile, objective, num_epochs * train.num_batches)
    weight = _kl_weight(kl_warmup, train, device)
    history = History()
    bars = [ProgressBar()] if progress else []
    team = distributed.team()
    is_first = team is None or team.is_first
    with forked_generator(device), clipping(optim, clip_grad_norm) as clip_apart:
        _rehearse(trainee, execution.objective, train, batch_size)
        settings = dict(
            objective=objective, optim=optim, schedule=schedule, num_epochs=num_epochs, batch_size=batch_size,
            drop_last=drop_last, seed=seed, kl_warmup=kl_warmup, clip_grad_norm=clip_grad_norm, precision=precision,
            early_stopping=early_stopping, compile=compile,
        )  # fmt: skip
        config = None if run is None and team is None else config_of(trainee, data, validation, settings)
        agree(team, config, trainee, accumulate)
        shares = shares_of(trainee, team, accumulate, execution.objective, train, batch_size)
        stepper = Stepper(
            trainee, execution.objective, optim, history, train, clip_apart, weight, rates, precision, shares
        )
        folder = None if run is None or config is None else folder_of(run, config, resume, team)
        loop = Loop(
            trainee, stepper, train, held_out, num_epochs, early_stopping, folder,
            [*callbacks, *bars] if is_first else [], run is not None,
        )  # fmt: skip
        loop.run(seed)
    history.execution = execution.how(stepper)
    return history


def _objective(objective: Any, trainee: Trainee) -> ELBO:
    if objective is None:
        return Trace_ELBO() if trainee.vae is None else TraceMeanField_ELBO()
    if not isinstance(objective, ELBO):
        raise TypeError(f"objective: expected an instance of ELBO; got {objective!r}; make one.")
    return objective


def _early_stopping(early_stopping: Any, validation: Any) -> EarlyStopping | None:
    if early_stopping is None:
        return None
    if validation is None:
        raise ValueError("early_stopping: expected validation data to stop by; got none; pass validation=...")
    return early_stopping if isinstance(early_stopping, EarlyStopping) else EarlyStopping(early_stopping)


def _kl_weight(kl_warmup: Any, train: Batches, device: Any) -> KLWeight | None:
    if kl_warmup is None:
        return None
    epochs = _checks.positive("kl_warmup", kl_warmup)
    return KLWeight(max(1, round(epochs * train.num_batches)), device)


class _Execution(NamedTuple):
    """The objective to train by, and why it runs as it is, if it does."""

    objective: ELBO
    why_as_it_is: str = ""

    def how(self, stepper: Stepper) -> str:
        """Say how the steps ran."""
        shares, pair = stepper.shares, (stepper.model, stepper.guide)
        together = "" if shares is None or shares.team is None else f"; {shares.team.size} processes"
        if self.why_as_it_is or not isinstance(self.objective, Objective):
            return f"as it is: {self.why_as_it_is}{together}"
        pairs = [pair] if shares is None else [*shares.pairs()]
        said = [self.objective.execution(*each) for each in pairs]
        return next((each for each in said if each.startswith("compiled")), said[0]) + together


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
        return _Execution(as_it_is(objective), why)
    if counterpart is None:
        return _Execution(objective)
    chosen = counterpart()
    chosen.__dict__.update(objective.__dict__)
    return _Execution(chosen)


def _rehearse(trainee: Trainee, objective: ELBO, train: Batches, batch_size: int) -> None:
    """Take a loss before anything trains: of one datum, or for a pair, which may know its batch, of the first batch.

    It shows whether the objective has a single loss, and which parameters there are. Also, a vectorised ELBO draws
    random numbers at its first call, to look at the plates.
    """
    trainee.train(False)
    batch = train.first() if trainee.vae is None else train.one()
    try:
        if trainee.vae is None:
            _refuse_without_data(trainee, batch)
        loss = trainee.note_parameters(lambda: objective.loss_and_grads(trainee.model, trainee.guide, *batch))
    except Exception as error:  # raised again, as it is
        if trainee.vae is None:
            refuse_automatic_points(trainee.guide, batch, {})
            add_note_of_bad_data(error, trainee, batch, train.rows(0, 0))
        raise
    refuse_automatic_points(trainee.guide, batch, {})
    trainee.zero_grad()
    if not isinstance(loss, (float, int)):
        raise TypeError(
            f"objective: expected an ELBO with one loss; got {type(objective).__name__}, which has {loss!r}."
        )
    if not trainee.parameters():
        raise ValueError(
            "program: expected parameters to train; got none that requires a gradient; register modules by "
            "pyro.module, and unfreeze them by requires_grad_(True)."
        )
    if 1 in (batch_size, train.num_data % batch_size):
        _rehearse_a_batch_of_one(trainee, objective, train, batch_size)


def _refuse_without_data(trainee: Trainee, batch: tuple[Any, ...]) -> None:
    """Refuse a model that observes nothing; most likely, it is the guide."""
    with forked_generator(trainee.device), poutine.block():
        guide = poutine.trace(trainee.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(trainee.model, trace=guide)).get_trace(*batch)
    if not model.observation_nodes:
        found = f"none, and {guide.observation_nodes[0]!r} in the guide" if guide.observation_nodes else "none"
        raise ValueError(
            f"program: expected a model that observes data by pyro.sample(..., obs=...); got {found}; pass the pair as "
            "(model, guide), in this order."
        )


def _rehearse_a_batch_of_one(trainee: Trainee, objective: ELBO, train: Batches, batch_size: int) -> None:
    """Take its loss in training mode, where a BatchNorm over rows alone cannot normalise one datum."""
    modules = [each for module in trainee.modules.values() for each in module.modules()]
    if not any(isinstance(module, BatchNorm) for module in modules):
        return
    buffers = [(buffer, buffer.clone()) for buffer in trainee.tensors().values() if not buffer.requires_grad]
    trainee.train()
    try:
        objective.loss_and_grads(trainee.model, trainee.guide, *train.one())
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        last = "the last batch" if train.num_data > 1 < batch_size else "each batch"
        raise ValueError(
            "batch_size: expected at least two data in each batch, for BatchNorm in training mode; got one datum in "
            f"{last}, of {train.num_data} data and batch_size={batch_size}; take another batch_size, pass "
            "drop_last=True, or replace BatchNorm by GroupNorm or LayerNorm."
        ) from error
    finally:
        trainee.train(False)
        trainee.zero_grad()
        for buffer, before in buffers:
            buffer.data.copy_(before)
