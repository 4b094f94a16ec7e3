"""Make a recorded graph cheaper on a CPU: images laid out channels last, and cheaper forms of slow operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae._private import OpOverload, arguments_of_operator, tree_leaves

__all__ = [
    "REWRITES",
    "Replacement",
    "bernoulli_log_prob_sum",
    "exp_of_negative",
    "linear",
    "rewrite",
    "rewritten",
    "sigmoid",
    "tanh",
    "with_channels_last",
]

aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
FRESH = {aten.empty.memory_format, aten.empty_strided.default, aten.zeros.default, aten.ones.default, aten.full.default}
READING_STRIDES = {
    *(aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.view_as_real.default),
    *(aten.empty_like.default, aten._reshape_alias.default),
}
MAX_FACTORS = 64  # of a product of numbers between 1 and 2, so that it stays exact to rounding
MIN_FACTORS = 4
VECTOR = 16  # floats that a CPU works on at once
END_OF_TANH = 7.90531110763549805
TANH_ABOVE = (
    *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
    *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
)
TANH_BELOW = 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03
EXPONENTIAL = (
    *(-0.005724458052787137, 0.03976272926661233, -0.166076441510225),
    *(0.49992721531741396, -0.999997386765695, 1.0),
)
"""A polynomial p whose eighth power is nearest to e^-8t, at its worst, where 8 t is between 0 and 18; p(0) is 1."""


class Replacement(NamedTuple):
    """A function that replaces a node, and what leads up to it."""

    node: Any
    fn: Callable[..., Tensor]
    args: tuple[Any, ...]


def rewritten(module: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    """Return a graph that computes the same from these inputs, and is cheaper."""
    module = with_channels_last(module, inputs)
    rewrite(module)
    return module


def rewrite(module: fx.GraphModule) -> None:
    """Replace what `REWRITES` lists by cheaper forms."""
    for node in list(module.graph.nodes):
        found = REWRITES[node.target](node) if node.target in REWRITES else None
        if found is not None:
            with node.graph.inserting_before(found.node):
                found.node.replace_all_uses_with(node.graph.call_function(found.fn, found.args))
    module.graph.eliminate_dead_code()
    module.recompile()


def _cheaper_tanh(node: Any) -> Replacement | None:
    value = node.meta.get("val")
    is_float = value is not None and value.dtype == torch.float32
    return Replacement(node, tanh, node.args) if is_float else None


def tanh(x: Tensor) -> Tensor:
    """Compute tanh to float32's rounding by a rational function, Eigen's; beyond its ends, tanh is 1 or -1."""
    x = x.clamp(-END_OF_TANH, END_OF_TANH)
    square = x * x
    return x * _polynomial(TANH_ABOVE, square) / _polynomial(TANH_BELOW, square)


def exp_of_negative(x: Tensor) -> Tensor:
    """Compute e^-x for x >= 0 to 6e-7."""
    if x.dtype != torch.float32:
        return torch.exp(-x)
    root = _polynomial(EXPONENTIAL, x.clamp(max=18) / 8)
    return root.square().square().square()


def _polynomial(terms: Sequence[float], x: Tensor) -> Tensor:
    return reduce(lambda value, term: value * x + term, terms[1:], torch.full_like(x, terms[0]))


def _cheaper_bernoulli(node: Any) -> Replacement | None:
    """Find Pyro's log p of Bernoulli pixels, viewed as a row, of which only the sum is used."""
    end = node
    for target in (aten.neg.default, aten.view.default, aten.sum.dim_IntList):
        if len(end.users) != 1 or next(iter(end.users)).target is not target:
            return None
        end = next(iter(end.users))
    logits, targets, *options = (*node.args, None, None, None)[:5]
    view, dims = end.args[0], end.args[1]
    shape = node.meta["val"].shape
    event_dim = len(shape) - len(view.meta["val"].shape) + 1
    is_plain = (
        options[:2] == [None, None] and options[2] == 0 and len(end.args) == 2 and not end.kwargs and list(dims) == [-1]
    )
    has_rows = event_dim > 0 and shape[:-event_dim] == view.meta["val"].shape[:-1]
    if is_plain and has_rows and max(map(_num_factors, shape[-event_dim:])) >= MIN_FACTORS:
        return Replacement(end, bernoulli_log_prob_sum, (logits, targets, event_dim))
    return None


