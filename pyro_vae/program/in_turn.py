"""Programs that visit their data one after the other, `for i in pyro.plate("data", len(x))`, seen as one plate."""

from __future__ import annotations

import re
from itertools import chain, product
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.program.masks import elements_of, mask_of
from pyro_vae.program.sites import plates_of, sample_sites

__all__ = ["PLATE_OF_UNUSED", "UNUSED", "InTurn"]

UNUSED = "_unused"
"""A latent on which nothing depends."""
PLATE_OF_UNUSED = "_unused_data"
"""Its plate, which has the data of the program's own."""
PLACE = "{}"
NO_DIMENSIONS = torch.Size()


class InTurn(NamedTuple):
    """How sites of one datum each, such as `z_0`, `z_1`, ..., become one site of all data, `z`."""

    plate: str
    dim: int
    """The dimension that data have in the sites of all, to the left of all plates inside of a turn."""
    first: int
    """The place of the first datum in the names of sites: 0, or 1."""
    occurrence: int
    """Which of the numbers in a name is the place, if several could be: the first (0) or the last (-1)."""
    names: tuple[tuple[str, str], ...]
    """Each site of all data, and the name of its parts, with `{}` for the place."""

    @classmethod
    def of(cls, traces: tuple[poutine.Trace, ...], num_rows: int, plate: str | None) -> InTurn | None:
        """Find a plate over data that all sites of model and guide visit in turn; None if there is none.

        Raises:
            ValueError: if the data do not have the same sites.
        """
        runs = [dict(sample_sites(trace)) for trace in traces]
        sites = [site for run in runs for site in run.values()]
        own = [_turns(site) for site in sites if PLATE_OF_UNUSED not in _turns(site)]
        shared = set.intersection(*map(set, own)) if own else set()
        sizes = {name: max(turns[name] for turns in own) for name in sorted(shared)}
        found = [name for name, size in sizes.items() if plate in (None, name) and size == num_rows]
        if not found:
            return None
        dim = min((frame.dim for site in sites for frame in plates_of(site)), default=0) - 1
        for first, occurrence in product((0, 1), (0, -1)):
            candidate = cls(found[0], dim, first, occurrence, ())
            named = [candidate._names(run, num_rows) for run in runs]
            if None not in named:
                return candidate._replace(names=tuple(dict(chain.from_iterable(filter(None, named))).items()))
        raise ValueError(
            f"model, guide: expected the same sites for each datum of the plate {found[0]!r}, with its place in their "
            f'names, f"z_{{i}}"; got {", ".join(map(repr, list(runs[-1])[:6]))}, ...; give each datum all sites, and '
            "mask what it has not, or ask for one number for all data, joint=True."
        )

    def _names(self, sites: dict[str, Any], num_rows: int) -> tuple[tuple[str, str], ...] | None:
        """Name the sites of all data; None if they are not the same for each."""
        by_datum: list[list[str | None]] = [[] for _ in range(num_rows)]
        for name, site in sites.items():
            place = self.place_of(site)
            by_datum[place].append(self._template(name, place))
        if any(None in each or set(each) != set(by_datum[0]) for each in by_datum):
            return None
        return tuple((_without_place(template), template) for template in filter(None, by_datum[0]))

    def _template(self, name: str, place: int) -> str | None:
        found = list(re.finditer(rf"(?<!\d){place + self.first}(?!\d)", name))
        if not found:
            return None
        match = found[self.occurrence]
        return name[: match.start()] + PLACE + name[match.end() :]

    def place_of(self, site: dict[str, Any]) -> int:
        """Return the place of the datum whose site this is."""
        turns = _turns(site)
        return turns[self.plate if self.plate in turns else PLATE_OF_UNUSED] - 1

    def name_of_all(self, site: dict[str, Any]) -> str:
        """Return the name of the site of all data of which this is a part."""
        template = self._template(site["name"], self.place_of(site))
        return next(name for name, each in self.names if each == template)

    def parts_of(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the values of all data apart: the values of each datum's own sites."""
        templates = dict(self.names)
        return {
            templates[name].replace(PLACE, str(place + self.first)): part
            for name, value in values.items()
            for place, part in enumerate(value.unbind(1))
        }

    def joined(self, trace: poutine.Trace) -> poutine.Trace:
        """Make a trace of sites of all data from one of sites of each."""
        parts: dict[str, list[Any]] = {name: [] for name, _ in self.names}
        for _, site in sample_sites(trace):
            parts[self.name_of_all(site)].append(site)
        whole = poutine.Trace()
        for name, sites in parts.items():
            if sites:
                whole.add_node(name, **self._site_of_all(name, sites))
        return whole

    def _site_of_all(self, name: str, sites: list[Any]) -> dict[str, Any]:
        elements = [elements_of(site).fn for site in sites]
        site, batch_ndim = sites[0], -self.dim - 1
        event_dims = site["fn"].event_dim, elements[0].event_dim
        fn: Any = OfAllData(elements, batch_ndim + event_dims[0] - event_dims[1])
        if any(elements_of(site).mask is not None for site in sites):
            fn = fn.mask(_stacked([mask_of(site) for site in sites], batch_ndim + event_dims[0] - event_dims[1]))
        inside = tuple(frame for frame in site["cond_indep_stack"] if frame.name not in (self.plate, PLATE_OF_UNUSED))
        frame = CondIndepStackFrame(self.plate, self.dim, len(sites), 0, len(sites))
        return {
            **{key: value for key, value in site.items() if "log_prob" not in key},
            "name": name,
            "fn": fn.to_event(event_dims[0] - event_dims[1]),
            "value": _stacked([site["value"] for site in sites], batch_ndim + event_dims[0]),
            "mask": None,
            "scale": 1.0,
            "cond_indep_stack": (*inside, frame),
        }


def _turns(site: dict[str, Any]) -> dict[str, int]:
    """Return the plates that a site's run has visited in turn, with the turn, from 1."""
    return {frame.name: frame.counter for frame in site["cond_indep_stack"] if not frame.vectorized}


def _without_place(template: str) -> str:
    return re.sub(r"_?\{\}$|^\{\}_?|_?\{\}", "", template) or template


def _stacked(values: list[Tensor], ndim: int) -> Tensor:
    """Stack tensors in a new dimension, to the left of the last `ndim` ones."""
    wide = [value[(None,) * (ndim - value.ndim)] for value in values]
    return torch.stack(torch.broadcast_tensors(*wide), dim=-ndim - 1)


class OfAllData(TorchDistribution):
    """Distributions of one datum each, side by side in a dimension to the left of the last `ndim` of their batch."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's interface

    def __init__(self, fns: list[Any], ndim: int) -> None:
        kinds = sorted({f"{type(fn).__name__} on {fn.support}" for fn in fns})
        if len(kinds) > 1:
            raise ValueError(
                f"model, guide: expected one kind of distribution for all data, with one support; got "
                f"{', '.join(kinds)}; ask for one number for all data, joint=True."
            )
        shape = torch.broadcast_shapes(*(fn.batch_shape for fn in fns))
        shape = (*(1,) * (ndim - len(shape)), *shape)
        self.fns, self.ndim = [fn.expand(shape) for fn in fns], ndim
        whole = (*shape[: len(shape) - ndim], len(fns), *shape[len(shape) - ndim :])
        super().__init__(torch.Size(whole), fns[0].event_shape, validate_args=False)

    @property
    def base_dist(self) -> Any:
        """The first of them, which says of what kind all are."""
        return self.fns[0]

    @property
    def has_rsample(self) -> bool:
        return all(fn.has_rsample for fn in self.fns)

    @property
    def has_enumerate_support(self) -> bool:
        return all(fn.has_enumerate_support for fn in self.fns)

    @property
    def support(self) -> Any:
        return self.fns[0].support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.fns[0].enumerate_support(expand=False)
        values = values.reshape(len(values), *(1,) * len(self.batch_shape), *self.event_shape)
        return values.expand(len(values), *self.batch_shape, *self.event_shape) if expand else values

    def expand(self, batch_shape: Any, _instance: Any = None) -> OfAllData:
        shape = (*batch_shape[: len(batch_shape) - self.ndim - 1], *batch_shape[len(batch_shape) - self.ndim :])
        return OfAllData([fn.expand(shape) for fn in self.fns], self.ndim)

    def _join(self, values: list[Tensor], event_dim: int) -> Tensor:
        return torch.stack(values, dim=-self.ndim - event_dim - 1)

    def sample(self, sample_shape: Any = NO_DIMENSIONS) -> Tensor:
        return self._join([fn.sample(sample_shape) for fn in self.fns], self.event_dim)

    def rsample(self, sample_shape: Any = NO_DIMENSIONS) -> Tensor:
        return self._join([fn.rsample(sample_shape) for fn in self.fns], self.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        dim = -self.ndim - self.event_dim - 1
        value = value[(None,) * (-dim - value.ndim)]
        parts = value.expand(*value.shape[:dim], len(self.fns), *value.shape[dim + 1 :] if dim + 1 else ()).unbind(dim)
        return self._join([fn.log_prob(part) for fn, part in zip(self.fns, parts, strict=True)], 0)
