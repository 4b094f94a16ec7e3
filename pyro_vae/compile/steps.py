"""The runs of a model and guide under an objective, as compiled graphs."""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._private import PYRO_STACK, StoreTables, TreeSpec, has_hooks, tree_flatten, tree_unflatten
from pyro_vae.compile.graph import kind_of, reason_of, recorded
from pyro_vae.compile.watch import PLAIN, TensorWatch, Watch
from pyro_vae.optim import FusedAdam

__all__ = ["GRADIENT", "UPDATE", "VALUE", "Call", "Kind", "NotCompilable", "Pair", "Ready"]

MAX_GRAPHS = 16
"""Graphs of one pair. Each takes seconds to compile: a program that needs more is better run eagerly."""
MAX_CHANGES = 16
"""Changes between calls, after which a program counts as one that always changes."""
MAX_STATES = 4
"""States among which a program may switch, such as training and evaluation mode."""


class NotCompilable(Exception):
    """The reason why a program cannot run as a graph."""


class NotNow(Exception):
    """Pyro has to run once more first, to make parameters or to take the optimizer's first step."""


class Pair:
    """A model and guide under an objective, with the graphs of their runs."""

    def __init__(self, objective: Any, model: Any, guide: Any) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.graphs: dict[Any, list[_Graph]] = {}
        self.seen: OrderedDict[Any, list[Watch]] = OrderedDict()
        """States of the program at calls of each kind that had no graph."""
        self.num_changes = 0
        self.num_compiled = 0
        """Calls that ran as graphs."""
        self.refused: set[Kind] = set()
        self.said: set[str] = set()
        self.takes_numbers = True

    def graph(self, kind: Kind, call: Call, optim: FusedAdam | None) -> Ready | None:
        """Return the graph of a call, compiled if one of its kind was seen before; None if none was."""
        if not self.takes_numbers:
            call = call.with_constants()
        key = kind, optim, call.key
        for graph in self.graphs.get(key, ()):
            if graph.change() is None:
                self.num_compiled += 1
                return Ready(graph, call.tensors)
        if not self._was_seen_as_it_is(kind, key, call):
            return None
        if self.num_graphs >= MAX_GRAPHS:
            raise self._refusal(kind, f"calls of more than {MAX_GRAPHS} kinds, such as other shapes")
        try:
            graph = _Graph(self, kind, call, optim)
        except NotNow:
            self.num_changes += 1
            return None
        except Exception as error:  # whatever the compiler fails on, Pyro can still run it
            if not call.numbers:
                raise self._refusal(
                    kind, str(error) if isinstance(error, NotCompilable) else reason_of(error)
                ) from error
            self.takes_numbers = False
            return self.graph(kind, call, optim)
        del self.seen[key]
        self.graphs.setdefault(key, []).append(graph)
        self.num_compiled += 1
        return Ready(graph, call.tensors)

    @property
    def num_graphs(self) -> int:
        return sum(map(len, self.graphs.values()))

    def say(self, objective: str, reason: str, instead: str) -> None:
        """Warn, once for each reason."""
        if reason not in self.said:
            self.said.add(reason)
            message = f"{objective}: expected a program that can be compiled; got {reason}; {instead}."
            warnings.warn(message, stacklevel=4)

    def _was_seen_as_it_is(self, kind: Kind, key: Any, call: Call) -> bool:
        """Tell whether the program is the same as at another call of this kind; if not, record its state."""
        states = self.seen.setdefault(key, [])
        changes = [state.change() for state in states]
        if None in changes:
            return True
        is_change = bool(changes) or len(self.seen) > MAX_GRAPHS
        self.num_changes += is_change
        if is_change and self.num_changes > MAX_CHANGES:
            what = f"a program in which {changes[-1]} differs" if changes else "arguments that differ"
            raise self._refusal(kind, f"{what} at each call")
        try:
            states.append(self.watch(call))
        except Exception as error:  # from attributes that run code, say
            raise self._refusal(kind, str(error) or type(error).__name__) from error
        del states[:-MAX_STATES]
        if len(self.seen) > MAX_GRAPHS:
            self.seen.popitem(last=False)
        return False

    def _refusal(self, kind: Kind, reason: str) -> NotCompilable:
        self.refused.add(kind)
        self.seen.clear()
        return NotCompilable(reason)

    def watch(self, call: Call) -> Watch:
        roots = {"model": self.model, "guide": self.guide, "objective": self.objective, "an argument": call.constants}
        return Watch(*roots.items())


