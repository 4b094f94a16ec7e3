"""Pyro's ELBOs as compiled graphs."""

from __future__ import annotations

import operator
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_identically_zero
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyro_vae._watch import PLAIN, TensorWatch, Watch
from pyro_vae.graphs import kind_of, reason_of, recorded
from pyro_vae.optim import FusedAdam

__all__ = ["CompiledTraceMeanField_ELBO", "CompiledTrace_ELBO"]

MAX_GRAPHS = 16
"""Of one model and guide. Each takes seconds to compile: a program that needs more of them is better run as it is."""
MAX_CHANGES = 16
"""As often, what a program reads may change between two calls, before it counts as a program that always changes."""
MAX_PROGRAMS = 16
"""Pairs of a model and a guide, with their graphs, that an objective keeps: the last."""
MAX_STATES = 4
"""In which a program may take turns, such as training and evaluation mode."""


class NotCompilable(Exception):
    """Why a program has no graph that would stand for it."""


class NotNow(Exception):
    """Pyro has to run once more before: to make parameters, or to take the optimizer's first step."""


class _CompiledELBO(ELBO):
    """An ELBO of Pyro's whose value, gradient and update are graphs, from the second call of a kind on.

    The first call of a kind, and the first after a change of something that the program reads, is Pyro's own: with its
    validation, and making the parameters.
    """

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """-ELBO, nats, summed over the data: a number, without gradients."""
        graph = self._graph(_value, model, guide, args, kwargs)
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
        graph = self._graph(_gradient, model, guide, args, kwargs) if torch.is_grad_enabled() else None
        if graph is None:
            return super().loss_and_grads(model, guide, *args, **kwargs)
        loss, *gradients = graph()
        if graph.params:  # as Pyro does: a program without parameters of the store is not differentiated
            for leaf, gradient in zip(graph.leaves, gradients, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return _number(loss)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-ELBO, nats, summed over the data, as a tensor that can be differentiated, once."""
        graph = self._graph(_gradient if torch.is_grad_enabled() else _value, model, guide, args, kwargs)
        if graph is None:
            return super().differentiable_loss(model, guide, *args, **kwargs)
        loss, *gradients = graph()
        warn_if_nan(loss, "loss")
        return _Differentiable.apply(loss, gradients, *graph.leaves) if gradients else loss

    def update(self, model: Any, guide: Any, optim: FusedAdam, *args: Any, **kwargs: Any) -> Tensor | None:
        """Loss, gradient and the optimizer's step in one graph; None, and nothing done, while there is none."""
        graph = self._graph(_update, model, guide, args, kwargs, optim) if torch.is_grad_enabled() else None
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
    ) -> _Ready | None:
        """The graph that stands for this call; None if the call is to be Pyro's own."""
        program = self._program_of(model, guide)
        if kind in program.refused:
            return None
        try:
            _refuse_surroundings()
            return program.graph(kind, _Call.of(args, kwargs), optim)
        except NotCompilable as reason:
            program.say(type(self).__name__, str(reason), kind.instead)
        return None

    def _program_of(self, model: Any, guide: Any) -> _Program:
        programs: OrderedDict[Any, _Program] = self.__dict__.setdefault("_programs", OrderedDict())
        key = _identity(model), _identity(guide), self.num_particles, self.vectorize_particles
        if key not in programs:
            programs[key] = _Program(self, model, guide)
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
    class of torch's. A gradient of the gradient is an error. An objective keeps the last 16 pairs of model and guide.

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


