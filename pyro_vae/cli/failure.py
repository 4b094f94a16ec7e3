"""How a command ends: its exit codes, and the one line that says what was wrong."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["BAD_INPUT", "DIVERGED", "DONE", "INTERRUPTED", "TERMINATED", "Refusal", "one_line", "refuse"]

DONE, BAD_INPUT, DIVERGED, INTERRUPTED, TERMINATED = 0, 2, 3, 130, 143


class Refusal(Exception):
    """Input that a command cannot work with; the message says what, and what to do."""


def refuse(argument: str, expected: str, found: str, remedy: str) -> NoReturn:
    """Raise a refusal in the wording of all errors."""
    raise Refusal(f"{argument}: expected {expected}; got {found}; {remedy}")


def one_line(text: str) -> str:
    """Join the lines of a message."""
    return " ".join(text.split())
