"""Adam for all parameters at once, as one of Pyro's optimizers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae import _checks

__all__ = ["FusedAdam"]

ADAMS_OPTIONS = {"lr", "betas", "eps", "weight_decay"}
CLIP = "clip_grad_norm"
OPTIONS = {*ADAMS_OPTIONS, CLIP}

CLIPPING = (
    'the norm of the gradient is clipped by FusedAdam({"lr": 1e-3, "clip_grad_norm": 10.0}), and each of its numbers '
    "by pyro.optim.ClippedAdam"
)
SCHEDULE = "pass functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=60), say"


class FusedAdam(PyroOptim):
    r"""Adam as one of Pyro's optimizers, with one torch optimizer for all parameters instead of one for each.

    $m \leftarrow \beta_1 m + (1 - \beta_1) g$, $v \leftarrow \beta_2 v + (1 - \beta_2) g^2$ and
    $\theta \leftarrow \theta - \text{lr}\, \hat m / (\sqrt{\hat v} + \epsilon)$, where
    $\hat m = m / (1 - \beta_1^t)$ and $\hat v = v / (1 - \beta_2^t)$: the steps of `pyro.optim.Adam`. In `pv.SVI`
    with a compiled ELBO the update is part of the ELBO's graph.

    Args:
        optim_args: `lr` (1e-3 by default), `betas`, `eps` and `weight_decay` of `torch.optim.Adam`; or a function from
            a parameter's name to such a dictionary, for parameters that need others. Also `clip_grad_norm`, in a
            dictionary alone: the largest norm of the gradient of all parameters together, to which a larger one is
            scaled, as by `torch.nn.utils.clip_grad_norm_`.
        lr_scheduler: makes a torch learning-rate schedule for a torch optimizer, such as
            `functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=60)`; each call of `step` advances it,
            which `fit` makes after each epoch.

    Attributes:
        clip_grad_norm: that norm, or None. It may be set later, also beside a function of names.

    There is no `clip_args`. With `pyro.optim.ClippedAdam`, or with `pyro.optim.Adam` and its `clip_args`, a compiled
    ELBO has a graph of value and gradient, and the update is the optimizer's own.

    Its state has the form of `pyro.optim.Adam`'s: what `get_state` or `save` of one returns or writes, `set_state` or
    `load` of the other reads.

    Raises:
        TypeError, ValueError: for an option that Adam lacks, a value that it cannot have, or no schedule (a dictionary
            of `clip_args`, say), when it is made; for options from a function of names, at the first step.

    References:
        Kingma and Ba (2015), Adam: a method for stochastic optimization.

    Examples:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
        >>> svi = pv.SVI(model, lambda x: None, pv.FusedAdam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        >>> losses = [svi.step(torch.full((10,), 2.0)) for _ in range(100)]
        >>> round(pyro.param("loc").item(), 1)
        2.0
    """

    def __init__(
        self,
        optim_args: dict[str, Any] | Callable[[str], dict[str, Any]],
        lr_scheduler: Callable[[Adam], LRScheduler] | None = None,
    ) -> None:
        if not callable(optim_args):
            _check_options(optim_args)
        if lr_scheduler is not None:
            _check_schedule(lr_scheduler)
        super().__init__(Adam, optim_args)
        self.clip_grad_norm: float | None = None if callable(optim_args) else optim_args.get(CLIP)
        self.lr_scheduler = lr_scheduler
        self.optimizers: list[Adam] = []
        """One for each set of options."""
        self.schedulers: list[LRScheduler] = []
        self._rates: dict[Adam, Tensor] = {}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take one step for each parameter that has a gradient or had one before, and clear the gradients."""
        params = set(params)
        if not params:
            raise ValueError(
                "params: expected parameters to train; got none: all are frozen, or no module was registered by "
                "pyro.module; unfreeze one by requires_grad_(True), or take no steps."
            )
        for param in sorted(params - self.optim_objs.keys(), key=_name):
            self._add(param)
        for param in params:
            if param.grad is None and self.optim_objs[param].state.get(param):
                param.grad = torch.zeros_like(param)  # as in Pyro's, its momentum moves it
            self._lay_out(param)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(sorted(params, key=_name), self.clip_grad_norm)
        with _without_gradients(self.optim_objs.keys() - params):
            for optimizer in self.optimizers:
                optimizer.step(*args, **kwargs)
        for param in params:
            param.grad = None

    def _lay_out(self, param: Tensor) -> None:
        """Lay out gradient and moments in memory as the parameter is: torch's fused step assumes it."""
        if param.grad is not None and param.grad.stride() != param.stride():
            param.grad = torch.empty_like(param).copy_(param.grad)
        state = self.optim_objs[param].state.get(param, {})
        for name, value in state.items():
            if value.shape == param.shape and value.stride() != param.stride():
                state[name] = torch.empty_like(param).copy_(value)

    def step(self, *args: Any) -> None:
        """Advance the learning-rate schedule by one step, if there is one."""
        for scheduler in self.schedulers:
            scheduler.step(*args)

    def get_state(self) -> dict[str, Any]:
        """Return the state of each parameter, by its name in Pyro's store."""
        return {_name(param): self._state_of(param) for param in self.optim_objs}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Restore a state: at once for parameters that were seen before, for others when they are first seen."""
        known = {_name(param): param for param in self.optim_objs}
        for name in state_dict.keys() & known.keys():
            self._restore(known[name], state_dict[name])
        super().set_state({name: state for name, state in state_dict.items() if name not in known})

    def load(self, filename: str, map_location: Any = None) -> None:
        """Read a state from a file that holds nothing but numbers and tensors.

        Raises:
            OSError: for a file that cannot be read.
            ValueError: for a file that `save` has not written; the state is then as it was.
        """
        try:
            states = torch.load(filename, map_location=map_location, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's reader raises errors of many kinds for other bytes
            raise _no_state(filename, str(error) or type(error).__name__) from error
        if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
            raise _no_state(filename, type(states).__name__)
        self.set_state(states)

    def _add(self, param: Tensor) -> None:
        options = self._get_optim_args(param)
        _check_options(options, ADAMS_OPTIONS if callable(self.pt_optim_args) else OPTIONS)
        options = {name: value for name, value in options.items() if name != CLIP}
        own = Adam([param], **options, fused=param.is_floating_point())  # the fused step takes real numbers only
        optimizer = next((each for each in self.optimizers if each.defaults == own.defaults), own)
        if optimizer is own:
            self.optimizers.append(optimizer)
            self._rates[optimizer] = torch.tensor(0.0, dtype=torch.float64, device=param.device)
            if self.lr_scheduler is not None:
                self.schedulers.append(self.lr_scheduler(optimizer))
        else:
            optimizer.param_groups[0]["params"].append(param)
        self.optim_objs[param] = optimizer
        state = self._state_waiting_to_be_consumed.pop(_name(param), None)
        if state is not None:
            self._restore(param, state)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        """Return a parameter's state in Pyro's form: an optimizer of its own, with its schedule if it has one."""
        optimizer = self.optim_objs[param]
        group = {**optimizer.param_groups[0], "params": [0]}
        state = {0: _copied(optimizer.state[param])} if optimizer.state.get(param) else {}
        found = {"state": state, "param_groups": [group]}
        if not self.schedulers:
            return found
        return {"scheduler": self.schedulers[self.optimizers.index(optimizer)].state_dict(), "optimizer": found}

    def _restore(self, param: Tensor, state: dict[str, Any]) -> None:
        optimizer = self.optim_objs[param]
        if "scheduler" in state:
            if self.schedulers:
                self.schedulers[self.optimizers.index(optimizer)].load_state_dict(state["scheduler"])
            state = state["optimizer"]
        group = state["param_groups"][0]
        optimizer.param_groups[0].update(
            {name: value for name, value in group.items() if name in {*ADAMS_OPTIONS, "initial_lr"}}
        )
        optimizer.state.pop(param, None)
        if state["state"]:
            tensors = _copied(state["state"][0])
            optimizer.state[param] = {name: value.to(param.device) for name, value in tensors.items()}

    def update(self, params: list[Tensor], gradients: Iterable[Tensor]) -> None:
        """Take one step of Adam in plain tensor operations, which a graph can record."""
        if self.clip_grad_norm is not None:
            gradients = _clipped([*gradients], self.clip_grad_norm)
        gradient_of = dict(zip(params, gradients, strict=True))
        for optimizer in self.optimizers:
            own = [param for param in params if self.optim_objs[param] is optimizer]
            for dtype in dict.fromkeys(param.dtype for param in own):
                updated = [param for param in own if param.dtype == dtype]
                _update(optimizer, updated, [gradient_of[param] for param in updated], self._rates[optimizer])

    def can_update(self, params: Iterable[Tensor]) -> bool:
        """Tell whether each of these has taken a step before, is real, and has no gradient waiting to be added."""
        return all(
            p in self.optim_objs and self.optim_objs[p].state.get(p) and p.grad is None and p.is_floating_point()
            for p in params
        )

    def prepare(self) -> None:
        """Set the current learning rates, before a recorded step."""
        for optimizer, rate in self._rates.items():
            rate.fill_(optimizer.param_groups[0]["lr"])

    def moments(self) -> list[list[Tensor]]:
        """Return the running means of all gradients, and those of their squares."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]

    def parts(self) -> list[Any]:
        """Return what a recorded step uses besides the learning rates: it is valid as long as these are the same."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        options = [option for optimizer in self.optimizers for option in _options(optimizer)]
        tensors = itertools.chain.from_iterable([state.values() for state in states])
        return [*states, *tensors, *options, self.clip_grad_norm]


def _options(optimizer: Adam) -> tuple[Any, ...]:
    group = optimizer.param_groups[0]
    return group["betas"], group["eps"], group["weight_decay"]


def _update(optimizer: Adam, params: list[Tensor], gradients: list[Tensor], rate: Tensor) -> None:
    (beta1, beta2), eps, weight_decay = _options(optimizer)
    states = [optimizer.state[param] for param in params]
    steps = torch.stack([state["step"] + 1 for state in states]).double()
    step_sizes = _computed_once((rate / (1 - beta1**steps)).to(params[0].dtype))
    corrections = _computed_once((1 - beta2**steps).rsqrt().to(params[0].dtype))
    for i, (param, gradient, state) in enumerate(zip(params, gradients, states, strict=True)):
        state["step"].add_(1)
        decayed = gradient + weight_decay * param if weight_decay else gradient
        state["exp_avg"].lerp_(decayed, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(decayed, decayed, value=1 - beta2)
        param.sub_(step_sizes[i] * state["exp_avg"] / (state["exp_avg_sq"].sqrt() * corrections[i] + eps))


def _clipped(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Scale gradients to this norm of all together, if theirs is larger, as `torch.nn.utils.clip_grad_norm_` does."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = _computed_once((largest / (norm + 1e-6)).clamp(max=1.0))
    return [gradient * factor.to(gradient.dtype) for gradient in gradients]


def _computed_once(x: Tensor) -> Tensor:
    """Return `x` as a reduction: the compiler would recompute an elementwise value for each weight that uses it."""
    return x.expand(16, *x.shape).amax(0)  # for fewer it makes no loop


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _no_state(filename: str, found: str) -> ValueError:
    found = found.splitlines()[0][:200]
    return ValueError(f"filename: expected a state that save wrote; got {str(filename)!r} ({found}); name another.")


def _name(param: Tensor) -> str:
    return pyro.get_param_store().param_name(param)


@contextmanager
def _without_gradients(params: Iterable[Tensor]) -> Iterator[None]:
    """Hide the gradients of parameters that another objective trains, so that they do not move here."""
    gradients = {param: param.grad for param in params}
    for param in gradients:
        param.grad = None
    yield
    for param, gradient in gradients.items():
        param.grad = gradient


def _check_options(options: Any, allowed: set[str] = OPTIONS) -> None:
    if not isinstance(options, dict) or not options.keys() <= allowed:
        unknown = sorted(map(str, options.keys() - allowed)) if isinstance(options, dict) else []
        raise TypeError(
            f"optim_args: expected a dictionary of {', '.join(sorted(allowed))}; got {options!r}"
            f"{', which has ' + ', '.join(map(repr, unknown)) if unknown else ''}; {_instead_of(unknown)}."
        )
    rate = options.get("lr", 1e-3)
    if type(rate) not in (int, float) or rate != 0:  # 0 leaves a parameter as it is
        _checks.positive("optim_args: lr, the learning rate", rate)
    if options.get(CLIP) is not None:
        _checks.positive(f"optim_args: {CLIP}", options[CLIP])
    try:
        Adam([torch.zeros(1)], **{name: value for name, value in options.items() if name != CLIP})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optim_args: expected values that torch.optim.Adam takes; got {options!r}, and from it an error, {error}; "
            "correct that value."
        ) from error


def _instead_of(unknown: list[str]) -> str:
    """Say what to do about options that Adam, or this optimizer, lacks."""
    if CLIP in unknown:
        return "the norm is that of all parameters together: set the optimizer's attribute clip_grad_norm instead"
    if any("clip" in name for name in unknown):
        return CLIPPING
    if any("rate" in name for name in unknown):
        return "the learning rate is called lr"
    return "other options of Adam's need pyro.optim.Adam"


def _check_schedule(lr_scheduler: Any) -> None:
    """Check a schedule by making one for an unused optimizer."""
    got, cause = repr(lr_scheduler), None
    if callable(lr_scheduler) and not isinstance(lr_scheduler, PyroOptim):
        try:
            schedule = lr_scheduler(Adam([torch.zeros(1)]))
            if isinstance(schedule, LRScheduler):
                return
            got = f"{schedule!r} from it"
        except TypeError as error:
            got, cause = f"an error from it, {error}", error
    raise TypeError(
        f"lr_scheduler: expected a function from a torch optimizer to a schedule of its learning rate; got {got}; "
        f"{CLIPPING if isinstance(lr_scheduler, dict) else SCHEDULE}."
    ) from cause