class _Program:
    """A model and guide under an objective, with the graphs of their runs."""

    def __init__(self, elbo: _CompiledELBO, model: Any, guide: Any) -> None:
        self.elbo, self.model, self.guide = elbo, model, guide
        self.graphs: dict[Any, list[_Graph]] = {}
        self.seen: OrderedDict[Any, list[Watch]] = OrderedDict()
        """As what the program was seen at calls of each kind that had no graph."""
        self.num_changes = 0
        self.refused: set[Kind] = set()
        self.said: set[str] = set()
        self.takes_numbers = True

    def graph(self, kind: Kind, call: _Call, optim: FusedAdam | None) -> _Ready | None:
        """The graph of a call, compiled if one of its kind was seen before; None if none was."""
        if not self.takes_numbers:
            call = call.with_constants()
        key = kind, optim, call.key
        for graph in self.graphs.get(key, ()):
            if graph.change() is None:
                return _Ready(graph, call.tensors)
        if not self._was_seen_as_it_is(kind, key, call):
            return None
        if sum(map(len, self.graphs.values())) >= MAX_GRAPHS:
            raise self._refusal(kind, f"calls of more than {MAX_GRAPHS} kinds, such as other shapes")
        try:
            graph = _Graph(self, kind, call, optim)
        except NotNow:
            self.num_changes += 1
            return None
        except Exception as error:  # whatever a compiler may stumble over, Pyro can still run it
            if not call.numbers:
                raise self._refusal(
                    kind, str(error) if isinstance(error, NotCompilable) else reason_of(error)
                ) from error
            self.takes_numbers = False
            return self.graph(kind, call, optim)
        del self.seen[key]
        self.graphs.setdefault(key, []).append(graph)
        return _Ready(graph, call.tensors)

    def say(self, objective: str, reason: str, instead: str) -> None:
        """Warn, once for each reason."""
        if reason not in self.said:
            self.said.add(reason)
            message = f"{objective}: expected a program that can be compiled; got {reason}; {instead}."
            warnings.warn(message, stacklevel=4)

    def _was_seen_as_it_is(self, kind: Kind, key: Any, call: _Call) -> bool:
        """Whether the program was what it is at another call of this kind; if not, it is looked at."""
        states = self.seen.setdefault(key, [])
        changes = [state.change() for state in states]
        if None in changes:
            return True
        is_change = bool(changes) or len(self.seen) > MAX_GRAPHS
        self.num_changes += is_change
        if is_change and self.num_changes > MAX_CHANGES:
            what = f"a program of which {changes[-1]} is another" if changes else "arguments that are others"
            raise self._refusal(kind, f"{what} at each call")
        try:
            states.append(self.watch(call))
        except Exception as error:  # of attributes that run code, say
            raise self._refusal(kind, str(error) or type(error).__name__) from error
        del states[:-MAX_STATES]
        if len(self.seen) > MAX_GRAPHS:
            self.seen.popitem(last=False)
        return False

    def _refusal(self, kind: Kind, reason: str) -> NotCompilable:
        self.refused.add(kind)
        self.seen.clear()
        return NotCompilable(reason)

    def watch(self, call: _Call) -> Watch:
        roots = {"model": self.model, "guide": self.guide, "objective": self.elbo, "an argument": call.constants}
        return Watch(*roots.items())


class _Graph:
    """One kind of run, compiled, with what it takes for granted."""

    def __init__(self, program: _Program, kind: Kind, call: _Call, optim: FusedAdam | None) -> None:
        with _undoing(program.watch(call)) as self.watch, poutine.block(), pyro.validation_enabled(False):
            graph = recorded(self._run_by(program, kind, call, optim), *call.tensors)
            if any(tensor.grad_fn is not None for tensor in graph.tensors):
                raise NotCompilable("a tensor that is computed outside of the program and needs a gradient")
            self.run = graph.compiled(*call.tensors)
            original = call.with_constants()  # numbers as they were given
            run = self._run_by(program, kind, original, optim)
            if optim is not None:
                optim.prepare()
            # Adam makes steps of full size of gradients that are nothing but rounding, which nobody can compare.
            moments = [] if optim is None else optim.moments()
            updated = [] if optim is None else self.leaves
            graph.check(lambda: self.run(*call.tensors), lambda: run(*original.tensors), moments, updated)
        self.tensors = TensorWatch(graph.tensors)
        self.store = _store_entries(graph.tensors, self.params)
        self.optim = optim
        self.optimizer_parts = [] if optim is None else optim.parts()
        if self._has_hooks():
            raise NotCompilable("a hook on the gradient of a parameter")

    def change(self) -> str | None:
        """What is not any more as it was when the run was recorded; None if all is."""
        store = pyro.get_param_store()._params
        for name, param in self.store.items():
            if store.get(name) is not param:
                return f"parameter {name!r}"
        if self.optim is not None and not self._optimizer_is_as_it_was(self.optim):
            return "the optimizer"
        if self._has_hooks():
            return "a hook on the gradient of a parameter"
        return self.watch.change() or self.tensors.change()

    def hand_over_parameters(self) -> None:
        """To the handlers around the call, as Pyro's own run would: SVI's, which asks what to train."""
        store = pyro.get_param_store()
        for handler in _PYRO_STACK:
            for name in self.params:
                handler.trace.add_node(name, name=name, type="param", value=store[name])

    def _run_by(
        self, program: _Program, kind: Kind, call: _Call, optim: FusedAdam | None
    ) -> Callable[..., tuple[Tensor, ...]]:
        """What the graph is to do, as a function of tensors; it notes parameters and leaves."""

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            args, kwargs = call.rebuilt(tensors)
            store = pyro.get_param_store()._params
            self.params: dict[str, Tensor] = {}

            def loss() -> Tensor:
                with poutine.trace(param_only=True) as capture:
                    value = program.elbo._loss_tensor(program.model, program.guide, args, kwargs)
                self.params.update((name, store[name]) for name in capture.trace.nodes)
                return value

            outputs, self.leaves = kind.run(loss, optim, self.params)
            return outputs

        return run

    def _has_hooks(self) -> bool:
        return any(leaf._backward_hooks or leaf._post_accumulate_grad_hooks for leaf in self.leaves)

    def _optimizer_is_as_it_was(self, optim: FusedAdam) -> bool:
        now = optim.parts()
        is_same = len(now) == len(self.optimizer_parts) and all(map(operator.is_, now, self.optimizer_parts))
        return is_same and all(param.grad is None for param in self.params.values())


