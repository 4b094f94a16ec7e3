"""Discrete latents that are summed out of a model or guide: enumerated in a run, and eliminated from its densities."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import opt_einsum
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["NOTHING", "Summed", "at_one_value", "log_sum", "summing"]


class Summed(NamedTuple):
    """Discrete latent sites that are enumerated, and summed out."""

    names: frozenset[str] = frozenset()
    expanded: frozenset[str] = frozenset()
    """Those of them whose values have all batch dimensions, as `config_enumerate(..., expand=True)` makes them."""

    def only(self, names: Iterable[str]) -> Summed:
        """Keep those of these names."""
        return Summed(self.names.intersection(names), self.expanded.intersection(names))

    def __bool__(self) -> bool:
        return bool(self.names)


NOTHING = Summed()


class _Marked(Messenger):
    """Mark the sites to be enumerated, and no others, whatever the program says."""

    def __init__(self, summed: Summed) -> None:
        super().__init__()
        self.summed = summed

    def _pyro_sample(self, msg: Any) -> None:
        name, infer = msg["name"], dict(msg["infer"])
        infer.pop("enumerate", None)
        if name in self.summed.names:
            infer.pop("num_samples", None)
            infer |= {"enumerate": "parallel", "expand": name in self.summed.expanded}
        msg["infer"] = infer


def summing(fn: Callable[..., Any], summed: Summed, first_dim: int) -> Callable[..., Any]:
    """Make a program that gives these sites all their values at once, in dimensions from `first_dim` to the left."""
    return poutine.enum(_Marked(summed)(fn), first_available_dim=first_dim)


def at_one_value(trace: poutine.Trace, summed: Summed, place: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Select one of the values of each enumerated site, counted modulo their number.

    Returns:
        The values, and a function for each site of the run that selects its log density at them.
    """
    places, owners = {}, {}
    for name in summed.names & trace.nodes.keys():
        infer = trace.nodes[name]["infer"]
        dim = infer["_enumerate_dim"]
        owners[infer["_dim_to_id"][dim]] = name
        places[name] = place % trace.nodes[name]["value"].shape[dim - trace.nodes[name]["fn"].event_dim]

    def selected(value: Tensor, infer: Mapping[str, Any], event_dim: int = 0) -> Tensor:
        for dim, identity in infer.get("_dim_to_id", {}).items():
            if -dim <= value.ndim - event_dim and value.shape[dim - event_dim] > 1:
                value = value.narrow(dim - event_dim, places[owners[identity]], 1)
        return value

    values = {}
    for name in places:
        site = trace.nodes[name]
        values[name] = selected(site["value"], site["infer"], site["fn"].event_dim)
    pickers = {name: partial(selected, infer=site["infer"]) for name, site in trace.nodes.items() if "infer" in site}
    return values, pickers


def log_sum(trace: poutine.Trace, log_probs: Mapping[str, Tensor], kept: Mapping[int, int]) -> Tensor:
    r"""$\log \sum_c \prod_i p_i$ over all values c of the enumerated sites of a run, for each draw and datum.

    Pyro's tensor variable elimination sums a chain or a tree in the order that is cheapest, and plates inside of a
    datum each for themselves (Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs).

    Args:
        trace: a run of a program made by `summing`.
        log_probs: the log density of each site that counts, with the dimensions of the run.
        kept: the size of each dimension that stays, from the left to the right.
    """
    trace.symbolize_dims()
    symbols = {dim: opt_einsum.get_symbol(2 * (len(trace.plate_to_symbol) + place)) for place, dim in enumerate(kept)}
    terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    enumerated = set()
    for name, log_prob in log_probs.items():
        infer = trace.nodes[name]["infer"]
        plates = {dim: name for dim, name in infer["_dim_to_symbol"].items() if dim not in infer.get("_dim_to_id", {})}
        term = packed.pack(log_prob[...], infer["_dim_to_symbol"] | symbols)
        terms.setdefault(frozenset((plates | symbols).values()), []).append(term)
        if "_enumerate_dim" in infer:
            enumerated.add(infer["_enumerate_symbol"])
    sizes = {symbols[dim]: size for dim, size in kept.items()}
    total = contract_to_tensor(
        terms, enumerated, target_ordinal=frozenset(sizes), ring=LogRing(dim_to_size=dict(sizes))
    )
    return total.permute([total._pyro_dims.index(symbol) for symbol in sizes])
