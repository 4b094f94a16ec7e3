"""The runs of a model and guide under an objective, as compiled graphs."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._private import PYRO_STACK, StoreTables, has_hooks, tree_flatten, tree_unflatten
from pyro_vae.compile.capture import Launch, can_be_captured
from pyro_vae.compile.graph import Graph, device_of, kind_of, reason_of, recorded
from pyro_vae.compile.watch import PLAIN, TensorWatch, Watch
from pyro_vae.optim import FusedAdam

__all__ = ["GRADIENT", "UPDATE", "VALUE", "Kind", "NotCompilable", "Pair", "announcing"]

_tell: ContextVar[Callable[[], None]] = ContextVar("tell", default=lambda: None)


@contextmanager
def announcing(tell: Callable[[], None]) -> Iterator[None]:
    """Call a function before each graph is compiled here, which takes seconds."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)


MAX_GRAPHS = 16
"""Graphs of one pair. Each takes seconds to compile: a program that needs more is better run eagerly."""
MAX_SEEN = 16
"""States in which a program was last seen: a step and an evaluation may take turns, with training mode on and off."""
MAX_CHANGES = 16
"""Changes between calls, after which a program counts as one that always changes."""


class NotCompilable(Exception):
    """The reason why a program cannot run as a graph."""


class NotNow(Exception):
    """Pyro has to run once more first, to make parameters or to take the optimizer's first step."""


class Pair:
    """A model and guide under an objective, with the graphs of their runs."""

    def __init__(self, objective: Any, model: Any, guide: Any) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.graphs: dict[Any, list[_Graph]] = {}
        self.seen: list[tuple[Any, Watch]] = []
        """States of the program at the last calls that had no graph, with what identifies the calls."""
        self.num_changes = 0
        self.num_compiled = 0
        """Calls that ran as graphs."""
        self.refused: set[Kind] = set()
        self.said: set[str] = set()
        self.why_numbers_are_constants = ""
        """Why floats among the arguments are no inputs of a graph, if they are not."""

    def run(
        self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], optim: FusedAdam | None
    ) -> tuple[_Graph, tuple[Tensor, ...]] | None:
        """Run a call as a graph, compiled if one of its kind was seen before; None if none was."""
        call = Call(args, kwargs, takes_numbers=not self.why_numbers_are_constants)
        key = kind, optim, call.key
        graph = next((graph for graph in self.graphs.get(key, ()) if graph.change() is None), None)
        if graph is None:
            if not self._was_seen_as_it_is(kind, key, call):
                return None
            self.seen = [each for each in self.seen if each[0] != key]
            if self.num_graphs >= MAX_GRAPHS:
                why = self.why_numbers_are_constants
                others = f"other numbers, which are constants because of {why}" if why else "other shapes"
                raise self._refusal(kind, f"calls of more than {MAX_GRAPHS} kinds, such as {others}")
            _tell.get()()
            try:
                graph = _Graph(self, kind, call, optim)
            except NotNow:
                self._count_change(kind, "parameters to make, or gradients that wait,")
                return None
            except Exception as error:  # whatever the compiler fails on, Pyro can still run it
                reason = str(error) if isinstance(error, NotCompilable) else reason_of(error)
                if not call.has_numbers:
                    raise self._refusal(kind, reason) from error
                self.why_numbers_are_constants = reason
                return None
            self.graphs.setdefault(key, []).append(graph)
        return graph, graph(*call.tensors)

    @property
    def num_graphs(self) -> int:
        return sum(map(len, self.graphs.values()))

    def say(self, objective: str, reason: str, instead: str) -> None:
        """Warn, once for each reason."""
        if reason not in self.said:
            self.said.add(reason)
            message = f"{objective}: expected a program that can be compiled; got {reason}; {instead}."
            warnings.warn(message, stacklevel=4)

    def watch(self, call: Call) -> Watch:
        roots = {"model": self.model, "guide": self.guide, "objective": self.objective, "an argument": call.constants}
        return Watch(*roots.items())

    def _was_seen_as_it_is(self, kind: Kind, key: Any, call: Call) -> bool:
        """Tell whether the program is the same as at another call of this kind; if not, record its state."""
        changes = [state.change() for other, state in self.seen if other == key]
        if None in changes:
            return True
        if changes or len(self.seen) == MAX_SEEN:
            what = f"a program in which {changes[-1]} differs" if changes else "arguments that differ"
            self._count_change(kind, what)
        try:
            self.seen = [*self.seen, (key, self.watch(call))][-MAX_SEEN:]
        except Exception as error:  # from attributes that run code, say
            raise self._refusal(kind, str(error) or type(error).__name__) from error
        return False

    def _count_change(self, kind: Kind, what: str) -> None:
        self.num_changes += 1
        if self.num_changes > MAX_CHANGES:
            raise self._refusal(kind, f"{what} at each call")

    def _refusal(self, kind: Kind, reason: str) -> NotCompilable:
        self.refused.add(kind)
        self.seen = [each for each in self.seen if each[0][0] is not kind]
        return NotCompilable(reason)


