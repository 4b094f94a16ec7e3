"""Pyro's ELBOs as compiled graphs."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from typing import Any

import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_identically_zero
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from pyro_vae._runs import GRADIENT, UPDATE, VALUE, Call, Kind, NotCompilable, Program, Ready
from pyro_vae.optim import FusedAdam

__all__ = ["CompiledTraceMeanField_ELBO", "CompiledTrace_ELBO"]

MAX_PROGRAMS = 16
"""Pairs of a model and a guide, with their graphs, that an objective keeps: the last."""


class _CompiledELBO(ELBO):
    """An ELBO of Pyro's whose value, gradient and update are graphs, from the second call of a kind on.

    The first call of a kind, and the first after a change of something that the program reads, is Pyro's own: with its
    validation, and making the parameters.
    """

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """-ELBO, nats, summed over the data: a number, without gradients."""
        graph = self._graph(VALUE, model, guide, args, kwargs)
        if graph is None:
            return super().loss(model, guide, *args, **kwargs)
        (loss,) = graph()
        return _number(loss)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """-ELBO, nats, summed over the data; its gradient is added to that of each parameter."""
        optim = _optimizer_of(sys._getframe(1))
        loss = None if optim is None else self.update(model, guide, optim, *args, **kwargs)
        if optim is not None and loss is not None:
            number = _number(loss)
            optim.has_stepped()
            return number
        graph = self._graph(GRADIENT, model, guide, args, kwargs) if torch.is_grad_enabled() else None
        if graph is None:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        loss, *gradients = graph()
        if graph.params:  # as Pyro does: a program without parameters of the store is not differentiated
            for leaf, gradient in zip(graph.leaves, gradients, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return _number(loss)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO, nats, summed over the data, as a tensor that can be differentiated, once."""
        graph = self._graph(GRADIENT if torch.is_grad_enabled() else VALUE, model, guide, args, kwargs)
        if graph is None:
            return super().differentiable_loss(model, guide, *args, **kwargs)
        loss, *gradients = graph()
        warn_if_nan(loss, "loss")
        return _Differentiable.apply(loss, gradients, *graph.leaves) if gradients else loss

    def update(self, model: Any, guide: Any, optim: FusedAdam, *args: Any, **kwargs: Any) -> Tensor | None:
        """Loss, gradient and the optimizer's step in one graph; None, and nothing done, while there is none."""
        graph = self._graph(UPDATE, model, guide, args, kwargs, optim) if torch.is_grad_enabled() else None
        if graph is None:
            return None
        optim.prepare()
        (loss,) = graph.graph.run(*graph.tensors)  # who updates needs no parameters handed over
        return loss

    def _graph(
        self,
        kind: Kind,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        optim: FusedAdam | None = None,
    ) -> Ready | None:
        """The graph that stands for this call; None if the call is to be Pyro's own."""
        program = self._program_of(model, guide)
        if kind in program.refused:
            return None
        try:
            _refuse_surroundings()
            return program.graph(kind, Call.of(args, kwargs), optim)
        except NotCompilable as reason:
            program.say(type(self).__name__, str(reason), kind.instead)
        return None

    def _program_of(self, model: Any, guide: Any) -> Program:
        programs: OrderedDict[Any, Program] = self.__dict__.setdefault("_programs", OrderedDict())
        key = _identity(model), _identity(guide), self.num_particles, self.vectorize_particles
        if key not in programs:
            programs[key] = Program(self, model, guide)
            if len(programs) > MAX_PROGRAMS:
                programs.popitem(last=False)
        programs.move_to_end(key)
        return programs[key]

    def _loss_tensor(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Pyro's loss, of which no number is taken."""
        total: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and not is_identically_zero(site["score_parts"].score_function):
                    raise NotCompilable(f"latent site {name!r}, which is not reparametrized")
            with _NumbersStayTensors():
                _, loss = self._differentiable_loss_particle(model_trace, guide_trace)
            total = total + loss / self.num_particles
        if not isinstance(total, Tensor):
            raise NotCompilable("no sample site")
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_programs"}


class CompiledTrace_ELBO(_CompiledELBO, Trace_ELBO):
    r"""Pyro's `Trace_ELBO`, compiled: the same constructor, value and gradient, without Pyro's time for each step.

    $-\mathrm{ELBO} = -E_q[\log p(x, z) - \log q(z|x)]$, in nats, summed over the data, estimated from
    `num_particles` draws. In `SVI`, as a module with an optimizer of torch's, and in `fit`. With `FusedAdam` in `SVI`,
    value, gradient and update are one graph.

    The first call with arguments of new shapes is Pyro's own, with its validation; the second records a run of model
    and guide and compiles it, which takes seconds, and checks it: the graph and the program are run from the same
    random numbers, and must agree. From then on nothing is validated, and each value is what Pyro's own would be for
    the same random numbers, to rounding. Parameters and buffers are read at each call. So is what else the program
    reads, attributes, items, closures, globals: after a change the next call is Pyro's own again, and a graph of the
    changed program follows.

    Any model and guide of static structure with reparametrized latents will do: plates, subsampling, `poutine.scale`
    and `mask` inside of the model, further arguments (of which tensors and floats may change from call to call),
    buffers, dropout. Where there is no graph, because of a branch on a value, a discrete latent, a handler around the
    call, autocast, state that cannot be seen, or more than 16 kinds of call, a warning says so once, with the reason,
    and the call is Pyro's own.

    Not seen are changes of what a program reads past these ways: a file, the clock, an attribute of a tensor or of a
    class of torch's, a hook on all modules. A gradient of the gradient is an error. An objective keeps the last 16
    pairs of model and guide.

    Examples:
        >>> import pyro, torch
        >>> from pyro.infer import SVI
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormal(1), pv.Gaussian(pv.nn.MLP(1, [], 3)), pv.DiagonalNormal(pv.nn.MLP(3, [], 2))
        ... )
        >>> svi = SVI(vae.model, vae.guide, pv.FusedAdam({"lr": 1e-3}), pv.CompiledTrace_ELBO())
        >>> x = torch.randn(500, 3)
        >>> svi.step(x) > 0  # by Pyro; the next are compiled
        True
    """


class CompiledTraceMeanField_ELBO(_CompiledELBO, TraceMeanField_ELBO):
    """Pyro's `TraceMeanField_ELBO`, compiled: the KL divergence in closed form, where there is one.

    All else is as in `CompiledTrace_ELBO`.
    """


class _NumbersStayTensors(TorchFunctionMode):
    """Pyro takes the loss as a number besides the one it differentiates: a run without values has none to take."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].detach() if func is Tensor.item else func(*args, **(kwargs or {}))


class _Differentiable(torch.autograd.Function):
    """A loss whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, None, *(upstream * gradient for gradient in ctx.gradients)


def _refuse_surroundings() -> None:
    """What lies around a call, and would have a say in each of its operations."""
    if not all(type(handler) is TraceMessenger and handler.param_only for handler in _PYRO_STACK):
        raise NotCompilable(
            "a call inside a handler, such as a plate or poutine.scale: put the handler inside the model"
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise NotCompilable("a call under autocast")


def _optimizer_of(frame: types.FrameType) -> FusedAdam | None:
    """The optimizer of the SVI whose `step` this is.

    Between gradient and update a step does nothing that could tell whether they are one graph: so there, and nowhere
    else, they may be.
    """
    if frame.f_code is not SVI.step.__code__ or len(_PYRO_STACK) != 1:
        return None
    optim = frame.f_locals["self"].optim
    return optim if type(optim) is FusedAdam else None


def _identity(program: Any) -> Any:
    """A bound method is made anew each time that it is looked up."""
    if isinstance(program, types.MethodType):
        return id(program.__self__), id(program.__func__)
    return id(program)


def _number(loss: Tensor) -> float:
    number = loss.item()
    warn_if_nan(number, "loss")
    return number