class _Graph:
    """One kind of run, compiled, with the state that it assumes."""

    def __init__(self, pair: Pair, kind: Kind, call: Call, optim: FusedAdam | None) -> None:
        with _undoing(pair.watch(call)) as self.watch, poutine.block(), pyro.validation_enabled(False):
            graph = recorded(self._run_by(pair, kind, call, optim), *call.tensors)
            if any(tensor.grad_fn is not None for tensor in graph.tensors):
                raise NotCompilable("a tensor that is computed outside of the program and needs a gradient")
            self.run = graph.compiled(*call.tensors)
            original = call.with_constants()  # numbers as they were given
            run = self._run_by(pair, kind, original, optim)
            if optim is not None:
                optim.prepare()
            # Adam turns gradients of pure rounding into steps of full size: the updated parameters are not compared.
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

    def hand_over_parameters(self) -> None:
        """Add the parameters to the traces around the call, as Pyro's own run does: SVI trains what it finds there."""
        store = pyro.get_param_store()
        for handler in PYRO_STACK:
            for name in self.params:
                handler.trace.add_node(name, name=name, type="param", value=store[name])

    def _run_by(self, pair: Pair, kind: Kind, call: Call, optim: FusedAdam | None) -> Callable[..., tuple[Tensor, ...]]:
        """Make the function of tensors that the graph records; it notes parameters and leaves."""

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            args, kwargs = call.rebuilt(tensors)
            store = StoreTables.params()
            self.params: dict[str, Tensor] = {}

            def losses() -> tuple[Tensor, Tensor]:
                with poutine.trace(param_only=True) as capture:
                    found = pair.objective.losses(pair.model, pair.guide, *args, **kwargs)
                self.params.update((name, store[name]) for name in capture.trace.nodes)
                return found

            outputs, self.leaves = kind.run(losses, optim, self.params)
            return outputs

        return run

    def _has_hooks(self) -> bool:
        return any(has_hooks(leaf) for leaf in self.leaves)

    def _optimizer_is_as_it_was(self, optim: FusedAdam) -> bool:
        now = optim.parts()
        is_same = len(now) == len(self.optimizer_parts) and all(map(operator.is_, now, self.optimizer_parts))
        return is_same and all(param.grad is None for param in self.params.values())


@contextmanager
def _undoing(watch: Watch) -> Iterator[Watch]:
    """Undo what a run without values changes, and refuse it."""
    tables = [(table, dict(table)) for table in StoreTables.all()]
    error, change = None, None
    try:
        yield watch
        change = watch.change()
    except Exception as found:
        error = found
    makes_params = StoreTables.params().keys() != tables[0][1].keys()
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
    """Return the store's parameters that a graph depends on: those asked for, and those read directly."""
    names = StoreTables.names()
    return {**{names[tensor]: tensor for tensor in tensors if tensor in names}, **params}


class Ready(NamedTuple):
    """A graph with the tensors of a call."""

    graph: _Graph
    tensors: tuple[Tensor, ...]

    def __call__(self) -> tuple[Tensor, ...]:
        if PYRO_STACK:
            self.graph.hand_over_parameters()
        return self.graph.run(*self.tensors)

    @property
    def leaves(self) -> list[Tensor]:
        return self.graph.leaves

    @property
    def params(self) -> dict[str, Tensor]:
        return self.graph.params


class Call(NamedTuple):
    """The arguments of a call, split into tensors and constants."""

    key: Any
    """The same for calls that one graph can run, all else being equal."""
    spec: TreeSpec | None
    """None for tensors alone, without names."""
    tensors: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    """The arguments, with `_TENSOR` in the place of each tensor."""
    numbers: dict[int, float]
    """Numbers that became tensors, by their place among the arguments."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            return cls._parted([*args], None, {})
        leaves, spec = tree_flatten((args, kwargs))
        numbers = {place: leaf for place, leaf in enumerate(leaves) if type(leaf) is float}
        for place, number in numbers.items():
            leaves[place] = torch.tensor(number)
        return cls._parted(leaves, spec, numbers)

    @classmethod
    def _parted(cls, leaves: list[Any], spec: TreeSpec | None, numbers: dict[int, float]) -> Call:
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if any(tensor.requires_grad for tensor in tensors):
            raise NotCompilable("an argument that needs a gradient")
        constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = spec, torch.get_default_dtype(), tuple(map(kind_of, tensors)), tuple(map(_key_of, constants))
        return cls(key, spec, tensors, constants, numbers)

    def with_constants(self) -> Call:
        """Return the call with its numbers as they were given."""
        leaves = self._leaves(self.tensors)
        for place, number in self.numbers.items():
            leaves[place] = number
        return self._parted(leaves, self.spec, {})

    def rebuilt(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rebuild the arguments with other tensors."""
        return (tensors, {}) if self.spec is None else tree_unflatten(self._leaves(tensors), self.spec)

    def _leaves(self, tensors: tuple[Tensor, ...]) -> list[Any]:
        remaining = iter(tensors)
        return [next(remaining) if leaf is _TENSOR else leaf for leaf in self.constants]


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
    """Find the tensors on which a loss depends and that need its gradient."""
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
