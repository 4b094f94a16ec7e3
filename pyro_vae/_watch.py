"""Whether what a program reads besides its arguments is what it was when a run of it was recorded."""

from __future__ import annotations

import functools
import itertools
import operator
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform

from pyro_vae.graphs import kind_of

__all__ = ["TensorWatch", "Watch"]

MAX_OBJECTS = 20_000
"""More than this is no program but its data; to look at it again at each step would cost more than the step."""

# The functions and classes of these do not change; what a program keeps in instances of their classes does.
FIXED_PACKAGES = {*sys.stdlib_module_names, "torch", "pyro", "numpy", "pyro_vae"} - {"__main__"}
OPAQUE = (Tensor, torch.Generator, torch.dtype, torch.device, type, types.ModuleType, Trace, ParamStoreDict)
PLAIN = (int, float, complex, bool, str, bytes, type(None))

Found = tuple[str, Any]
"""Where something was found, and what it is."""


class _Group(NamedTuple):
    """Some places that are read together, and what was in them."""

    path: str
    names: tuple[str, ...]
    read: Callable[[], Iterable[Any]]
    values: tuple[Any, ...]
    container: Any = None


class Watch:
    """What can be reached from `roots`: attributes, items, closures, and the globals that functions name.

    A change is another object in one of these places, another number in an array, or another state of a generator; not
    what is in a tensor, which a graph reads anew at each call.

    Raises:
        ValueError: if there is too much to look at.
    """

    def __init__(self, *roots: Found) -> None:
        self._groups: list[_Group] = []
        self._states: list[tuple[str, Callable[[], Any], Any]] = []
        self._scratch: list[tuple[dict[str, Any], str, Any]] = []
        self._seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no other gets its id
        waiting = list(roots)
        while waiting:
            path, value = waiting.pop()
            if id(value) in self._seen or isinstance(value, (*PLAIN, *OPAQUE)):
                continue
            self._seen[id(value)] = value
            if len(self._seen) > MAX_OBJECTS:
                raise ValueError(f"a program that reads more than {MAX_OBJECTS:,} objects, such as {path}")
            waiting.extend(self._look_into(path, value))
        # What follows is asked at each step, so it is laid out to run in C.
        self._empty = [group.container for group in self._groups if group.container is not None and not group.values]
        self._reads = [group.read for group in self._groups if group.values]
        self._values = [*itertools.chain.from_iterable(group.values for group in self._groups)]

    def change(self) -> str | None:
        """Where something is not what it was; None if nothing is."""
        now = [*itertools.chain.from_iterable([read() for read in self._reads])]
        if any(self._empty) or len(now) != len(self._values) or not all(map(operator.is_, now, self._values)):
            for place in map(_changed_place, self._groups):
                if place is not None:
                    return place
        for path, read, before in self._states:
            if read() != before:
                return path
        return None

    def undo(self) -> None:
        """Put back what was where, in dictionaries and lists."""
        for container, name, value in self._scratch:
            container[name] = value
        for group in self._groups:
            if isinstance(group.container, dict) and _changed_place(group) is not None:
                group.container.clear()
                group.container.update(zip(group.names, group.values, strict=True))
            elif isinstance(group.container, list):
                group.container[:] = group.values

    def _look_into(self, path: str, value: Any) -> Iterator[Found]:
        if isinstance(value, np.ndarray):
            self._states.append((path, value.tobytes, value.tobytes()))
        elif isinstance(value, random.Random):
            self._states.append((path, value.getstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            self._states.append((path, lambda: repr(value.bit_generator.state), repr(value.bit_generator.state)))
        elif isinstance(value, types.FunctionType):
            if not _is_fixed(value):
                yield from self._look_into_function(path, value)
        elif isinstance(value, functools.partial):
            yield from ((path, part) for part in (value.func, value.args, value.keywords))
        elif isinstance(value, (dict, list)):
            yield from self._look_into_items(path, value)
        elif isinstance(value, (tuple, set, frozenset)):
            yield from ((path, item) for item in value)
        else:
            yield from ((path, getattr(value, name, None)) for name in ("__self__", "__func__", "fget"))
            yield from self._look_into_instance(path, value)

    def _look_into_instance(self, path: str, value: Any) -> Iterator[Found]:
        if hasattr(value, "__dict__"):
            yield from self._look_into_attributes(path, value)
        for cls in type(value).__mro__:
            if not _is_fixed(cls) and id(cls) not in self._seen:
                self._seen[id(cls)] = cls
                yield from self._look_into_items(f"class {cls.__name__}", vars(cls))

    def _look_into_attributes(self, path: str, owner: Any) -> Iterator[Found]:
        attributes = vars(owner)
        scratch = {name for name in attributes if _is_scratch(owner, name)}
        if not scratch:
            yield from self._look_into_items(path, attributes)
            return
        self._scratch += [(attributes, name, attributes[name]) for name in scratch]
        names = tuple(name for name in attributes if name not in scratch)
        yield from self._look_at_variables(path, names, lambda: map(attributes.get, names))

    def _look_into_items(self, path: str, items: Any) -> Iterator[Found]:
        is_mapping = isinstance(items, Mapping)
        names = tuple(map(str, items)) if is_mapping else tuple(f"[{i}]" for i in range(len(items)))
        read = items.values if is_mapping else functools.partial(iter, items)
        yield from self._look_at(_Group(path, names, read, tuple(read()), items))

    def _look_into_function(self, path: str, fn: types.FunctionType) -> Iterator[Found]:
        cells = fn.__closure__ or ()
        path = f"{path}, function {fn.__name__}"
        yield from self._look_at_variables(path, fn.__code__.co_freevars, lambda: map(_contents, cells))
        scope = fn.__globals__
        names = tuple(sorted(_names(fn.__code__) & scope.keys()))
        yield from self._look_at_variables(path, names, lambda: map(scope.get, names))
        for module in map(scope.get, names):
            if isinstance(module, types.ModuleType) and module.__name__.split(".")[0] not in FIXED_PACKAGES:
                yield from self._look_into_module(module, fn.__code__)
        yield from ((path, value) for value in (fn.__defaults__, fn.__kwdefaults__, vars(fn)))

    def _look_into_module(self, module: types.ModuleType, code: types.CodeType) -> Iterator[Found]:
        """What a function reads of a module that it names."""
        names = tuple(sorted(_names(code) & vars(module).keys()))
        yield from self._look_at_variables(f"module {module.__name__}", names, lambda: map(vars(module).get, names))

    def _look_at_variables(
        self, path: str, names: tuple[str, ...], read: Callable[[], Iterable[Any]]
    ) -> Iterator[Found]:
        yield from self._look_at(_Group(path, names, read, tuple(read())))

    def _look_at(self, group: _Group) -> Iterator[Found]:
        self._groups.append(group)
        for name, value in zip(group.names, group.values, strict=True):
            yield f"{group.path}.{name}", value


class TensorWatch:
    """Tensors that a graph reads: another shape, type, place or need of a gradient makes it another graph's."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors
        self._seen = [kind_of(tensor) for tensor in tensors]
        self._look()

    def change(self) -> str | None:
        """Which tensor is not as it was; None if all are."""
        if [*map(_POINTER, self._tensors)] == self._pointers and [*map(_NEEDS, self._tensors)] == self._needs:
            return None
        for tensor, seen in zip(self._tensors, self._seen, strict=True):
            if kind_of(tensor) != seen:
                return f"the kind of a tensor of shape {tuple(seen[0])}"
        self._look()
        return None

    def _look(self) -> None:
        """At what is quick to look at again: a tensor that is elsewhere may be another in all."""
        self._pointers = [*map(_POINTER, self._tensors)]
        self._needs = [*map(_NEEDS, self._tensors)]


_POINTER = operator.methodcaller("data_ptr")
_NEEDS = operator.attrgetter("requires_grad")


def _changed_place(group: _Group) -> str | None:
    now = tuple(group.read())
    for name, one, other in itertools.zip_longest(group.names, now, group.values, fillvalue=group):
        if one is not other and not (type(one) is type(other) and isinstance(one, PLAIN) and one == other):
            return f"{group.path}.{name if isinstance(name, str) else 'a new item'}"
    return None


def _is_scratch(owner: Any, name: str) -> bool:
    """What a run writes before it reads it: the caches of transforms, and the plates of automatic guides."""
    return (isinstance(owner, Transform) and name.startswith("_cached")) or (
        isinstance(owner, AutoGuide) and name == "plates"
    )


def _is_fixed(fn: Any) -> bool:
    return (getattr(fn, "__module__", None) or "").split(".")[0] in FIXED_PACKAGES


def _names(code: types.CodeType) -> set[str]:
    """Global names and attributes, in the function and in those that it defines."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None
