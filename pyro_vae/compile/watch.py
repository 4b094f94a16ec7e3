"""Detect changes, since a run of a program was recorded, in what it reads besides its arguments."""

from __future__ import annotations

import array
import collections
import enum
import functools
import itertools
import logging
import operator
import pickle
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Transform

from pyro_vae._private import found
from pyro_vae.compile.graph import kind_of

__all__ = ["PLAIN", "TensorWatch", "Watch"]

MAX_OBJECTS = 20_000
"""More objects are data and no program; to check them at each step would cost more than the step."""
MAX_ARRAY = 1_000_000
"""Bytes of an array of numpy's that are compared at each step."""

# The functions and classes of these do not change; what a program keeps in instances of their classes does.
FIXED_PACKAGES = {*sys.stdlib_module_names, "torch", "torchvision", "pyro", "numpy", "scipy", "sklearn", "pandas"} | {
    *("matplotlib", "mpl_toolkits", "PIL", "arviz", "tqdm", "pyro_vae"),
} - {"__main__"}
PLAIN = (
    *(int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice),
    *(enum.Enum, np.generic, np.dtype, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
"""What cannot change."""
OPAQUE = (
    *(Tensor, Trace, ParamStoreDict, weakref.ReferenceType, types.BuiltinFunctionType, types.CodeType, np.ufunc),
    *(types.UnionType, types.GenericAlias, re.Pattern, operator.itemgetter, operator.attrgetter, operator.methodcaller),
    *(logging.Logger, type(threading.Lock()), type(threading.RLock())),
)
"""What is not looked into: graphs read tensors anew, and Pyro or Python takes care of the others."""
CODE = (type, types.FunctionType, types.ModuleType, functools._lru_cache_wrapper)
"""What is as fixed as the package that it comes from."""
PARTS = {
    types.MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
}
"""What holds others, and always the same."""
STATEFUL = (np.ndarray, array.array, random.Random, np.random.Generator, np.random.RandomState)
"""What is compared by the bytes of its pickle."""
SEQUENCES = (list, tuple, set, frozenset, collections.deque)
UNREAD = {"__annotations__", "_abc_impl", "_pairs"}  # the last are our own graphs
SCRATCH = {Transform: "_cache", AutoGuide: "plates"}
"""How attributes begin that a run writes before it reads them."""
HEAP_TYPE = 1 << 9
"""Flag of classes written in Python: an object of one can be given another class."""
_MISSING = object()

Found = tuple[str, Any]
"""Where something was found, and what it is."""


class _Place(NamedTuple):
    """Objects that are read together, and what they were."""

    path: str
    names: tuple[Any, ...]
    read: Callable[[], Iterable[Any]]
    values: tuple[Any, ...]
    restore: Callable[[tuple[Any, ...]], None] | None

    def change(self) -> str | None:
        """Name the first object that is another; None if all are the same."""
        for name, one, other in itertools.zip_longest(self.names, self.read(), self.values, fillvalue=_MISSING):
            if one is not other and not (type(one) is type(other) and isinstance(one, PLAIN) and one == other):
                return f"{self.path}.{'a new item' if name is _MISSING else name}"
        return None


class Watch:
    """Watches what can be reached from `roots`: attributes, items, closures, and the globals that functions name.

    A change is another object in one of these places, another number in an array, or another state of a generator.
    Values of tensors do not count: a graph reads them anew at each call.

    Raises:
        ValueError: if there is too much to look at, or something that cannot be looked into.
    """

    def __init__(self, *roots: Found) -> None:
        self._places: list[_Place] = []
        self._tables: list[_Place] = []
        self._empty: list[Any] = []
        self._states: list[tuple[str, Any, bytes]] = []
        self._instances: list[Any] = []
        seen: dict[int, Any] = {}
        waiting = list(roots)
        while waiting:
            path, value = waiting.pop()
            if id(value) in seen or value is _MISSING or isinstance(value, (*PLAIN, *OPAQUE)) or _is_fixed(value):
                continue
            seen[id(value)] = value
            if len(seen) > MAX_OBJECTS:
                raise ValueError(f"a program that reads more than {MAX_OBJECTS:,} objects, such as {path}")
            waiting.extend(self._look_into(path, value))
        kinds = tuple(type(value).__name__ for value in self._instances)
        self._look_at("the class of an object", kinds, functools.partial(map, type, self._instances))
        self._seen = seen  # keeps what it has seen alive, so that no other gets its id
        # These are compared at each step, so they are laid out to run in C.
        self._reads = [place.read for place in self._places if place.values]
        self._values = [*itertools.chain.from_iterable(place.values for place in self._places)]
        self._keys: list[Any] = [place.read() for place in self._tables]
        self._names = [*map(len, self._keys), *itertools.chain.from_iterable(self._keys)]
        self._places += self._tables

    def change(self) -> str | None:
        """Name the first place that has changed; None if none has."""
        now = [*itertools.chain.from_iterable([read() for read in self._reads])]
        is_same = len(now) == len(self._values) and all(map(operator.is_, now, self._values))
        names = [*map(len, self._keys), *itertools.chain.from_iterable(self._keys)]
        if any(self._empty) or not is_same or names != self._names:
            for place in self._places:
                if (change := place.change()) is not None:
                    return change
        return next((path for path, value, before in self._states if pickle.dumps(value) != before), None)

    def undo(self) -> None:
        """Restore what has changed."""
        for place in self._places:
            if place.restore is not None and place.change() is not None:
                place.restore(place.values)

    def _look_into(self, path: str, value: Any) -> Iterator[Found]:
        parts = next((names for kind, names in PARTS.items() if isinstance(value, kind)), ())
        if isinstance(value, type):
            yield from self._look_into_table(f"class {value.__name__}", vars(value))
            yield from ((f"class {base.__name__}", base) for base in value.__mro__[1:])
        elif isinstance(value, types.ModuleType):
            yield from self._look_into_table(f"module {value.__name__}", vars(value))
        elif isinstance(value, types.FunctionType):
            yield from self._look_into_function(f"{path}, function {value.__name__}", value)
        elif isinstance(value, functools._lru_cache_wrapper):
            raise ValueError(f"{path}, a cached function, whose state cannot be seen")
        elif parts:
            yield from ((path, getattr(value, name)) for name in parts)
        else:
            yield from self._look_into_instance(path, value)

    def _look_into_instance(self, path: str, value: Any) -> Iterator[Found]:
        self._instances += [value] if type(value).__flags__ & HEAP_TYPE else []
        yield f"class {type(value).__name__}", type(value)
        slots = tuple(name for cls in type(value).__mro__ if not _is_fixed(cls) for name in _slots(cls))
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, STATEFUL):
            self._look_at_state(path, value)
        elif isinstance(value, (dict, types.MappingProxyType)):
            if not all(isinstance(name, str) for name in value):  # where keys are data, one may replace another
                yield from self._look_at(path, tuple(value), value.keys)
            yield from self._look_into_table(path, value)
        elif isinstance(value, SEQUENCES):
            yield from self._look_into_sequence(path, value)
        elif not slots and attributes is None and not hasattr(type(value), "__get__") and type(value) is not object:
            raise ValueError(f"{path}, of type {type(value).__name__}, whose state cannot be seen")
        if slots:
            yield from self._look_at(path, slots, lambda: [getattr(value, name, _MISSING) for name in slots])
        if attributes is not None:
            yield from self._look_into_attributes(path, attributes, _scratch(value))

    def _look_into_attributes(self, path: str, attributes: Any, scratch: tuple[str, ...]) -> Iterator[Found]:
        names = tuple(name for name in attributes if not name.startswith(scratch))
        if len(names) == len(attributes):
            return self._look_into_table(path, attributes)
        return iter(self._look_at(path, names, lambda: map(attributes.get, names)))

    def _look_into_table(self, path: str, items: Any) -> Iterator[Found]:
        before = dict(items)
        names = tuple(before)

        def restore(_: Sequence[Any]) -> None:
            items.clear()
            items.update(before)

        undo = restore if isinstance(items, dict) else None
        self._empty += [] if items else [items]
        if names and all(isinstance(name, str) for name in names):  # the same value may get another name
            self._tables.append(_Place(path, names, items.keys, names, undo))
        yield from self._look_at(path, names, items.values, undo)

    def _look_into_sequence(self, path: str, items: Any) -> Iterator[Found]:
        restore = functools.partial(operator.setitem, items, slice(None)) if isinstance(items, list) else None
        self._empty += [] if items else [items]
        yield from self._look_at(path, tuple(range(len(items))), functools.partial(iter, items), restore)

    def _look_into_function(self, path: str, fn: types.FunctionType) -> Iterator[Found]:
        parts = ("__code__", "__defaults__", "__kwdefaults__")
        yield from self._look_at(path, parts, functools.partial(operator.attrgetter(*parts), fn))
        yield from self._look_into_table(path, vars(fn))
        cells, scope, names = fn.__closure__ or (), fn.__globals__, tuple(sorted(_names(fn.__code__)))

        def restore_cells(values: Sequence[Any]) -> None:
            for cell, value in zip(cells, values, strict=True):
                if value is not _MISSING:
                    cell.cell_contents = value

        def restore_globals(values: Sequence[Any]) -> None:
            for name, value in zip(names, values, strict=True):
                scope[name] = value
                if value is _MISSING:
                    del scope[name]

        yield from self._look_at(path, fn.__code__.co_freevars, lambda: map(_contents, cells), restore_cells)
        read_globals = functools.partial(map, scope.get, names, itertools.repeat(_MISSING))
        yield from self._look_at(path, names, read_globals, restore_globals)

    def _look_at_state(self, path: str, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.nbytes > MAX_ARRAY:
            raise ValueError(f"{path}, an array of {value.nbytes:,} bytes; make it a tensor")
        self._states.append((path, value, pickle.dumps(value)))

    def _look_at(
        self,
        path: str,
        names: tuple[Any, ...],
        read: Callable[[], Iterable[Any]],
        restore: Callable[[tuple[Any, ...]], None] | None = None,
    ) -> list[Found]:
        values = tuple(read())
        self._places.append(_Place(path, names, read, values, restore))
        return [(f"{path}.{name}", value) for name, value in zip(names, values, strict=True) if name not in UNREAD]


class TensorWatch:
    """Watches the tensors that a graph reads: another shape, type, device or `requires_grad` needs another graph."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors
        self._kinds = [*map(kind_of, tensors)]
        sizes: Any = [list(tensor.shape) for tensor in tensors]
        strides: Any = [list(tensor.stride()) for tensor in tensors]
        self._guards = found("TensorGuards")(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)

    def change(self) -> str | None:
        """Name a tensor of another kind than before; None if there is none."""
        if self._guards.check(*self._tensors):
            return None
        now = [*map(kind_of, self._tensors)]
        changed = [before for before, kind in zip(self._kinds, now, strict=True) if before != kind]
        return f"the kind of a tensor of shape {tuple(changed[0][0])}" if changed else None


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return _MISSING


def _slots(cls: type) -> Iterator[str]:
    slots = vars(cls).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if name not in ("__dict__", "__weakref__"):
            yield f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name


def _scratch(owner: Any) -> tuple[str, ...]:
    return tuple(start for kind, start in SCRATCH.items() if isinstance(owner, kind))


def _is_fixed(value: Any) -> bool:
    """Tell whether this is code of a package that does not change."""
    if not isinstance(value, CODE):
        return False
    home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return (home or "").split(".", maxsplit=1)[0] in FIXED_PACKAGES


def _names(code: types.CodeType) -> set[str]:
    """Collect the names of globals and attributes in a function and in those that it defines."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)
