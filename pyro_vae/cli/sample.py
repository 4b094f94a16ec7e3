"""`pyro-vae sample`."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from pyro_vae.cli.answer import Answer, add_command, add_which
from pyro_vae.cli.arguments import add_option
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import OpenRun
from pyro_vae.cli.kinds import SEED, whole
from pyro_vae.cli.output import PICTURES, checked_output, write_arrays, write_picture
from pyro_vae.cli.rundata import as_context

__all__ = ["add_sample"]

ABOUT = """Draw new data from p(x).

z is drawn from the prior and x from p(x|z); with --mean, x is the mean of p(x|z) instead, as pictures often show it."""

EXAMPLES = """examples:
  pyro-vae sample runs/digits --num-samples 64 --output grid.png
  pyro-vae sample runs/digits --num-samples 64 --mean --output means.png
  pyro-vae sample runs/iris --num-samples 1000 --output drawn.csv
  pyro-vae sample runs/labelled --num-samples 10 --label 3 --output threes.png"""


def add_sample(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "sample", sample, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--output", metavar="FILE", required=True, help="a picture (.png), or .npz or .csv")
    add_option(parser, "num_samples", whole(), "default 64")
    add_option(parser, "label", whole(0), "of all of them, for a conditional VAE; by default each in turn")
    parser.add_argument("--mean", action="store_true", help="the mean of p(x|z) in place of a draw")
    add_option(parser, "seed", SEED, "of the draws, default 0")
    add_which(parser)


def sample(args: argparse.Namespace) -> Answer:
    """Draw, and write what was drawn."""
    run = OpenRun(args.run, args.which)
    path = checked_output(args.output, run.is_of_images)
    number = getattr(args, "num_samples", 64)
    labels = _labels(run, number, getattr(args, "label", None))
    context = () if labels is None else (as_context(labels, run.num_labels or 0),)
    drawn = run.in_own_unit(_drawn(run, number, context, getattr(args, "seed", 0), args.mean))
    if path.suffix.lower() in PICTURES:
        write_picture(path, drawn)
    else:
        write_arrays(path, run.names, x=drawn, **({} if labels is None else {"labels": labels}))
    what = "means of p(x|z)" if args.mean else "draws of x"
    values = {"run": str(run.folder), "output": str(path), "num_samples": number, "mean": args.mean}
    return Answer(f"written     {number:,} {what} to {path}", values)


def _labels(run: OpenRun, number: int, label: int | None) -> Tensor | None:
    if run.num_labels is None:
        if label is not None:
            refuse(
                "--label",
                "none, for a VAE that is not conditional",
                str(label),
                "leave it out, or train with --conditional",
            )
        return None
    if label is not None and label >= run.num_labels:
        refuse("--label", f"a class from 0 to {run.num_labels - 1}", str(label), "pick one of them")
    return torch.arange(number) % run.num_labels if label is None else torch.full((number,), label)


@torch.no_grad()
def _drawn(run: OpenRun, number: int, context: tuple[Tensor, ...], seed: int, mean: bool) -> Tensor:
    vae = run.vae
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not mean:
            return vae.sample(number, *context)
        z = vae.prior(*context)
        z = z.sample() if z.batch_shape else z.sample((number,))
        return vae.decode(z, *context).mean