@contextmanager
def _undoing(watch: Watch) -> Iterator[Watch]:
    """Leave nothing of a run without values: what it changed is put back, and refused."""
    store = pyro.get_param_store()
    tables = [(table, dict(table)) for table in (store._params, store._param_to_name, store._constraints)]
    error, change = None, None
    try:
        yield watch
        change = watch.change()
    except Exception as found:
        error = found
    makes_params = store._params.keys() != tables[0][1].keys()
    watch.undo()
    for table, before in tables:
        table.clear()
        table.update(before)
    if makes_params:
        raise NotNow from error
    if error is not None:
        raise error
    if change is not None:
        raise NotCompilable(f"a program that changes {change} in its run")


def _store_entries(tensors: tuple[Tensor, ...], params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the parameter store, what a graph stands on: what the program asked for, and what it read unasked."""
    names = pyro.get_param_store()._param_to_name
    return {**{names[tensor]: tensor for tensor in tensors if tensor in names}, **params}


class _Ready(NamedTuple):
    """A graph with the tensors of a call."""

    graph: _Graph
    tensors: tuple[Tensor, ...]

    def __call__(self) -> tuple[Tensor, ...]:
        if _PYRO_STACK:
            self.graph.hand_over_parameters()
        return self.graph.run(*self.tensors)

    @property
    def leaves(self) -> list[Tensor]:
        return self.graph.leaves

    @property
    def params(self) -> dict[str, Tensor]:
        return self.graph.params


class _Call(NamedTuple):
    """The arguments of a call, parted into tensors and what is no tensor."""

    key: Any
    """The same for calls that one graph can stand for, all else being equal."""
    spec: TreeSpec | None
    """None for tensors alone, without names."""
    tensors: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    """The arguments, with `_TENSOR` in the place of each tensor."""
    numbers: dict[int, float]
    """Those of the tensors that were given as numbers, by their place among the arguments."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            return cls._parted([*args], None, {})
        leaves, spec = tree_flatten((args, kwargs))
        numbers = {place: leaf for place, leaf in enumerate(leaves) if type(leaf) is float}
        for place, number in numbers.items():
            leaves[place] = torch.tensor(number)
        return cls._parted(leaves, spec, numbers)

    @classmethod
    def _parted(cls, leaves: list[Any], spec: TreeSpec | None, numbers: dict[int, float]) -> _Call:
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if any(tensor.requires_grad for tensor in tensors):
            raise NotCompilable("an argument that needs a gradient")
        constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = spec, torch.get_default_dtype(), tuple(map(kind_of, tensors)), tuple(map(_key_of, constants))
        return cls(key, spec, tensors, constants, numbers)

    def with_constants(self) -> _Call:
        """The call with its numbers as they were given."""
        leaves = self._leaves(self.tensors)
        for place, number in self.numbers.items():
            leaves[place] = number
        return self._parted(leaves, self.spec, {})

    def rebuilt(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other tensors."""
        return (tensors, {}) if self.spec is None else tree_unflatten(self._leaves(tensors), self.spec)

    def _leaves(self, tensors: tuple[Tensor, ...]) -> list[Any]:
        remaining = iter(tensors)
        return [next(remaining) if leaf is _TENSOR else leaf for leaf in self.constants]


_TENSOR = object()


def _key_of(constant: Any) -> Any:
    is_value = isinstance(constant, PLAIN) and not isinstance(constant, slice)
    return (type(constant), constant) if is_value else id(constant)


class Kind(NamedTuple):
    """What is computed in a graph."""

    run: Callable[[Callable[[], Tensor], FusedAdam | None, dict[str, Tensor]], tuple[tuple[Tensor, ...], list[Tensor]]]
    """From the function that takes the loss, and notes parameters: the outputs, and the leaves with a gradient."""
    instead: str
    """What happens where it has no graph."""


def _run_value(loss: Callable[[], Tensor], *_: Any) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    with torch.no_grad():
        return (loss(),), []


def _run_gradient(loss: Callable[[], Tensor], *_: Any) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    with torch.enable_grad():
        value = loss()
        leaves = _leaves(value)
        gradients = torch.autograd.grad(value, leaves) if leaves else ()
    return (value.detach(), *gradients), leaves


def _run_update(
    loss: Callable[[], Tensor], optim: FusedAdam | None, params: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    assert optim is not None
    (value, *gradients), leaves = _run_gradient(loss)
    if {*leaves} != {*params.values()}:
        raise NotCompilable("parameters with a gradient that are not those of the store")
    if not optim.can_update(leaves):
        raise NotNow
    with torch.no_grad():
        optim.update(leaves, gradients)
    return (value,), leaves


_value = Kind(_run_value, "it runs as it is")
_gradient = Kind(_run_gradient, "it runs as it is")
_update = Kind(_run_update, "gradient and update are run apart")


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors on which a loss depends, and which need its gradient."""
    found: dict[Tensor, None] = {}
    seen = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found[node.variable] = None
            waiting.extend(function for function, _ in node.next_functions)
    return list(found)


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
