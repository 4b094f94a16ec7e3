"""Tell a function's own options from the arguments of the program that it runs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

__all__ = ["refusing_unknown_options", "unknown_option"]

P = ParamSpec("P")
R = TypeVar("R")


def refusing_unknown_options(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse a keyword that is no option of a function, and say where it belongs: `kwargs={...}` is the program's."""
    parameters = inspect.signature(function).parameters.values()
    options = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}

    @functools.wraps(function)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        for name, value in keywords.items():
            if name not in named:
                raise unknown_option(function.__name__, name, value, options)
        return function(*args, **keywords)

    return checked


def unknown_option(owner: str, name: str, value: Any, options: Collection[str]) -> TypeError:
    """Make the error of an option that its owner has not, with the nearest of those that it has."""
    near = difflib.get_close_matches(name, options, n=1) or sorted(set(options) - {"kwargs"})
    mend = f"pass {' or '.join(near)}"
    if "kwargs" in options:
        own = f", or an option by its name: {' or '.join(near)}" if near else "; it has no options"
        mend = f"pass an argument of model and guide as kwargs={{{name!r}: ...}}{own}"
    return TypeError(f"{name}: expected an option of {owner}; got {name}={_short(value)}; {mend}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"a {type(value).__name__}"