class _Graph:
    """One kind of run, compiled, with the state that it assumes."""

    def __init__(self, pair: Pair, kind: Kind, call: Call, optim: FusedAdam | None) -> None:
        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
            store = StoreTables.params()
            self.params: dict[str, Tensor] = {}

            def losses() -> tuple[Tensor, Tensor]:
                with poutine.trace(param_only=True) as capture:
                    found = pair.objective.losses(pair.model, pair.guide, *args, **kwargs)
                self.params.update((name, store[name]) for name in capture.trace.nodes)
                return found

            outputs, self.leaves = kind.run(losses, optim, self.params)
            return outputs

        self.pair, self.optim = pair, optim
        with _undoing(pair.watch(call)) as self.watch, poutine.block(), pyro.validation_enabled(False):
            graph = recorded(lambda *tensors: run(*call.rebuilt(tensors)), *call.tensors)
            if any(tensor.grad_fn is not None for tensor in graph.tensors):
                raise NotCompilable("a tensor that is computed outside of the program and needs a gradient")
            self.run: Callable[..., tuple[Tensor, ...]] = graph.compiled(*call.tensors)
            if optim is not None:
                optim.prepare()
            # Adam turns gradients of pure rounding into steps of full size: the updated parameters are not compared.
            moments = [] if optim is None else optim.moments()
            updated = [] if optim is None else self.leaves

            def check() -> None:
                graph.check(lambda: self.run(*call.tensors), lambda: run(call.args, call.kwargs), moments, updated)

            check()
            self._capture(graph, call.tensors, check)
        names = StoreTables.names()
        self.store = {**{names[tensor]: tensor for tensor in graph.tensors if tensor in names}, **self.params}
        """Parameters of the store: those that the program reads directly, and those that it asks for."""
        self.tensors = TensorWatch(graph.tensors)
        self.optimizer_parts = [] if optim is None else optim.parts()
        if self._has_hooks():
            raise NotCompilable("a hook on the gradient of a parameter")

    def _capture(self, graph: Graph, args: tuple[Tensor, ...], check: Callable[[], None]) -> None:
        """On a GPU, launch all kernels at once, if that gives the same numbers."""
        tensors = *graph.tensors, *args
        device = device_of(*tensors)
        if not can_be_captured(graph.module, tensors, device):
            return
        kernel_by_kernel = self.run
        self.run = Launch(kernel_by_kernel, args, device)
        try:
            check()
        except ValueError as error:
            self.run = kernel_by_kernel
            objective = type(self.pair.objective).__name__
            self.pair.say(objective, f"{reason_of(error)}, in a CUDA graph", "each kernel is launched by itself")

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.pair.num_compiled += 1
        if self.optim is not None:
            self.optim.prepare()
        for handler in PYRO_STACK:  # as Pyro's own run does: SVI trains what it finds in the trace around the call
            for name in self.params:
                handler.trace.add_node(name, name=name, type="param", value=pyro.get_param_store()[name])
        return self.run(*tensors)

    def change(self) -> str | None:
        """Name what has changed since the run was recorded; None if nothing has."""
        store = StoreTables.params()
        for name, param in self.store.items():
            if store.get(name) is not param:
                return f"parameter {name!r}"
        if self.optim is not None and not self._optimizer_is_as_it_was(self.optim):
            return "the optimizer"
        if self._has_hooks():
            return "a hook on the gradient of a parameter"
        return self.watch.change() or self.tensors.change()

    def _has_hooks(self) -> bool:
        return any(map(has_hooks, self.leaves))

    def _optimizer_is_as_it_was(self, optim: FusedAdam) -> bool:
        now = optim.parts()
        is_same = len(now) == len(self.optimizer_parts) and all(map(operator.is_, now, self.optimizer_parts))
        return is_same and all(param.grad is None for param in self.params.values())


