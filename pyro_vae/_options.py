"""Tell a function's own options from the arguments of the program that it runs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["refusing_unknown_options"]

P = ParamSpec("P")
R = TypeVar("R")


def refusing_unknown_options(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a keyword that is no option of a function, and say where it belongs: `kwargs={...}` is the program's."""
    options = [each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        for name, value in keywords.items():
            if name not in {*options, "model", "guide"}:
                near = difflib.get_close_matches(name, options, n=1)
                own = near or sorted(set(options) - {"kwargs"})
                otherwise = f", or an option by its name: {' or '.join(own)}" if own else "; it has no options"
                raise TypeError(
                    f"{name}: expected an option of {function.__name__}; got {name}={_short(value)}; pass an "
                    f"argument of model and guide as kwargs={{{name!r}: ...}}{otherwise}."
                )
        return function(*args, **keywords)

    return checked


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"a {type(value).__name__}"
