"""Modules as JSON: which public class, with which arguments; and modules made from it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae._private import has_hooks_on_calls

__all__ = ["Undescribable", "build", "describe"]

FAMILIES = ("pyro_vae", "pyro_vae.priors", "pyro_vae.likelihoods", "pyro_vae.posteriors", "pyro_vae.nn", "torch.nn")
"""Where classes are looked for: a description never decides what is imported."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Their arguments are their children, by name."""
PLACES = {"device", "dtype"}
"""Arguments that say where tensors are, and not what a module is."""
DEPRECATED = {"min_value", "max_value"}
"""Arguments of torch's `Hardtanh` that it warns of."""

Path = tuple[str, ...]
"""The names of arguments on the way to a module."""


class Undescribable(ValueError):
    """A module that no description makes again; its message says which, and why."""


def describe(module: nn.Module) -> dict[str, Any]:
    """Describe a module of public classes as JSON, `{"class": "torch.nn.Linear", "arguments": {...}}`.

    An argument is read from the attribute of its name. A module that occurs again is `{"shared": "path.to.the.first"}`,
    and a tensor that the module keeps as a parameter or a buffer is `{"tensor": [3, 4]}`, its shape alone.

    The description is tried out: what it makes has the same parts, and tensors of the same names and shapes.

    Raises:
        Undescribable: for a class that is not public, a value that is not JSON, and a module that was changed after it
            was made.
    """
    description = _Describer().of_module((), module)
    try:
        again = build(description)
    except ValueError as error:
        raise Undescribable(f"its description does not make it again: {error}") from error
    if _outline(again) != _outline(module):
        raise Undescribable(
            f"{_named(_first_difference((), module, again))} differs from what its constructor makes of its "
            "attributes: it was changed later, or shares tensors with another"
        )
    return description


def build(description: Any) -> nn.Module:
    """Make a module from its description, on the CPU, and leave the generator as it was.

    Only public classes of `FAMILIES` are made.

    Raises:
        ValueError: for what is no description, names another class, or has arguments that the class refuses.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            made = _Builder().value((), description)
    except RecursionError as error:
        raise ValueError("description: expected modules inside modules; got too many levels.") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"description: expected a module; got {description!r:.200}.")
    return made


class _Describer:
    """Describes modules, and knows those that it has met."""

    def __init__(self) -> None:
        self.met: dict[nn.Module, Path] = {}

    def of_module(self, path: Path, module: nn.Module) -> dict[str, Any]:
        """Describe a module, or say where it was met."""
        if module in self.met:
            return {"shared": ".".join(self.met[module])}
        name = _public_name(type(module))
        if name is None:
            kind = type(module)
            raise Undescribable(
                f"{_named(path)} is a {kind.__module__}.{kind.__qualname__}, no class of pyro_vae's or torch.nn's"
            )
        if "forward" in vars(module) or has_hooks_on_calls(module):
            raise Undescribable(f"{_named(path)} has a hook, or a forward of its own")
        arguments = {
            key: {"tensor": [*value.shape]} if _is_kept(module, key, value) else self.of_value((*path, key), value)
            for key, value in _arguments(path, module)
        }
        self.met[module] = path
        return {"class": name, "arguments": arguments}

    def of_value(self, path: Path, value: Any) -> Any:
        """Describe an argument."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self.of_value((*path, str(i)), each) for i, each in enumerate(value)]
        if isinstance(value, nn.Module):
            return self.of_module(path, value)
        if callable(value):
            return self.of_maker(path, value)
        raise Undescribable(f"{_named(path)} is a {type(value).__name__}, neither JSON nor a module")

    def of_maker(self, path: Path, make: Callable[[], Any]) -> dict[str, Any]:
        """Describe a function, such as that of an activation, by what it makes."""
        try:
            return {"makes": describe(make())}
        except Exception as error:  # whatever a user's function raises
            raise Undescribable(f"{_named(path)} makes what has no description: {error}") from error


