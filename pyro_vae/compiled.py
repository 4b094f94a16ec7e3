"""A run of a Pyro program as one compiled graph, without Pyro's handlers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import _checks
from pyro_vae._structure import forked_generator

__all__ = ["compiled"]

aten = torch.ops.aten
MAX_FACTORS = 16  # of a product of numbers between 1 and 2, so that it stays exact to rounding
MIN_FACTORS = 4


def compiled(fn: Callable[..., Any], *example: Tensor) -> Callable[..., Any]:
    """`fn` on tensors of these shapes, as a compiled graph; `fn` itself, with a warning that says why, if it has none.

    The function is run once on tensors without values, which records what it does to them. So it must not branch on
    values: that is found, and refused. Random numbers are drawn as they were, in the same order. Tensors that the
    function closes over, such as parameters, are read at each call, but must stay the same tensors.
    """
    try:
        with _checks.trusting_values():
            graph = make_fx(fn, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
        if example[0].device.type == "cpu":
            _rewrite(graph)
        # The compiler runs at the first call, whose random numbers nobody must miss.
        with torch._inductor.config.patch(fallback_random=True), forked_generator(example[0].device):
            run = torch.compile(graph, dynamic=False)
            run(*example)
        return run
    except Exception as error:  # whatever a compiler may stumble over, the function itself still runs
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"compile: expected a model that can be compiled; got {reason}; it runs as it is.", stacklevel=2)
        return fn


def _rewrite(module: fx.GraphModule) -> None:
    """Put cheaper forms in the place of two functions that are slow on a CPU."""
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if node.target is aten.tanh.default and value is not None and value.dtype == torch.float32:
            _replace(node, node, _tanh, node.args)
        elif node.target is aten.binary_cross_entropy_with_logits.default:
            _rewrite_bernoulli(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _rewrite_bernoulli(node: Any) -> None:
    """log p of Bernoulli pixels where only their sum is used: as Pyro writes it, the pixels in the last dimension."""
    end = node
    for target in (aten.neg.default, aten.view.default, aten.sum.dim_IntList):
        if len(end.users) != 1 or next(iter(end.users)).target is not target:
            return
        end = next(iter(end.users))
    logits, targets, *options = (*node.args, None, None, None)[:5]
    view, dims = end.args[0], end.args[1]
    shapes = [each.meta["val"].shape for each in (node, view)]
    is_plain = options[:2] == [None, None] and options[2] == 0 and len(end.args) == 2
    if is_plain and list(dims) == [-1] and shapes[0] == shapes[1] and _num_factors(shapes[0][-1]) >= MIN_FACTORS:
        _replace(end, node, _bernoulli_log_prob_sum, (logits, targets))


def _replace(node: Any, before: Any, fn: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    with node.graph.inserting_before(before):
        node.replace_all_uses_with(node.graph.call_function(fn, args))


def _num_factors(size: int) -> int:
    return max(number for number in range(1, MAX_FACTORS + 1) if size % number == 0)


def _tanh(x: Tensor) -> Tensor:
    """To an absolute error of float32's rounding, by one exponential."""
    return 1 - 2 / (torch.exp(2 * x) + 1)


def _bernoulli_log_prob_sum(logits: Tensor, x: Tensor) -> Tensor:
    r"""$\sum_d x_d l_d - \max(l_d, 0) - \log(1 + e^{-|l_d|})$, with one logarithm for a product of up to 16 terms."""
    size = logits.shape[-1]
    terms = (1 + torch.exp(-logits.abs())).unflatten(-1, (_num_factors(size), -1))
    product = math.prod(terms.unbind(-2))
    return (x * logits - logits.clamp(min=0)).sum(-1) - product.log().sum(-1)