@contextmanager
def _undoing(watch: Watch) -> Iterator[Watch]:
    """Undo what a run without values changes, and refuse it."""
    tables = [(table, dict(table)) for table in StoreTables.all()]
    params = {*StoreTables.params()}
    try:
        yield watch
        if StoreTables.params().keys() != params:  # as after the store was cleared: the next run makes them
            raise NotNow
        if (change := watch.change()) is not None:
            raise NotCompilable(f"a program that changes {change} in its run")
    except Exception as error:  # raised again, unless parameters were missing: then the next run shows it
        if StoreTables.params().keys() != params:
            raise NotNow from error
        raise
    finally:
        watch.undo()
        for table, before in tables:
            table.clear()
            table.update(before)


class Call:
    """The arguments of a call, split into tensors and constants."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], takes_numbers: bool) -> None:
        self.args, self.kwargs = args, kwargs
        leaves, self.spec = tree_flatten((args, kwargs))
        self.has_numbers = takes_numbers and float in map(type, leaves)
        if self.has_numbers:  # they may differ at the next call
            leaves = [torch.tensor(leaf) if type(leaf) is float else leaf for leaf in leaves]
        self.tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if any(tensor.requires_grad for tensor in self.tensors):
            raise NotCompilable("an argument that needs a gradient")
        self.constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        kinds, constants = tuple(map(kind_of, self.tensors)), tuple(map(_key_of, self.constants))
        self.key = self.spec, torch.get_default_dtype(), kinds, constants
        """The same for calls that one graph can run, all else being equal."""

    def rebuilt(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rebuild the arguments with other tensors."""
        remaining = iter(tensors)
        return tree_unflatten([next(remaining) if leaf is _TENSOR else leaf for leaf in self.constants], self.spec)


_TENSOR = object()


def _key_of(constant: Any) -> Any:
    is_value = isinstance(constant, PLAIN) and not isinstance(constant, slice)
    return (type(constant), constant) if is_value else id(constant)


Losses = Callable[[], tuple[Tensor, Tensor]]
"""Computes the value and the surrogate of an objective."""
Outputs = tuple[tuple[Tensor, ...], list[Tensor]]
"""What a graph returns, and the tensors whose gradients it takes."""


class Kind(NamedTuple):
    """What is computed in a graph."""

    run: Callable[[Losses, FusedAdam | None, dict[str, Tensor]], Outputs]
    """Run the function of value and surrogate, which records parameters; return outputs and leaves."""
    instead: str
    """What happens where it has no graph."""


def _run_value(losses: Losses, *_: Any) -> Outputs:
    with torch.no_grad():
        return (losses()[0],), []


def _run_gradient(losses: Losses, *_: Any) -> Outputs:
    with torch.enable_grad():
        value, surrogate = losses()
        leaves = _leaves(surrogate)
        gradients = torch.autograd.grad(surrogate, leaves) if leaves else ()
    return (value.detach(), *gradients), leaves


def _run_update(losses: Losses, optim: FusedAdam | None, params: dict[str, Tensor]) -> Outputs:
    assert optim is not None
    (value, *gradients), leaves = _run_gradient(losses)
    if {*leaves} != {*params.values()}:
        raise NotCompilable("parameters with a gradient that are not those of the store")
    if not optim.can_update(leaves):
        raise NotNow
    with torch.no_grad():
        optim.update(leaves, gradients)
    return (value,), leaves


VALUE = Kind(_run_value, "it runs as it is")
GRADIENT = Kind(_run_gradient, "it runs as it is")
UPDATE = Kind(_run_update, "gradient and update are run apart")


def _leaves(loss: Tensor) -> list[Tensor]:
    """Find the tensors on which a loss depends and that need its gradient; not draws that an objective made leaves."""
    found: dict[Tensor, None] = {}
    seen = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable") and not getattr(node.variable, "is_draw", False):
                found[node.variable] = None
            waiting.extend(function for function, _ in node.next_functions)
    return list(found)