class _Builder:
    """Makes modules, and knows those that it has made."""

    def __init__(self) -> None:
        self.made: dict[str, nn.Module] = {}

    def value(self, path: Path, value: Any) -> Any:
        """Make an argument."""
        if isinstance(value, list):
            return tuple(self.value((*path, str(i)), each) for i, each in enumerate(value))
        if not isinstance(value, dict):
            return value
        match value:
            case {"class": str(name), "arguments": dict(arguments), **rest} if not rest:
                made = self.made[".".join(path)] = self.module(path, name, arguments)
                return made
            case {"shared": str(first), **rest} if not rest and first in self.made:
                return self.made[first]
            case {"makes": dict(description), **rest} if not rest:
                return functools.partial(build, description)
            case {"tensor": list(shape), **rest} if not rest and all(type(size) is int and size >= 0 for size in shape):
                return torch.ones(shape)  # a scale of zeros would be refused
        raise ValueError(f"{_named(path)}: expected a description of a module; got {value!r:.200}.")

    def module(self, path: Path, name: str, arguments: dict[str, Any]) -> nn.Module:
        """Make a module of a public class."""
        kind = _public_class(path, name)
        if PLACES & arguments.keys():
            raise ValueError(f"{_named(path)}: expected no {' and no '.join(PLACES)}; got {name} with one.")
        values = {key: self.value((*path, key), value) for key, value in arguments.items()}
        try:
            return _contained(kind, values) if kind in CONTAINERS else _called(kind, values)
        except Exception as error:  # whatever a constructor raises
            raise ValueError(f"{_named(path)}: expected arguments of {name}; got an error, {error}.") from error


def _public_name(kind: type) -> str | None:
    """Return the name by which users import a class, if it is public."""
    names = (f"{family}.{kind.__name__}" for family in FAMILIES if _in_family(family, kind.__name__) is kind)
    return next(names, None)


def _public_class(path: Path, name: str) -> type[nn.Module]:
    family, _, own_name = name.rpartition(".")
    kind = _in_family(family, own_name) if family in FAMILIES else None
    if kind is None:
        raise ValueError(f"{_named(path)}: expected a public class of {', '.join(FAMILIES)}; got {name!r:.200}.")
    return kind


def _in_family(family: str, name: str) -> type[nn.Module] | None:
    """Look up a public class of modules."""
    module = importlib.import_module(family)
    kind = getattr(module, name, None) if name in getattr(module, "__all__", [name]) else None
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def _arguments(path: Path, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module's constructor would have to be called with to make it again."""
    if type(module) in CONTAINERS:
        yield from _children(module)
        return
    left_out = PLACES | DEPRECATED | set(getattr(module, "starting_values", ()))
    for name, parameter in inspect.signature(type(module)).parameters.items():
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if (is_variadic and not hasattr(module, name)) or name in left_out or name.startswith("_"):
            continue
        if not hasattr(module, name):
            raise Undescribable(f"{_named(path)} does not keep {name!r}, an argument of {type(module).__name__}")
        value = getattr(module, name)
        yield name, value is not None if name == "bias" else value


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules inside, one that is there twice under both names, as `named_children` does not."""
    named = module.named_modules(remove_duplicate=False)
    yield from ((name, each) for name, each in named if name and "." not in name)


def _is_kept(module: nn.Module, name: str, value: Any) -> bool:
    """Tell whether an argument is a tensor that will be loaded."""
    return isinstance(value, Tensor) and name in module.state_dict()


def _called(kind: type[nn.Module], values: dict[str, Any]) -> nn.Module:
    """Call a constructor; an argument with a star takes as many as there are."""
    starred = (each.name for each in inspect.signature(kind).parameters.values() if each.kind is each.VAR_POSITIONAL)
    positional = [each for name in starred for each in values.pop(name, ())]
    return kind(*positional, **values)


def _contained(kind: type[nn.Module], children: dict[str, Any]) -> nn.Module:
    """Make a container."""
    if not all(isinstance(child, nn.Module) for child in children.values()):
        raise ValueError("expected modules")
    made = kind()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def _outline(module: nn.Module) -> tuple[str, list[tuple[str, str, torch.Size]]]:
    """Return the parts of a module as text; and its tensors, each with the first of its names and its shape."""
    first: dict[Tensor, str] = {}
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return str(module), [(name, first.setdefault(tensor, name), tensor.shape) for name, tensor in tensors]


def _first_difference(path: Path, module: nn.Module, other: nn.Module) -> Path:
    """Return the path to the innermost module that differs."""
    others = dict(_children(other))
    for name, child in _children(module):
        if name in others and _outline(child) != _outline(others[name]):
            return _first_difference((*path, name), child, others[name])
    return path


def _named(path: Path) -> str:
    return ".".join(path) or "the module"
