"""`pyro-vae compare`."""

from __future__ import annotations

import argparse
from typing import Any

import pyro_vae as pv
from pyro_vae.cli.answer import Answer, add_command
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import EVIDENCE, OpenRun

__all__ = ["add_compare"]

ABOUT = """Compare log p(x) of two runs, datum by datum, on the same test data.

Both must have been evaluated. Figures that cannot be compared, of other data, another binarization, or a density beside
a probability, are refused."""

EXAMPLES = """examples:
  pyro-vae evaluate runs/a
  pyro-vae evaluate runs/b
  pyro-vae compare runs/a runs/b"""


def add_compare(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "compare", compare, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("other", help="the folder of another")


def compare(args: argparse.Namespace) -> Answer:
    """Compare two evaluations."""
    runs = [OpenRun(folder) for folder in (args.run, args.other)]
    a, b = map(_evidence, runs)
    _refuse_other_units(*runs)
    result = pv.compare(a, b)
    values = {
        "a": {"run": args.run, "log_evidence": a.mean},
        "b": {"run": args.other, "log_evidence": b.mean},
        "difference": result.mean,
        "std_error": result.std_error,
        "monte_carlo_std_error": result.mean_monte_carlo_std_error,
        "num_data": len(result.difference),
        "num_unreliable": result.num_unreliable,
    }
    lines = [
        f"log p(x) of {len(a):,} test data; nats per datum",
        f"a  {a.mean:>12.3f}   {args.run}",
        f"b  {b.mean:>12.3f}   {args.other}",
        f"a - b  {result.mean:>8.3f}   +- {result.std_error:.3f} for other data, of which the draws "
        f"{result.mean_monte_carlo_std_error:.3f}",
    ]
    if result.num_unreliable:
        lines.append(
            f"warning: {result.num_unreliable:,} of them are not reliable: evaluate with more --max-evaluations"
        )
    return Answer("\n".join(lines), values)


def _evidence(run: OpenRun) -> pv.Evidence:
    found = run.evidence()
    if found is None:
        is_old = (run.folder / EVIDENCE).is_file()
        why = "which was trained further since" if is_old else "which was not"
        refuse("run", "a run that was evaluated", f"{str(run.folder)!r}, {why}", f"pyro-vae evaluate {run.folder}")
    return found


def _refuse_other_units(a: OpenRun, b: OpenRun) -> None:
    if (a.scaling is None) != (b.scaling is None):
        refuse(
            "run", "densities in one unit", "one run of standardized columns and one of columns as they are",
            "train both alike, with --standardize or --no-standardize",
        )  # fmt: skip
