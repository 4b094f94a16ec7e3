"""Detect changes, since a run of a program was recorded, in what it reads besides its arguments."""

from __future__ import annotations

import array
import collections
import enum
import functools
import itertools
import operator
import random
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
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
)
"""What is not looked into: graphs read tensors anew, and Pyro or Python takes care of the others."""
UNREAD = {
    *("__annotations__", "_abc_impl"),
    # Of modules: what only state_dict reads, and how to call the hooks that other attributes list.
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    *("_non_persistent_buffers_set", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks_with_kwargs",
}
MODULE_FIELDS = frozenset(vars(torch.nn.Module()))
HEAP_TYPE = 1 << 9
"""Flag of classes written in Python: an object of one can be given another class."""
SEQUENCES = (list, tuple, set, frozenset, collections.deque, array.array)
_MISSING = object()

Found = tuple[str, Any]
"""Where something was found, and what it is."""


class _Group(NamedTuple):
    """Places that are read together, and what was in them."""

    path: str
    names: tuple[Any, ...]
    read: Callable[[], Iterable[Any]]
    values: tuple[Any, ...] = ()
    container: Any = None
    restore: Callable[[], None] | None = None


class Watch:
    """Watches what can be reached from `roots`: attributes, items, closures, and the globals that functions name.

    A change is another object in one of these places, another number in an array, or another state of a generator.
    Values of tensors do not count: a graph reads them anew at each call.

    Raises:
        ValueError: if there is too much to look at, or something that cannot be looked into.
    """

    def __init__(self, *roots: Found) -> None:
        self._groups: list[_Group] = []
        self._states: list[tuple[str, Callable[[], Any], Any]] = []
        self._instances: list[Any] = []
        self._scratch: list[tuple[dict[str, Any], str, Any]] = []
        self._seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no other gets its id
        waiting = list(roots)
        while waiting:
            path, value = waiting.pop()
            if id(value) in self._seen or value is _MISSING or isinstance(value, (*PLAIN, *OPAQUE)):
                continue
            self._seen[id(value)] = value
            if len(self._seen) > MAX_OBJECTS:
                raise ValueError(f"a program that reads more than {MAX_OBJECTS:,} objects, such as {path}")
            waiting.extend(self._look_into(path, value))
        # These are compared at each step, so they are laid out to run in C.
        self._empty = [group.container for group in self._groups if group.container is not None and not group.values]
        self._reads = [group.read for group in self._groups if group.values or group.container is None]
        self._values = [*itertools.chain.from_iterable(group.values for group in self._groups)]
        self._instances = [value for value in self._instances if type(value).__flags__ & HEAP_TYPE]
        self._types = [*map(type, self._instances)]

    def change(self) -> str | None:
        """Name the first place that has changed; None if none has."""
        now = [*itertools.chain.from_iterable([read() for read in self._reads])]
        if any(self._empty) or len(now) != len(self._values) or not all(map(operator.is_, now, self._values)):
            for place in map(_changed_place, self._groups):
                if place is not None:
                    return place
        if [*map(type, self._instances)] != self._types:
            return "the class of an object"
        for path, read, before in self._states:
            if not np.array_equal(read(), before):
                return path
        return None

    def undo(self) -> None:
        """Restore what has changed."""
        for container, name, value in self._scratch:
            container[name] = value
        for group in self._groups:
            if group.restore is not None and _changed_place(group) is not None:
                group.restore()

    def _look_into(self, path: str, value: Any) -> Iterator[Found]:
        kind = type(value)
        if issubclass(kind, type):
            if not _is_fixed(value):
                yield from self._look_into_mapping(f"class {value.__name__}", vars(value))
                yield from ((f"class {base.__name__}", base) for base in value.__mro__[1:])
        elif kind is types.ModuleType:
            if not _is_fixed_package(value.__name__):
                yield from self._look_into_mapping(f"module {value.__name__}", vars(value))
        elif kind is types.FunctionType:
            if not _is_fixed(value):
                yield from self._look_into_function(path, value)
        elif kind is types.MethodType:
            yield from ((path, value.__self__), (path, value.__func__))
        elif isinstance(value, functools.partial):
            yield from ((path, part) for part in (value.func, value.args, value.keywords))
        elif kind in (staticmethod, classmethod):
            yield path, value.__func__
        elif kind is property:
            yield path, value.fget
        else:
            yield from self._look_into_instance(path, value)

    def _look_into_instance(self, path: str, value: Any) -> Iterator[Found]:
        self._instances.append(value)
        kind, is_open = type(value), True
        if isinstance(value, np.ndarray):
            self._look_at_array(path, value)
        elif isinstance(value, random.Random):
            self._states.append((path, value.getstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            self._states.append((path, lambda: repr(value.bit_generator.state), repr(value.bit_generator.state)))
        elif isinstance(value, dict):
            yield from self._look_into_dict(path, value)
        elif isinstance(value, types.MappingProxyType):
            yield from self._look_into_mapping(path, value)
        elif isinstance(value, SEQUENCES):
            yield from self._look_into_sequence(path, value)
        else:
            is_open = False
        slots = tuple(name for cls in type(value).__mro__ if not _is_fixed(cls) for name in _slots(cls))
        if slots:
            yield from self._look_at(
                _Group(path, slots, lambda: [getattr(value, name, _MISSING) for name in slots], ())
            )
        if kind is collections.OrderedDict and path.rpartition(".")[2] in MODULE_FIELDS:
            pass  # nobody sets its attributes, and each module has many such dictionaries
        elif hasattr(kind, "__dict__") and isinstance(getattr(value, "__dict__", None), dict):
            yield from self._look_into_attributes(path, value)
        elif not slots and not is_open and not _is_fixed_descriptor(value):
            raise ValueError(f"{path}, of type {type(value).__name__}, whose state cannot be seen")
        if isinstance(value, functools._lru_cache_wrapper) and not _is_fixed(value):
            raise ValueError(f"{path}, a cached function, whose state cannot be seen")
        yield f"class {type(value).__name__}", type(value)

    def _look_into_attributes(self, path: str, owner: Any) -> Iterator[Found]:
        attributes = vars(owner)
        scratch = {name for name in attributes if _is_scratch(owner, name)}
        if not scratch:
            yield from self._look_into_mapping(path, attributes)
            return
        self._scratch += [(attributes, name, attributes[name]) for name in scratch]
        names = tuple(name for name in attributes if name not in scratch)
        yield from self._look_at(_Group(path, names, lambda: map(attributes.get, names)))

    def _look_into_dict(self, path: str, items: dict[Any, Any]) -> Iterator[Found]:
        """Look at keys too: where they are data, one may replace another."""
        if items:
            yield from self._look_at(_Group(path, tuple(items), items.keys))
        yield from self._look_into_mapping(path, items)

    def _look_into_mapping(self, path: str, items: Any) -> Iterator[Found]:
        before = dict(items)

        def restore() -> None:
            items.clear()
            items.update(before)

        putting_back = restore if isinstance(items, dict) else None
        yield from self._look_at(_Group(path, tuple(items), items.values, (), items, putting_back))

    def _look_into_sequence(self, path: str, items: Any) -> Iterator[Found]:
        if isinstance(items, array.array):
            self._states.append((path, items.tobytes, items.tobytes()))
            return
        before = list(items)

        def restore() -> None:
            items[:] = before

        putting_back = restore if isinstance(items, list) else None
        names = tuple(range(len(items)))
        yield from self._look_at(_Group(path, names, functools.partial(iter, items), (), items, putting_back))

    def _look_into_function(self, path: str, fn: types.FunctionType) -> Iterator[Found]:
        path = f"{path}, function {fn.__name__}"
        parts = ("code", "defaults", "keyword defaults")
        yield from self._look_at(_Group(path, parts, lambda: (fn.__code__, fn.__defaults__, fn.__kwdefaults__)))
        cells, names = fn.__closure__ or (), fn.__code__.co_freevars
        if cells:
            yield from self._look_at(_Group(path, names, lambda: map(_contents, cells), restore=_putting_back(cells)))
        scope = fn.__globals__
        names, missing = tuple(sorted(_names(fn.__code__))), itertools.repeat(_MISSING)
        found = {name: scope.get(name, _MISSING) for name in names}

        def restore() -> None:
            for name, value in found.items():
                if value is _MISSING:
                    scope.pop(name, None)
                else:
                    scope[name] = value

        yield from self._look_at(_Group(path, names, lambda: map(scope.get, names, missing), restore=restore))
        if vars(fn):
            yield from self._look_into_mapping(path, vars(fn))

    def _look_at_array(self, path: str, value: np.ndarray) -> None:
        if value.nbytes > MAX_ARRAY:
            raise ValueError(f"{path}, an array of {value.nbytes:,} bytes; make it a tensor")
        self._states.append((path, lambda: value, value.copy()))

    def _look_at(self, group: _Group) -> Iterator[Found]:
        group = group._replace(values=tuple(group.read()))
        self._groups.append(group)
        for name, value in zip(group.names, group.values, strict=True):
            if name not in UNREAD:
                yield f"{group.path}.{name}", value


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


def _changed_place(group: _Group) -> str | None:
    now = tuple(group.read())
    for name, one, other in itertools.zip_longest(group.names, now, group.values, fillvalue=_MISSING):
        if one is not other and not (type(one) is type(other) and isinstance(one, PLAIN) and one == other):
            return f"{group.path}.{'a new item' if name is _MISSING else name}"
    return None


def _putting_back(cells: tuple[types.CellType, ...]) -> Callable[[], None]:
    before = [_contents(cell) for cell in cells]

    def restore() -> None:
        for cell, value in zip(cells, before, strict=True):
            if value is not _MISSING:
                cell.cell_contents = value

    return restore


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


def _is_scratch(owner: Any, name: str) -> bool:
    """Tell what a run writes before it reads it: caches of transforms, plates of automatic guides, our own graphs."""
    return (
        (isinstance(owner, Transform) and name.startswith("_cache"))
        or (isinstance(owner, AutoGuide) and name == "plates")
        or name == "_pairs"
    )


def _is_fixed(fn: Any) -> bool:
    return _is_fixed_package(getattr(fn, "__module__", None) or "")


def _is_fixed_package(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in FIXED_PACKAGES


def _is_fixed_descriptor(value: Any) -> bool:
    """Tell methods and the like of classes written in C, which hold no state, and plain objects."""
    kind = type(value)
    return hasattr(kind, "__get__") or kind is object


def _names(code: types.CodeType) -> set[str]:
    """Collect the names of globals and attributes in a function and in those that it defines."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)
