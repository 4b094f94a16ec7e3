"""The parser: options made from tables, and errors that are one line with a remedy."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from pyro_vae.cli.failure import Refusal
from pyro_vae.cli.kinds import FLAG, Kind
from pyro_vae.cli.settings import Settings, flag_of, read_value

__all__ = ["Command", "Parser", "add_option", "add_settings"]

Command = Callable[[argparse.Namespace], Any]


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviation, and raises what it has against the command line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **(options | kwargs))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and name the nearest option to one that is unknown."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse_unknown(unknown[0], getattr(found, "parser", self))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise a refusal in the wording of all errors."""
        raise Refusal(self._reworded(message))

    def _refuse_unknown(self, text: str, parser: argparse.ArgumentParser) -> NoReturn:
        option = text.split("=", maxsplit=1)[0]
        if not option.startswith("-"):
            raise Refusal(f"{text}: expected no further argument; got {text!r}; put quotes around names with spaces")
        known = [each for action in parser._actions for each in action.option_strings]
        near = difflib.get_close_matches(option, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
        raise Refusal(f"{option}: expected an option of {parser.prog}; got {option!r}; {remedy}")

    def _reworded(self, message: str) -> str:
        see = f"see {self.prog} --help"
        if match := re.match(r"argument (\S+?): expected (?:one|at least one) argument", message):
            return f"{match[1]}: expected a value; got none; {see}"
        if match := re.match(r"argument (\S+?): not allowed with argument (\S+)", message):
            return f"{match[1]}: expected one of {match[2]} and {match[1]}; got both; leave one of them out"
        if match := re.match(r"argument (\S+?): invalid choice: (.+?) \(choose from (.+)\)", message):
            return _of_choice(match[1], match[2], match[3].replace("'", "").split(", "))
        if match := re.match(r"the following arguments are required: (\S+)", message):
            return f"{match[1].rstrip(',')}: expected a value; got none; {see}"
        if match := re.match(r"argument (\S+?): ignored explicit argument (.+)", message):
            return f"{match[1]}: expected no value; got {match[2]}; leave it out"
        return f"{self.prog}: expected arguments that can be read; got an error, {message}; {see}"


def _of_choice(name: str, found: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(found.strip("'"), choices, n=1)
    remedy = f"did you mean {near[0]}?" if near else "pick one of them"
    return f"{name}: expected one of {', '.join(choices)}; got {found}; {remedy}"


class _Read(argparse.Action):
    """Reads a value by its kind, so that an error has the wording of all errors."""

    def __init__(self, *args: Any, kind: Kind, **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(*args, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, read_value(option_string, self.kind, values))


def add_option(group: Any, name: str, kind: Kind, text: str) -> None:
    """Add an option that is not in the namespace unless it was given."""
    if kind is FLAG:
        group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    group.add_argument(
        flag_of(name), dest=name, action=_Read, kind=kind, default=argparse.SUPPRESS, metavar=kind.metavar,
        nargs="*" if kind.takes_many else None, help=text,
    )  # fmt: skip


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`, by group."""
    groups: dict[str, Any] = {}
    for each in fields(Settings):
        name, kind, about = each.metadata["group"], each.metadata["kind"], each.metadata["help"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        if each.name == "image_fit":
            _add_fits(groups[name].add_mutually_exclusive_group())
            continue
        default = "" if each.default is MISSING else str(each.default)
        add_option(groups[name], each.name, kind, about.replace("%(default)s", default).replace("%", "%%"))


def _add_fits(group: Any) -> None:
    """Add the two ways to bring an image to a size, as flags."""
    for fit, text in {
        "resize": "to --image-size, whatever becomes of the proportions (the default)",
        "crop": "to the middle, scaled to fill --image-size",
    }.items():
        group.add_argument(
            f"--{fit}", dest="image_fit", action="store_const", const=fit, default=argparse.SUPPRESS, help=text
        )
