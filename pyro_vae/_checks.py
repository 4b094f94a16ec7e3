"""Checks of arguments. Every message says what was expected, what was found, and what to do about it."""

from __future__ import annotations

import math
import numbers
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

IMAGE_CHANNELS = (1, 3, 4)
PACKAGE = str(Path(__file__).parent)

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting_values() -> Iterator[None]:
    """Check shapes alone: while a graph is traced, tensors have no values, which were checked before."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def whole_number(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int, if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected a whole number; got {value!r} of type {type(value).__name__}; pass an int.")
    number = int(value)
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}; got {number}; pass an int of {minimum} or more.")
    return number


def seed(value: Any) -> int:
    """Return `value` as an int, if a torch generator takes it."""
    if whole_number("seed", value, minimum=0) >= 2**63:
        raise ValueError(f"seed: expected less than 2**63; got {value}; pass a smaller one.")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Return `value` as a float, if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a positive number; got {value!r} of type {type(value).__name__}; pass one.")
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0; got {number}; pass a positive finite number.")
    return number


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a float, if it is a finite number from zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number from 0; got {value!r} of type {type(value).__name__}; pass one.")
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number from 0; got {number}; pass 0 or more.")
    return number


def probability(name: str, value: Any) -> float:
    """Return `value` as a float, if it lies between 0 and 1 and is neither."""
    number = positive(name, value)
    if number >= 1:
        raise ValueError(f"{name}: expected a number between 0 and 1; got {number}; pass a smaller one.")
    return number


def choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return `value`, if it is one of `choices`."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {listed}; got {value!r}; pick one of them.")
    return value


def shape(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """Return a width or a shape as a tuple of positive whole numbers."""
    sizes = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    return tuple(whole_number(name, size) for size in sizes)


def warn(message: str) -> None:
    """Warn, at the line outside the package that called it; of several processes, in the first."""
    if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
        return
    frames = (frame.filename for frame in reversed(traceback.extract_stack()[:-1]))
    level = next((i for i, name in enumerate(frames, start=2) if not name.startswith(PACKAGE)), 2)
    warnings.warn(message, stacklevel=level)


def program(name: str, value: Any) -> None:
    """Check a Pyro program."""
    if not callable(value):
        raise TypeError(
            f"{name}: expected a Pyro program, a function or a module; got one of type {type(value).__name__}; pass "
            "model and guide first, and then what they take: (vae.model, vae.guide, x)."
        )


def keyword_arguments(kwargs: Any) -> dict[str, Any]:
    """Copy the keyword arguments of a program to a dictionary."""
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(
            f"kwargs: expected a dictionary from names to keyword arguments of model and guide; got {kwargs!r}; pass "
            'kwargs={"beta": 0.5}, say.'
        )
    return dict(kwargs)


def tensor(name: str, value: Any) -> Tensor:
    """Return `value` as a dense, real tensor of at least one row; numpy arrays are accepted, and nothing is copied."""
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor (N, ...) or a numpy array; got {_describe(value)}.")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor; got layout {value.layout}; call {name}.to_dense().")
    if value.is_complex():
        raise TypeError(f"{name}: expected real numbers; got {value.dtype}; pass the real part, or stack both parts.")
    if value.ndim == 0:
        raise ValueError(f"{name}: expected a batch (N, ...); got a single number; pass a tensor with rows.")
    if len(value) == 0:
        raise ValueError(f"{name}: expected at least one datum; got shape {tuple(value.shape)}; pass rows.")
    return value


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # nothing here writes to data
            return torch.as_tensor(array)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected an array of numbers; got dtype {array.dtype}; convert it to float32."
        ) from error


def _describe(value: Any) -> str:
    if value is None:
        return "None; pass the data"
    if isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value):
        kind = type(value).__name__
        return (
            f"a {kind} of {len(value)}, as a data loader gives (x, label); unpack it and pass x alone; if these are "
            "rows, torch.stack them"
        )
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__}; convert it with torch.as_tensor(...)"
    if isinstance(value, Mapping):
        return "a dictionary; pass its tensors, and wrap model and guide, lambda x: model({...}), to make it of them"
    if isinstance(getattr(value, "x", None), Tensor):
        return f"a {type(value).__name__}; pass its tensor, .x"
    return f"{type(value).__name__}; convert it with torch.as_tensor(...)"


def finite(name: str, x: Tensor, remedy: str = "remove or impute them") -> Tensor:
    """Return `x`, if it holds neither NaN nor infinity; `remedy` is the advice of the error."""
    # One fast pass: a sum is finite only if its terms are. It may overflow where they are huge, hence the second pass.
    if _trusted.get() or not x.is_floating_point() or x.is_meta or torch.isfinite(x.sum()) or torch.isfinite(x).all():
        return x
    bad = (~torch.isfinite(x)).flatten(1).any(1) if x.ndim > 1 else ~torch.isfinite(x)
    rows = bad.nonzero().flatten()
    raise ValueError(
        f"{name}: expected finite numbers; got NaN or infinity in {len(rows)} of these {len(x)} data (first at index "
        f"{int(rows[0])} of them); {remedy}."
    )


def finite_or_missing(name: str, x: Tensor) -> Tensor:
    """Return `x`, if it holds no infinity. NaN stands for what is missing."""
    if not _trusted.get() and x.isinf().any():
        rows = x.isinf().reshape(len(x), -1).any(1).nonzero().flatten()
        raise ValueError(
            f"{name}: expected finite numbers, or NaN where one is missing; got infinity in {len(rows)} of these "
            f"{len(x)} data (first at index {int(rows[0])} of them); scale them, or put NaN in its place."
        )
    return x


def batch_of(name: str, x: Tensor, event_shape: tuple[int, ...], plates: Mapping[int, int]) -> Tensor:
    """View `x` as `(..., N, *event_shape)`: flat data and images are alike, if a datum has as many elements.

    `plates` are the sizes of the plates around it by (negative) dimension; that at -1 is N. Dimensions to the left of N
    are those of plates; without such plates there are none.
    """
    shape = tuple(x.shape)
    readings = [
        k for k in range(1, x.ndim + 1) if _is_batch(shape[:k], plates) and _is_same_layout(shape[k:], event_shape)
    ]
    exact = [k for k in readings if shape[k:] == tuple(event_shape)]
    if exact:
        return x
    if len(readings) == 1 and not _is_channels_last(shape[readings[0] :], event_shape):
        return x.reshape(*shape[: readings[0]], *event_shape)
    if len(readings) > 1:
        raise ValueError(
            f"{name}: expected a shape that can be read in one way; got {shape}, whose batch dimensions are the first "
            f"{' or '.join(map(str, readings))}; reshape it to (..., {', '.join(map(str, ['N', *event_shape]))})."
        )
    raise ValueError(_not_a_batch(name, x, event_shape, plates))


def _is_batch(batch: tuple[int, ...], plates: Mapping[int, int]) -> bool:
    """Tell whether these can be the batch dimensions of data inside plates; without plates there is one."""
    if len(batch) > max((-dim for dim in plates), default=1) or batch[-1] != plates.get(-1, batch[-1]):
        return False
    return all(size in (1, plates.get(-i)) for i, size in enumerate(reversed(batch[:-1]), start=2))


def _not_a_batch(name: str, x: Tensor, event_shape: tuple[int, ...], plates: Mapping[int, int]) -> str:
    """Say what is wrong with a shape, and what to do."""
    shape, given, expected = tuple(x.shape), tuple(x.shape[1:]), _shape_of_rows(event_shape, plates)
    batch = shape[: len(shape) - len(event_shape)]
    if _is_channels_last(given, event_shape):
        return (
            f"{name}: expected channels first, {expected}; got {shape}, whose channels look to be last; "
            f"call {name}.permute(0, 3, 1, 2), or {name}.flatten(1) if the last dimension is no channel."
        )
    if _is_same_layout(given, event_shape) or (len(batch) > 1 and shape[len(batch) :] == tuple(event_shape)):
        found = ", ".join(f"{size} at dim={dim}" for dim, size in sorted(plates.items(), reverse=True)) or "none"
        return (
            f"{name}: expected {expected}, its batch dimensions being those of the plates around it ({found}); got "
            f"{shape}; pass the rows of the plates, or put the call into plates of these sizes, "
            f'pyro.plate("groups", {shape[0]}, dim=-2) say; dim=-1 is the plate over data.'
        )
    if x.numel() == math.prod(event_shape) and _is_same_layout(shape, event_shape):
        return (
            f"{name}: expected a batch, {expected}; got one datum of shape {shape} without a batch dimension; "
            f"pass {name}[None]."
        )
    return (
        f"{name}: expected {math.prod(event_shape)} numbers a datum, {expected}; got shape {shape}, "
        f"{math.prod(given)} a datum; resize or permute the data, or build the networks for them."
    )


def _shape_of_rows(event_shape: tuple[int, ...], plates: Mapping[int, int]) -> str:
    return f"({', '.join(map(str, [plates.get(-1, 'N'), *event_shape]))})"


def ends_with(name: str, value: Tensor, event_shape: tuple[int, ...]) -> Tensor:
    """Return `value`, if it is `(..., N, *event_shape)`."""
    if value.ndim <= len(event_shape) or tuple(value.shape[value.ndim - len(event_shape) :]) != tuple(event_shape):
        expected = f"(..., {', '.join(map(str, ['N', *event_shape]))})"
        raise ValueError(
            f"{name}: expected shape {expected}; got {tuple(value.shape)}; reshape it; what all data share has one row."
        )
    return value


def _is_same_layout(given: tuple[int, ...], event_shape: tuple[int, ...]) -> bool:
    """Tell whether one is a view of the other: equal but for dimensions of size one, or one of the two flat."""
    given, event_shape = (tuple(size for size in shape if size != 1) for shape in (given, event_shape))
    return math.prod(given) == math.prod(event_shape) and (
        given == event_shape or min(len(given), len(event_shape)) <= 1
    )


def _is_channels_last(given: tuple[int, ...], event_shape: tuple[int, ...]) -> bool:
    if len(given) != 3 or given == event_shape:
        return False
    looks_last = given[-1] in IMAGE_CHANNELS and given[0] not in IMAGE_CHANNELS
    return looks_last or (given[-1], *given[:-1]) == event_shape


def same_device(name: str, x: Tensor, device: torch.device) -> Tensor:
    """Return `x`, if it lies on the device of the parameters."""
    if x.device != device:
        raise ValueError(
            f"{name}: expected a tensor on {device}, where the parameters are; got one on {x.device}; "
            f'call {name}.to("{device}").'
        )
    return x


def in_support(name: str, x: Tensor, support: Any, remedy: str, of: str = "the likelihood's support") -> Tensor:
    """Return `x`, if it lies in a support, such as that of the likelihood; `remedy` is the advice of the error."""
    if _trusted.get() or support.check(x).all():
        return x
    each = support
    while hasattr(each, "base_constraint"):
        each = each.base_constraint
    outside = ~each.check(x)
    first = tuple(outside.nonzero()[0].tolist())
    value = f"{x[first].item():g}" if outside.shape == x.shape else "a datum outside"
    low, high = (bound(x[~x.isnan()]).item() for bound in (torch.min, torch.max))
    raise ValueError(
        f"{name}: expected values in {of}, {_support_name(support)}; got {value} at index "
        f"{list(first)}, and values from {low:g} to {high:g} in all; {remedy}."
    )


def _support_name(support: Any) -> str:
    return str(getattr(support, "base_constraint", support)).replace("Boolean()", "{0, 1}")


def same_plates(site: str, of_model: Iterable[Any], of_guide: Iterable[Any]) -> None:
    """Raise unless a site of the guide lies in the plates, given by their frames, that it has in the model."""
    here, there = ({frame.dim: (frame.name, frame.size) for frame in frames} for frames in (of_model, of_guide))
    if here != there:
        raise ValueError(
            f"guide: expected site {site!r} in the plates that it has in the model, {_listed(here)}; got "
            f"{_listed(there)}; give both the same names, dimensions and sizes."
        )


def _listed(plates: dict[int, tuple[str, int]]) -> str:
    named = (f"{name!r} of size {size} at dim={dim}" for dim, (name, size) in sorted(plates.items(), reverse=True))
    return " and ".join(named) or "none"


def missing_package(name: str, package: str, purpose: str, install: str | None = None) -> ImportError:
    """Make the error of a package that is not there, with the command that brings it."""
    message = f"{name}: expected the package {package}, {purpose}; got none; pip install {install or package}."
    return ImportError(message, name=package)
