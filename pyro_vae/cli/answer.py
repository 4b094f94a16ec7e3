"""What a command answers, and how commands are declared."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from pyro_vae.cli.arguments import Command, Parser

__all__ = ["Answer", "add_command", "add_which", "shows_progress"]


@dataclass(frozen=True)
class Answer:
    """The same in words, for a terminal, and in values, for --json."""

    text: str
    values: dict[str, Any]


def add_command(commands: Any, name: str, command: Command, about: str, examples: str) -> Parser:
    """Declare a command: one line of what it does, and examples."""
    first = about.split("\n", 1)[0].rstrip(".")
    parser: Parser = commands.add_parser(name, help=first[0].lower() + first[1:], description=about, epilog=examples)
    parser.set_defaults(command=command, parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    return parser


def add_which(parser: argparse.ArgumentParser) -> None:
    """Add the choice of parameters."""
    parser.add_argument(
        "--which",
        choices=["best", "last"],
        default="best",
        help="the parameters with the best validation ELBO, or the last",
    )


def shows_progress() -> bool:
    """Tell whether anyone watches: bars are for terminals."""
    return sys.stderr.isatty()
