"""Kinds of values that options take: from a command line, as text, and from TOML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FLAG", "IMAGE_SIZE", "SEED", "TEXT", "Kind", "choice", "number", "several", "whole"]


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
        expected: in words, for errors.
        read: makes the value of text or of TOML's; raises a TypeError or ValueError for what is none.
        metavar: its name in a help text; "" for a flag.
        remedy: what to do instead.
        takes_many: whether a list is expected.
    """

    expected: str
    read: Callable[[Any], Any]
    metavar: str
    remedy: str = "pass one"
    takes_many: bool = False


def whole(minimum: int = 1, metavar: str = "N") -> Kind:
    """A whole number of at least `minimum`."""

    def read(value: Any) -> int:
        value = int(value) if isinstance(value, str) else value
        if type(value) is not int or not minimum <= value < 2**63:
            raise ValueError
        return value

    return Kind(f"a whole number of {minimum} or more", read, metavar)


def number(minimum: float = 0.0, metavar: str = "X", *, may_be_least: bool = False) -> Kind:
    """A finite number above `minimum`, or from it."""

    def read(value: Any) -> float:
        found = math.nan if isinstance(value, bool) else float(value)
        if not (minimum < found < math.inf or (may_be_least and found == minimum)):
            raise ValueError
        return found

    return Kind(f"a finite number {'from' if may_be_least else 'above'} {minimum:g}", read, metavar)


def choice(*names: str) -> Kind:
    """One of several names."""

    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(names)}", read, "{" + ",".join(names) + "}", "pick one of them")


def several(each: Kind, least: int = 0) -> Kind:
    """A list of values of one kind."""

    def read(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < least:
            raise TypeError
        return tuple(each.read(value) for value in values)

    plural = each.expected.replace("a whole number", "whole numbers")
    return Kind(plural, read, each.metavar, "pass them apart, 200 200", takes_many=True)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _image_size(value: Any) -> tuple[int, ...]:
    parts = value.lower().split("x") if isinstance(value, str) else value
    sizes = tuple(whole().read(part) for part in parts)
    if len(sizes) != 2:
        raise ValueError
    return sizes


TEXT = Kind("text that is not empty", _text, "TEXT", "name it")
FLAG = Kind("true or false", _flag, "", "write true or false")
IMAGE_SIZE = Kind("height x width, in pixels", _image_size, "HxW", "pass 64x48, say")
SEED = whole(minimum=0, metavar="SEED")
