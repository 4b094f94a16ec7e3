"""The options of an estimator beside the keyword arguments of the program that it evaluates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["apart_from_the_program"]

P = ParamSpec("P")
R = TypeVar("R")


def apart_from_the_program(*shared: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse an option that model or guide has an argument of the same name as: who was meant cannot be told.

    Args:
        shared: options that go to the model as well.
    """

    def decorate(estimator: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(estimator).parameters.values()
        options = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} - set(shared)

        @functools.wraps(estimator)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            programs = dict(zip(("model", "guide"), args, strict=False)) | {
                role: kwargs[role] for role in ("model", "guide") if role in kwargs
            }
            for role, program in programs.items():
                for name in sorted(options & kwargs.keys() & _names_of_arguments(program)):
                    raise ValueError(
                        f"{role}: expected arguments with other names than the options of {estimator.__name__}; got "
                        f"{name}={kwargs[name]!r}, which is an option and an argument of the {role}; rename it there, "
                        f"or give it by a function of your own, such as lambda x: {role}(x, {name}=...)."
                    )
            return estimator(*args, **kwargs)

        return checked

    return decorate


def _names_of_arguments(program: Any) -> set[str]:
    """Those that can be given by name and are not yet bound by `functools.partial`."""
    bound = set(getattr(program, "keywords", None) or ())
    try:
        parameters = inspect.signature(getattr(program, "forward", program)).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)} - bound
