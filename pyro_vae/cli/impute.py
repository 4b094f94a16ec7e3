"""`pyro-vae impute`."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.cli.answer import Answer, add_command, add_which, shows_progress
from pyro_vae.cli.arguments import add_option
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import OpenRun
from pyro_vae.cli.kinds import SEED, number, whole
from pyro_vae.cli.output import checked_output, write_arrays
from pyro_vae.cli.rundata import as_context, read_incomplete

__all__ = ["add_impute"]

ABOUT = """Fill in missing entries: the mean and deviation of each, given what was observed of its row.

Draws of z come from p(z | observed entries), which `evaluate`'s estimators find; the encoder is a proposal alone.
Train with --missing keep, on all rows, or with --missing drop, on the complete ones, and fill in those of the same
file."""

EXAMPLES = """examples:
  pyro-vae train runs/survey --data survey.csv --missing keep
  pyro-vae impute runs/survey --output completed.csv
  pyro-vae impute runs/survey --data more.csv --output more.npz       # x, sd, missing, rows, reliable"""


def add_impute(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "impute", impute, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--data", metavar="PATH", help="with missing entries; by default the run's own file")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=".csv, the rows completed; or .npz, with deviations as well; by default imputed.npz in the folder",
    )
    add_option(parser, "num_draws", whole(), "of z, for each row; default 200")
    add_option(
        parser, "tolerance", number(), "the standard error wanted of each row's log p(observed), nats; default 0.1"
    )
    add_option(parser, "max_evaluations", whole(), "the most to spend on a row; default 6000")
    add_option(parser, "seed", SEED, "of the draws, default 0")
    add_which(parser)


def impute(args: argparse.Namespace) -> Answer:
    """Fill in, and write the data."""
    run = OpenRun(args.run, args.which)
    path = checked_output(args.output or str(run.folder / "imputed.npz"), is_of_images=False)
    source = args.data or str(run.settings.data)
    dataset = read_incomplete(run.settings, source)
    if tuple(dataset.x.shape[1:]) != run.shape:
        refuse("--data", f"data of shape {run.shape}", str(tuple(dataset.x.shape[1:])), "pass data of the same form")
    missing = torch.isnan(dataset.x)
    if not missing.any():
        refuse(
            "--data",
            "entries that are missing",
            f"{len(dataset):,} complete data in {source!r}",
            "there is nothing to impute",
        )
    context = () if run.num_labels is None else (as_context(dataset.labels, run.num_labels),)
    given = {
        name: value
        for name, value in vars(args).items()
        if name in ("num_draws", "tolerance", "max_evaluations", "seed")
    }
    done = pv.impute(run.vae, run.standardized(dataset.x), *context, progress=shows_progress(), **given)
    x = torch.where(missing, run.in_own_unit(done.x), dataset.x)
    sd = done.sd if run.scaling is None else done.sd * run.scaling.scale
    labels = {} if dataset.labels is None else {"labels": dataset.labels}
    write_arrays(
        path,
        run.names,
        x=x,
        sd=sd,
        missing=missing,
        rows=done.rows,
        reliable=done.evidence.reliable,
        **labels,
    )
    return _answer(run, path, done)


def _answer(run: OpenRun, path: Any, done: pv.Imputation) -> Answer:
    num_entries, num_rows, reliable = int(done.missing.sum()), len(done.rows), int(done.evidence.reliable.sum())
    lines = [f"written     {num_entries:,} entries of {num_rows:,} data, filled in, to {path}"]
    if reliable < num_rows:
        lines.append(f"warning: {num_rows - reliable:,} of {num_rows:,} are not reliable: raise --max-evaluations")
    values = {
        "run": str(run.folder), "output": str(path), "num_entries": num_entries, "num_rows": num_rows,
        "num_reliable": reliable, "warnings": lines[1:],
    }  # fmt: skip
    return Answer("\n".join(lines), values)
