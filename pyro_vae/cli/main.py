"""The command line: its parser, and how errors and signals end it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from pyro_vae import DivergedError, __version__, distributed
from pyro_vae.cli.answer import Answer
from pyro_vae.cli.arguments import Parser
from pyro_vae.cli.compare import add_compare
from pyro_vae.cli.data import add_data
from pyro_vae.cli.evaluate import add_evaluate, evaluate
from pyro_vae.cli.failure import BAD_INPUT, DIVERGED, DONE, INTERRUPTED, Refusal, one_line
from pyro_vae.cli.folder import plain
from pyro_vae.cli.impute import add_impute
from pyro_vae.cli.info import add_info
from pyro_vae.cli.reconstruct import add_reconstruct
from pyro_vae.cli.report import add_report
from pyro_vae.cli.sample import add_sample
from pyro_vae.cli.settings import flag_of
from pyro_vae.cli.train import add_train, train

__all__ = ["main", "parser"]

ABOUT = """Train a VAE on your data, and find its log p(x), with an error that can be trusted.

A run lies in a folder, which every command takes first."""

EXAMPLES = """examples:
  pyro-vae train runs/a --data mnist --num-epochs 20
  pyro-vae evaluate runs/a
  pyro-vae report runs/a

Data are a name (mnist, cifar-10, ...: pyro-vae data lists them), a folder of images, or an .npz, .npy, .csv or .parquet
file.
Each command has its own --help, with examples.

exit codes:
    0  done
    1  an error of the program's own, with a traceback
    2  bad input: one line says what was expected, and what to do
    3  training diverged
  130  interrupted by Ctrl-C; go on with train --resume
  143  ended by SIGTERM, after a checkpoint; go on with train --resume"""

COMMANDS = (
    add_train, add_evaluate, add_report, add_sample, add_reconstruct, add_impute, add_compare, add_info, add_data,
)  # fmt: skip
TOGETHER = (train, evaluate)
"""Commands that several processes run together."""
OPTIONAL = {"PIL": "pillow", "matplotlib": "matplotlib", "torchvision": "torchvision", "mlxtend": "mlxtend"}


def parser() -> Parser:
    """Make the parser of all commands."""
    made = Parser(prog="pyro-vae", description=ABOUT, epilog=EXAMPLES)
    made.add_argument("--version", action="version", version=f"pyro-vae {__version__}")
    commands = made.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in COMMANDS:
        add(commands)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    flags: set[str] = set()
    try:
        args = _parsed(given)
        flags = {flag for action in args.parser._actions for flag in action.option_strings}
        args.argv = given
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]inf)")  # the error of `fit` says more
            answer = _answer(args)
        if answer is None:
            return DONE
        print(json.dumps(plain(answer.values)) if args.json else answer.text)
    except (Refusal, DivergedError, ValueError, TypeError, OSError, ImportError) as error:
        return _failed(error, flags)
    except KeyboardInterrupt:
        print("interrupted; a run goes on with train --resume", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else DONE
    return DONE


def _parsed(given: list[str]) -> argparse.Namespace:
    """Parse the arguments; among several processes, which get the same, the first alone says what is wrong."""
    if os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        return parser().parse_args(given)
    with redirect_stdout(io.StringIO()):
        try:
            return parser().parse_args(given)
        except Refusal:
            raise SystemExit(BAD_INPUT) from None


def _answer(args: argparse.Namespace) -> Answer | None:
    """Run a command: in all processes that torchrun started, or in the first alone, which alone answers."""
    if args.command in TOGETHER or distributed.team() is None:
        answer = args.command(args)
        return answer if distributed.is_first() else None
    with distributed.alone():
        return args.command(args) if os.environ["RANK"] == "0" else None


def _failed(error: Exception, flags: set[str]) -> int:
    """Say in one line what was wrong with the input; an error of the program's own is raised as it is."""
    message = _message(error, flags)
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)
    return DIVERGED if isinstance(error, DivergedError) else BAD_INPUT


def _message(error: Exception, flags: set[str]) -> str | None:
    """Return what is said of an error; None if it is not in the wording of those about input."""
    text = one_line(str(error))
    if isinstance(error, ImportError) and ": expected " not in text:
        package = OPTIONAL.get((error.name or "").split(".")[0])
        return package and f"{package}: expected the package; got none; pip install {package}"
    if isinstance(error, (Refusal, DivergedError)):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'output'}: expected a file to use; got an error, {error.strerror}; check it"
    if ": expected " not in text and not isinstance(error, FileNotFoundError):
        return None
    name, rest = text.split(":", maxsplit=1)
    return f"{flag_of(name)}:{rest}" if flag_of(name) in flags else text


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    if distributed.is_first():
        print(f"warning: {one_line(str(message))}", file=sys.stderr)
