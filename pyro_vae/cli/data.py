"""`pyro-vae data`."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

from pyro_vae import data
from pyro_vae.cli.answer import Answer, add_command
from pyro_vae.cli.kinds import IMAGE_SIZE
from pyro_vae.cli.rundata import is_binary
from pyro_vae.cli.settings import read_value
from pyro_vae.data import Dataset

__all__ = ["add_data"]

ABOUT = """Say what data there are by name and where they lie; or what a file or folder holds, with its hash.

Nothing is downloaded."""

EXAMPLES = """examples:
  pyro-vae data
  pyro-vae data mnist
  pyro-vae data measurements.csv
  pyro-vae data photos/ --image-size 64x48"""


def add_data(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "data", describe, ABOUT, EXAMPLES)
    parser.add_argument("source", nargs="?", help="a name or a path; all names if it is left out")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER", help="of data with a name, default %(default)s")
    parser.add_argument("--key", metavar="TEXT", help="the array of an .npz file, by default x")
    parser.add_argument("--image-size", metavar="HxW", help="of images of several sizes")


def describe(args: argparse.Namespace) -> Answer:
    """Read what is there, and describe it."""
    if args.source is None or args.source in data.NAMES:
        found = [_by_name(name, args.data_dir) for name in ([args.source] if args.source else data.NAMES)]
    else:
        size = None if args.image_size is None else read_value("--image-size", IMAGE_SIZE, args.image_size)
        whole = data.load(args.source, split="all", missing="keep", binarization=None, key=args.key, image_size=size)
        found = [{"name": args.source, **_described(whole)}]
    return Answer("\n\n".join(map(_text, found)), {"data": found})


def _by_name(name: str, data_dir: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what takes their place is said by the source
            parts = {split: data.load(name, split=split, binarization=None, data_dir=data_dir, download=False)
                     for split in ("train", "test")}  # fmt: skip
    except FileNotFoundError as error:
        return {"name": name, "missing": str(error)}
    return {
        "name": name,
        "folder": str(Path(data_dir).absolute()),
        **{split: _described(part) for split, part in parts.items()},
    }


def _described(dataset: Dataset) -> dict[str, Any]:
    absent = torch.isnan(dataset.x)
    known = dataset.x[~absent]
    return {
        "source": dataset.provenance.source,
        "num_data": len(dataset),
        "shape": list(dataset.x.shape[1:]),
        "min": known.min().item(),
        "max": known.max().item(),
        "is_binary": is_binary(known),
        "num_missing": int(absent.sum()),
        "num_incomplete": int(absent.flatten(1).any(1).sum()),
        "num_labels": None if dataset.labels is None else len(dataset.labels.unique()),
        "sha256": dataset.provenance.sha256,
    }


def _text(found: dict[str, Any]) -> str:
    if "missing" in found:
        return f"{found['name']}: {found['missing']}"
    parts = {"": found} if "shape" in found else {f"{split} ": found[split] for split in ("train", "test")}
    return "\n".join([found["name"], *(_line(label, part) for label, part in parts.items())])


def _line(label: str, part: dict[str, Any]) -> str:
    labels = f", {part['num_labels']} labels" if part["num_labels"] else ""
    missing = (
        f", {part['num_missing']:,} entries missing in {part['num_incomplete']:,} rows" if part["num_missing"] else ""
    )
    kind = "zeros and ones" if part["is_binary"] else f"from {part['min']:g} to {part['max']:g}"
    shape = " x ".join(map(str, part["shape"]))
    what = f"{label}{part['num_data']:,} of {shape}, {kind}{labels}{missing}"
    return f"  {what}; sha256 {part['sha256'][:12]}, {part['source']}"