def bernoulli_log_prob_sum(logits: Tensor, x: Tensor, event_dim: int) -> Tensor:
    r"""$\sum_d x_d l_d - \max(l_d, 0) - \log(1 + e^{-|l_d|})$, with one logarithm for a product of up to 64 terms."""
    dims = list(range(-event_dim, 0))
    along = max(dims, key=lambda dim: _num_factors(logits.shape[dim]))
    product = (
        (1 + exp_of_negative(logits.abs())).unflatten(along, (_num_factors(logits.shape[along]), -1)).prod(along - 1)
    )
    return (x * logits - logits.clamp(min=0)).sum(dims) - product.log().sum(dims)


def _cheaper_sigmoid(node: Any) -> Replacement | None:
    """Find the gradient sigmoid(l) - x of log p of Bernoulli pixels, where small numbers need no relative precision."""
    (logits,) = node.args
    of_pixels = aten.binary_cross_entropy_with_logits.default, bernoulli_log_prob_sum
    targets = [user.args[1] for user in logits.users if user.target in of_pixels]
    is_gradient = all(
        user.target is aten.sub.Tensor and user.args[0] is node and user.args[1] in targets and not user.kwargs
        for user in node.users
    )
    return Replacement(node, sigmoid, node.args) if is_gradient else None


def sigmoid(x: Tensor) -> Tensor:
    """Compute the sigmoid to 6e-7."""
    small = exp_of_negative(x.abs())
    return torch.where(x < 0, small, 1.0) / (1 + small)


def _num_factors(size: int) -> int:
    """Return the largest that divides a size, of those that leave whole vectors if there are such."""
    numbers = [number for number in range(1, MAX_FACTORS + 1) if size % number == 0]
    in_vectors = [number for number in numbers if size // number % VECTOR == 0]
    return max(in_vectors) if max(in_vectors, default=0) >= MIN_FACTORS else max(numbers)


def _cheaper_linear(node: Any) -> Replacement | None:
    return Replacement(node, linear, node.args) if len(node.args) == 3 and not node.kwargs else None


def linear(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add the bias in the loop that comes next, not by a pass of its own, which the compiler makes of any x @ w + b."""
    return x @ weight - (-bias)


REWRITES: dict[Any, Callable[[Any], Replacement | None]] = {
    aten.addmm.default: _cheaper_linear,
    aten.sigmoid.default: _cheaper_sigmoid,
    aten.tanh.default: _cheaper_tanh,
    aten.binary_cross_entropy_with_logits.default: _cheaper_bernoulli,
}
"""Maps an operation to a function that returns a node's replacement, or None."""


def with_channels_last(module: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    """Put the images of a graph's convolutions in channels-last layout, which is faster on a CPU.

    The compiler would do so itself, but it goes back and forth between layouts where a convolution and its gradient are
    in one graph. Outputs keep their layout.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    if not any(node.target in CONVOLUTIONS for node in nodes) or any(map(_depends_on_layout, nodes)):
        return module
    with torch.no_grad():
        return make_fx(_ChannelsLast(module).run, tracing_mode="fake")(*inputs)


def _depends_on_layout(node: fx.Node) -> bool:
    """Tell whether a node's result depends on the layout of its inputs, or it may write through a view."""
    target: Any = node.target
    if not isinstance(target, OpOverload):
        return False
    drawn = tree_leaves(node.meta["val"]) if torch.Tag.nondeterministic_seeded in target.tags else []
    draws_an_image = any(isinstance(each, Tensor) and each.ndim > 2 for each in drawn)
    expected = arguments_of_operator(target)
    given = {**dict(zip([each.name for each in expected], node.args, strict=False)), **node.kwargs}
    names = [each.name for each in expected if each.alias_info is not None and each.alias_info.is_write]
    written = [arg for arg in tree_leaves([given.get(name) for name in names]) if isinstance(arg, fx.Node)]
    writes_elsewhere = any(arg.op != "placeholder" and arg.target not in FRESH for arg in written)
    return draws_an_image or writes_elsewhere or target in READING_STRIDES


class _ChannelsLast(fx.Interpreter):
    """Runs a graph with its convolutions in channels-last layout."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in CONVOLUTIONS:
            args = tuple(map(_channels_last, args))
        if target is aten.view.default:  # a view would need the other layout
            return torch.reshape(*args)
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        graph: Any = self.module.graph
        (outputs,) = graph.output_node().args
        return tuple(
            _with_stride(tensor, node.meta["val"].stride()) for tensor, node in zip(args[0], outputs, strict=True)
        )


def _channels_last(arg: Any) -> Any:
    is_image = isinstance(arg, Tensor) and arg.ndim == 4
    return arg.contiguous(memory_format=torch.channels_last) if is_image else arg


def _with_stride(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    if tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
