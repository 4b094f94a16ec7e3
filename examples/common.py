"""What the composed examples share: their arguments, binary digits, and batches."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import pyro_vae as pv


def arguments(description: str | None, argv: list[str] | None, num_epochs: int) -> argparse.Namespace:
    """--data-dir, --num-epochs, --seed, --output and --smoke; the folder of the output is made."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="where data lie, or are downloaded to; default %(default)s"
    )
    parser.add_argument("--num-epochs", type=int, default=num_epochs, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of figures, default %(default)s")
    parser.add_argument("--smoke", action="store_true", help="one epoch on a few digits, to see that it runs")
    args = parser.parse_args(argv)
    if args.smoke:
        args.num_epochs = 1
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    return args


def digits(args: argparse.Namespace) -> tuple[pv.data.Dataset, pv.data.Dataset]:
    """Binarized handwritten digits to train and to test on."""
    train, test = (pv.data.mnist(args.data_dir, split=split, seed=args.seed) for split in ("train", "test"))
    if args.smoke:
        train, test = train.first(500), test.first(100)
    print(f"train  {train.provenance}\ntest   {test.provenance}")
    return train, test


def one_hot(labels: Tensor) -> Tensor:
    """Digits 0 to 9 as unit vectors `(N, 10)`."""
    return torch.nn.functional.one_hot(labels, 10).float()


def batches(num_data: int, batch_size: int) -> Iterator[Tensor]:
    """Row numbers in a new order, a batch at a time."""
    yield from torch.randperm(num_data).split(batch_size)
