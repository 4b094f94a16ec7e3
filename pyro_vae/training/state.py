"""The state of training beside its weights: as JSON and tensors, and whether training could have written it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.training.history import History

__all__ = ["COLUMNS", "joined", "problems", "split"]

COLUMNS = [field.name for field in fields(History) if field.name != "execution"]
PARTS = {"place": dict, "num_steps": int, "history": dict, "optimizer": dict, "generator": Tensor}
PLACE = {"epoch": int, "batch": int, "loss": float, "seconds": float}


def split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put tensors aside, and write the rest as JSON has it.

    Raises:
        TypeError: for anything but numbers, text, tensors, and dictionaries, lists and tuples of them.
    """
    tensors: dict[str, Tensor] = {}
    return {name: _written(value, tensors) for name, value in values.items()}, tensors


def joined(values: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Undo `split`.

    Raises:
        KeyError, TypeError, ValueError: for what `split` does not write.
    """
    return {name: _read(value, tensors) for name, value in values.items()}


def _written(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return {"$tensor": str(len(tensors) - 1)}
    if isinstance(value, list):
        return [_written(each, tensors) for each in value]
    if isinstance(value, tuple):
        return {"$tuple": [_written(each, tensors) for each in value]}
    if isinstance(value, dict):
        return _written_pairs(value, tensors)
    raise TypeError(
        f"optim: expected a state of numbers, text and tensors, which a checkpoint can hold; got {value!r}; train "
        "without run, or with another optimizer."
    )


def _written_pairs(value: dict[Any, Any], tensors: dict[str, Tensor]) -> Any:
    pairs = [[_written(key, tensors), _written(each, tensors)] for key, each in value.items()]
    if isinstance(value, Counter):
        return {"$counter": pairs}
    is_plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
    return dict(pairs) if is_plain else {"$pairs": pairs}


def _read(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_read(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: _read(each, tensors) for key, each in value.items()}
    if len(value) != 1 or tag not in READERS:
        raise TypeError(f"an object with the key {tag!r}")
    return READERS[tag](value[tag], tensors)


def _read_pairs(pairs: Any, tensors: dict[str, Tensor]) -> dict[Any, Any]:
    return {_read(key, tensors): _read(value, tensors) for key, value in pairs}


READERS: dict[str, Any] = {
    "$float": lambda value, _: float(value),
    "$tensor": lambda value, tensors: tensors[value],
    "$tuple": lambda value, tensors: tuple(_read(each, tensors) for each in value),
    "$pairs": _read_pairs,
    "$counter": lambda value, tensors: Counter(_read_pairs(value, tensors)),
}


def problems(training: dict[str, Any], weights: dict[str, Tensor]) -> Iterator[str]:
    """Yield what no training would have written, beside these weights."""
    wrong = [name for name, kind in PARTS.items() if not _is(training.get(name), kind)]
    wrong += [name for name, kind in PLACE.items() if not wrong and not _is(training["place"].get(name), kind)]
    if wrong or training["place"].keys() != PLACE.keys():
        yield f"nothing that could be its {' or '.join(wrong) or 'place'}"
        return
    yield from _problems_of_history(training["history"], training["place"]["epoch"])
    for name, state in training["optimizer"].items():
        yield from _problems_of_optimizer(name, state, weights)
    for name in training.keys() & {"generator", "generator_of_device"}:
        yield from _problems_of_generator(name, training[name])


def _is(value: Any, kind: type) -> bool:
    """Tell whether a value is of a kind; a number has to be finite and, if whole, not below zero."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is int and value >= 0 if kind is int else isinstance(value, kind)


def _problems_of_history(history: dict[str, Any], num_epochs: int) -> Iterator[str]:
    if history.keys() != set(COLUMNS):
        yield f"a history of {sorted(map(str, history))}"
    for name, column in history.items():
        if not isinstance(column, list) or not all(type(value) in (int, float) for value in column):
            yield f"a history whose {name} is no list of numbers"
        elif len(column) not in (0, num_epochs) or (not column and name == "train_elbo" and num_epochs):
            yield f"a history of {len(column)} numbers in {name} after {num_epochs} epochs"


def _problems_of_optimizer(name: Any, state: Any, weights: dict[str, Tensor]) -> Iterator[str]:
    if name not in weights or not isinstance(state, dict) or state.keys() != {"state", "group", "scheduler"}:
        yield f"an optimizer's state of {name!r}, which has none"
        return
    if not isinstance(state["state"], dict) or not isinstance(state["group"], dict):
        yield f"an optimizer's state of {name!r} without numbers"
    elif not isinstance(state["scheduler"], (dict, type(None))):
        yield f"a schedule of {name!r} that is none"
    else:
        for key, value in state["state"].items():
            if isinstance(value, Tensor) and value.ndim and value.shape != weights[name].shape:
                yield f"an optimizer's {key} of {name!r} of shape {tuple(value.shape)}"


def _problems_of_generator(name: str, state: Any) -> Iterator[str]:
    try:
        if name == "generator":
            torch.Generator().set_state(state)
        elif not isinstance(state, Tensor) or state.dtype != torch.uint8:
            yield f"a {name} that is none"
    except (RuntimeError, TypeError) as error:
        yield f"a generator that torch refuses ({error})"
