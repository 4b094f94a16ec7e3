"""A function of tensors as one compiled graph, without the Python that made it."""

from __future__ import annotations

import logging
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyro_vae import _checks
from pyro_vae._private import (
    DisableTorchFunction,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    compile_module,
    tree_map,
    without_validation_of_values,
)
from pyro_vae._random import forked_generator
from pyro_vae.compile.rewrites import rewritten

__all__ = ["Graph", "compiled", "device_of", "kind_of", "reason_of", "recorded", "with_gradients"]

aten = torch.ops.aten
LITERALS = {aten.lift_fresh.default, aten.lift_fresh_copy.default}  # what torch.tensor(3.0) does inside of a function
LOOKING = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__float__, Tensor.__int__),
    *(Tensor.__index__, Tensor.__contains__),
}
MAX_KEPT = 128
"""Compiled graphs kept in a process."""


class Graph(NamedTuple):
    """A recorded function of tensors: `module(*tensors, *args)` returns its outputs as a tuple."""

    module: fx.GraphModule
    tensors: tuple[Tensor, ...]
    """Tensors that the function closes over, such as parameters: read, and changed in place, at each call."""

    def compiled(self, *args: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """Compile the graph for tensors of these shapes. It draws the random numbers that the function would.

        Graphs with the same operations on tensors of the same kinds share their code, whatever the tensors are.
        """
        inputs = [*self.tensors, *args]
        key = self.module.code, torch.get_default_dtype(), tuple(map(kind_of, inputs)), tuple(_places(inputs))
        if key not in _code:
            _code[key] = _machine_code(self.module, inputs)
            if len(_code) > MAX_KEPT:
                _code.popitem(last=False)
        run = _code[key]

        def call(*args: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return tuple(run(*self.tensors, *args))

        return call

    def check(
        self,
        run: Callable[[], tuple[Tensor, ...]],
        fn: Callable[[], tuple[Tensor, ...]],
        together: Sequence[Sequence[Tensor]] = (),
        unchecked: Sequence[Tensor] = (),
        rounding: float = 0.0,
    ) -> None:
        """Compare the compiled graph to `fn`, from the same tensors and state of the generator; undo both runs.

        The outputs after the first, and each group of tensors in `together`, are compared to the rounding of the
        largest number among them: that of their type, or `rounding` if that is more. Tensors in `unchecked` are not.

        Raises:
            ValueError: if they differ: in what they return, in what they do to tensors, or in the numbers they draw.
        """
        before = [tensor.detach().clone() for tensor in self.tensors]
        one, other = (self._outcome(each, before) for each in (run, fn))
        if not torch.equal(one.generator, other.generator):
            raise ValueError("random numbers that differ when compiled")
        places = {id(tensor): place for place, tensor in enumerate(self.tensors)}
        groups = [[places.pop(id(tensor)) for tensor in group if id(tensor) in places] for group in together]
        for tensor in unchecked:
            places.pop(id(tensor), None)
        pairs = [
            (one.outputs[:1], other.outputs[:1]),
            (one.outputs[1:], other.outputs[1:]),
            *(
                ([one.tensors[place] for place in group], [other.tensors[place] for place in group])
                for group in (*groups, *([place] for place in places.values()))
            ),
        ]
        if not all(_are_close(*pair, rounding) for pair in pairs):
            raise ValueError("compiled and eager results that differ")

    def _outcome(self, run: Callable[[], tuple[Tensor, ...]], before: list[Tensor]) -> _Outcome:
        """Run, record what is returned and left behind, and undo it."""
        device = device_of(*self.tensors)
        with forked_generator(device), _without_checks():
            outputs = [tensor.detach() for tensor in run()]
            tensors = [tensor.detach().clone() for tensor in self.tensors]
            state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        with torch.no_grad():
            for tensor, value in zip(self.tensors, before, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        return _Outcome(outputs, tensors, state)


class _Outcome(NamedTuple):
    outputs: list[Tensor]
    tensors: list[Tensor]
    generator: Tensor


_code: OrderedDict[Any, Callable[..., Any]] = OrderedDict()


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what a graph assumes about a tensor."""
    is_marked = tensor.is_neg(), tensor.is_conj()
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad, tensor.layout, is_marked


def _places(tensors: list[Tensor]) -> Iterator[int]:
    """For each tensor, find the first that shares its memory: the compiler must know when one is changed in place."""
    firsts: dict[int, int] = {}
    for place, tensor in enumerate(tensors):
        yield firsts.setdefault(tensor.untyped_storage().data_ptr(), place)


def _are_close(some: list[Tensor], others: list[Tensor], rounding: float) -> bool:
    """Compare to the rounding of a long sum. NaN and infinity must be in the same places."""
    inexact = [other for other in others if other.dtype in TOLERANCES and other.numel()]
    largest = max((other.abs().nan_to_num(0, 0, 0).max().item() for other in inexact), default=0)
    for one, other in zip(some, others, strict=True):
        tolerance = max(TOLERANCES[other.dtype], rounding) if other.dtype in TOLERANCES else 0.0
        if not torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=tolerance > 0):
            return False
    return True


TOLERANCES = {
    **{torch.float16: 0.1, torch.bfloat16: 0.1, torch.float32: 1e-3, torch.complex64: 1e-3},
    **{torch.float64: 1e-8, torch.complex128: 1e-8},
}


def _machine_code(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    device = device_of(*inputs)
    options = {"fallback_random": True}
    if device.type == "cpu":
        module = rewritten(module, inputs)
        options["layout_optimization"] = False
    # Autotuning draws random numbers; restore the generator.
    with torch.no_grad(), forked_generator(device), _without_asides():
        try:
            return compile_module(module, inputs, options)
        except Exception as error:  # torch 2.15 fails on some loops that it fuses on a CPU: let it fuse fewer
            reason = reason_of(error)
            code = compile_module(module, inputs, {**options, "max_fusion_size": 4})
    _checks.warn(
        f"compile: expected code from torch's compiler with its own settings; got {reason}; it fuses at most four "
        "operations, which may be slower."
    )
    return code


@contextmanager
def _without_asides() -> Iterator[None]:
    """Silence the compiler's remarks about itself, such as a missing GPU or its use of deprecated names."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def recorded(fn: Callable[..., tuple[Tensor, ...]], *args: Tensor) -> Graph:
    """Record what `fn` does to tensors, by one run on tensors without values.

    So it must not branch on values, which raises an error. No tensor that it closes over changes, and no random number
    is drawn.

    Raises:
        Exception: any error of the function or of the recorder.
    """
    with _without_checks(), forked_generator(device_of(*args)), _refusing_numbers_by_chance():
        tensors = _closed_over(fn, args)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            places = dict(zip(map(id, tensors), inputs, strict=False))
            with _InPlaceOf(places, _refuse_new):
                return fn(*inputs[len(tensors) :])

        return _lifted(make_fx(run, tracing_mode="fake")(*tensors, *args), tensors)


def compiled(fn: Callable[..., tuple[Tensor, ...]], *example: Tensor) -> Callable[..., Any]:
    """Compile `fn` for tensors of these shapes; if that fails, warn of the reason and return `fn` itself.

    Tensors that the function closes over are read at each call, but must stay the same objects.
    """
    try:
        graph = recorded(fn, *example)
        run = graph.compiled(*example)
        rounding = max((TOLERANCES.get(tensor.dtype, 0.0) for tensor in (*graph.tensors, *example)), default=0.0)
        graph.check(lambda: run(*example), lambda: fn(*example), rounding=rounding)
        return run
    except Exception as error:  # whatever the compiler fails on, the function itself still runs
        _checks.warn(f"compile: expected a model that can be compiled; got {reason_of(error)}; it runs as it is.")
        return fn


def with_gradients(value: Tensor, gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return a value with the gradients that a graph found for it: it can be differentiated by the inputs, once.

    The gradient of each element by an input has the value's dimensions in front, which are summed where the input lacks
    them: it is `(2, P, ...)` for a value `(2, P)` and an input `(P, ...)`.
    """
    return _WithGradients.apply(value, *gradients, *inputs)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_and_inputs: Tensor) -> Tensor:
        number = len(gradients_and_inputs) // 2
        ctx.save_for_backward(*gradients_and_inputs[:number])
        ctx.shapes = [each.shape for each in gradients_and_inputs[number:]]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for gradient, shape in zip(ctx.saved_tensors, ctx.shapes, strict=True):
            weights = upstream.reshape((*upstream.shape, *(1,) * (gradient.ndim - upstream.ndim))).to(gradient.dtype)
            found.append((weights * gradient).sum_to_size(shape))
        return (None, *(None for _ in found), *found)


def reason_of(error: Exception) -> str:
    """Return the first line of the error that caused this one."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def device_of(*tensors: Tensor) -> torch.device:
    """Return the GPU that one of these is on, or the CPU."""
    return next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))


@contextmanager
def _without_checks() -> Iterator[None]:
    """Disable value checks: fake tensors hold no values."""
    with without_validation_of_values(), _checks.trusting_values():
        yield


@contextmanager
def _refusing_numbers_by_chance() -> Iterator[None]:
    """Raise if Python's or numpy's generator was used: its number would be the same in each run of the graph."""
    numbers, more_numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
        if random.getstate() != numbers:
            raise ValueError("a number drawn by Python's random; draw with torch")
        if repr(np.random.get_state()) != repr(more_numbers):  # noqa: NPY002
            raise ValueError("a number drawn by numpy.random; draw with torch")
    finally:
        random.setstate(numbers)
        np.random.set_state(more_numbers)  # noqa: NPY002


def _closed_over(fn: Callable[..., Any], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Find the tensors that `fn` uses besides its arguments: the only ones in its run that have values."""
    found: list[Tensor] = []
    with FakeTensorMode() as mode:

        def without_values(tensor: Tensor) -> Tensor:
            found.append(tensor)
            with DisableTorchFunction():  # from_tensor reads values itself
                return mode.from_tensor(tensor)

        inputs = [mode.from_tensor(arg) for arg in args]
        with _InPlaceOf({}, without_values), _RefusingValues():
            fn(*inputs)
    return tuple(found)


class _InPlaceOf(TorchDispatchMode):
    """Puts the inputs of a graph in the place of the tensors that they stand for.

    Without it the recorder would treat a tensor of one element as a constant, though its number may differ at the next
    call, and would change the tensor when it records an operation in place.
    """

    def __init__(self, inputs: dict[int, Tensor], make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inputs, self.make = inputs, make

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LITERALS:
            return func(*args, **(kwargs or {}))
        originals: dict[int, Tensor] = {}

        def replaced(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
                return leaf
            if id(leaf) not in self.inputs:
                self.inputs[id(leaf)] = self.make(leaf)
            originals[id(self.inputs[id(leaf)])] = leaf
            return self.inputs[id(leaf)]

        outputs = func(*tree_map(replaced, args), **tree_map(replaced, kwargs or {}))
        return tree_map(lambda leaf: originals.get(id(leaf), leaf), outputs)


class _RefusingValues(TorchFunctionMode):
    """Raises an error where the program reads a number that is known only when it runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKING and getattr(args[0], "constant", None) is None:
            raise ValueError(f"a look at a number in a tensor of shape {tuple(args[0].shape)}, by {func.__name__}")
        return func(*args, **(kwargs or {}))


def _refuse_new(tensor: Tensor) -> Tensor:
    raise ValueError(f"a tensor of shape {tuple(tensor.shape)} that is made anew in each run, and not by torch")


def _lifted(module: fx.GraphModule, tensors: tuple[Tensor, ...]) -> Graph:
    """Make literal tensors inputs too: the compiler takes no tensors from a module."""
    graph = module.graph
    first = next(iter(graph.nodes))
    literals = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        literals.append(getattr(module, node.target))
        with graph.inserting_before(first):
            node.replace_all_uses_with(graph.placeholder(f"literal_{len(literals)}"))
        graph.erase_node(node)
    graph.eliminate_dead_code()
    return Graph(fx.GraphModule({}, graph), (*literals, *tensors))
