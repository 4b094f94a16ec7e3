"""`pyro-vae report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyro_vae.cli.answer import Answer, add_command, add_which, shows_progress
from pyro_vae.cli.arguments import add_option
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import OpenRun
from pyro_vae.cli.kinds import SEED, whole
from pyro_vae.report import write_report
from pyro_vae.vae import VAE

__all__ = ["add_report"]

ABOUT = """Write one HTML page about a run, report.html in its folder.

It shows how the VAE trained, what it makes of test data, and the log p(x) that `evaluate` kept; without one, it is
estimated for --num-test data."""

EXAMPLES = """examples:
  pyro-vae report runs/digits
  pyro-vae report runs/digits --with runs/other --output comparison.html"""


def add_report(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "report", report, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write the page, by default report.html in the folder"
    )
    parser.add_argument("--with", dest="other", metavar="RUN", help="another run, to be evaluated on the same data")
    add_option(parser, "num_test", whole(), "how many of the test data to evaluate, where none are yet; default 100")
    add_option(parser, "seed", SEED, "of the draws, default 0")
    add_which(parser)


def report(args: argparse.Namespace) -> Answer:
    """Write the page."""
    run = OpenRun(args.run, args.which)
    path = write_report(
        run.folder, run.data.with_context(run.data.test), vae=run.vae, evidence=run.evidence(),
        output=None if args.output is None else Path(args.output),
        compare_with=None if args.other is None else _other(run, OpenRun(args.other, args.which)),
        num_data=getattr(args, "num_test", 100), seed=getattr(args, "seed", 0), progress=shows_progress(),
    )  # fmt: skip
    return Answer(f"written     {path}", {"run": str(run.folder), "report": str(path)})


def _other(run: OpenRun, other: OpenRun) -> tuple[Path, VAE]:
    """Open another run, if it has the same test data; on others it may have been trained."""
    shown, others = (each.recorded["test"]["sha256"][:12] for each in (run, other))
    if shown != others:
        refuse(
            "--with", f"a run with the test data of {str(run.folder)!r}, sha256 {shown}",
            f"{str(other.folder)!r}, whose are others, {others}",
            "train both on the same --data with the same --seed and binarization, or name the data by --test",
        )  # fmt: skip
    return other.folder, other.vae
