"""`pyro-vae reconstruct`."""

from __future__ import annotations

import argparse
from typing import Any

from pyro_vae.cli.answer import Answer, add_command, add_which
from pyro_vae.cli.arguments import add_option
from pyro_vae.cli.folder import OpenRun
from pyro_vae.cli.kinds import whole
from pyro_vae.cli.output import PICTURES, checked_output, write_arrays, write_picture

__all__ = ["add_reconstruct"]

ABOUT = """Show test data beside what the VAE makes of them: the mean of p(x|z) at the mean of q(z|x)."""

EXAMPLES = """examples:
  pyro-vae reconstruct runs/digits --num-test 30 --output reconstructions.png
  pyro-vae reconstruct runs/iris --output reconstructions.csv"""


def add_reconstruct(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "reconstruct", reconstruct, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--output", metavar="FILE", required=True, help="a picture (.png), or .npz or .csv")
    add_option(parser, "num_test", whole(), "how many of the test data, the first; default 30")
    add_which(parser)


def reconstruct(args: argparse.Namespace) -> Answer:
    """Reconstruct, and write both."""
    run = OpenRun(args.run, args.which)
    path = checked_output(args.output, run.is_of_images)
    test = run.test_data(getattr(args, "num_test", None), 30)
    made = run.in_own_unit(run.vae.reconstruct(test.x, *run.context(test)))
    original = run.in_own_unit(test.x)
    if path.suffix.lower() in PICTURES:
        write_picture(path, made, original)
    else:
        write_arrays(path, run.names, x=made, original=original)
    error = (made - original).square().nanmean().sqrt().item()  # of what was observed
    values = {"run": str(run.folder), "output": str(path), "num_data": len(test), "root_mean_squared_error": error}
    return Answer(f"written     {len(test):,} reconstructions to {path}\nroot mean squared error {error:.4g}", values)
