"""What several processes bring in training and in evaluation, and where the time goes.

    python benchmarks/scaling.py                  # 1 and 2 processes of one thread each: two idle CPU cores
    python benchmarks/scaling.py --limits         # what would limit 8, 64 and 1,024 GPUs, computed from measurements

Training is `fit` of a 784-400-20 VAE on random binary images, compiled; evaluation is `importance_sampling` and
`log_evidence` of a 784-200-200-50 VAE. The efficiency of N processes is the time of one, divided by N times theirs, for
the same work; one and N take turns, and the table has the median of the ratios, with the extremes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae import distributed
from pyro_vae.training import Callback

NUM_DATA, NUM_EPOCHS = 40_000, 8
COUNTED = 3
"""Epochs at the end, by which a step is timed; those before compile."""


def main() -> None:
    args = parse_args()
    if args.limits:
        return print(limits())
    if args.worker:
        return work(args.batch_sizes, args.num_images)
    rounds = [{number: launched(number, args) for number in args.processes} for _ in range(args.num_repetitions)]
    print(f"torch {torch.__version__}, processes of one thread each, {args.num_repetitions} repetitions\n")
    print("| work | one process, ms | processes | ms | efficiency | summing gradients | update | own share |")
    print("|---|---|---|---|---|---|---|---|")
    for name in rounds[0][1]:
        for number in args.processes[1:]:
            print(row(name, number, [{key: each[key][name] for key in (1, number)} for each in rounds]))


def row(name: str, number: int, rounds: list[dict[int, dict[str, float]]]) -> str:
    """Write what N processes took for some work beside what one took."""
    alone, together = (statistics.median(each[key]["seconds"] for each in rounds) for key in (1, number))
    ratios = sorted(each[1]["seconds"] / (number * each[number]["seconds"]) for each in rounds)
    efficiency = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    parts = rounds[-1][number]
    shares = [f"{1e3 * parts[part]:.2f}" if part in parts else "" for part in ("sum", "update", "rest")]
    return f"| {name} | {1e3 * alone:.2f} | {number} | {1e3 * together:.2f} | {efficiency} | {' | '.join(shares)} |"


def launched(number: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run the work in so many processes, and read what the first one says."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"] if number > 1 else []
    sizes = [*map(str, args.batch_sizes)]
    command = [sys.executable, *launcher, __file__, "--worker", "--batch-sizes", *sizes]
    command += ["--num-images", str(args.num_images)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def work(batch_sizes: list[int], num_images: int) -> None:
    """Do all work, in each of the processes."""
    torch.set_num_threads(1)
    found = {f"a step of fit, batches of {size:,}": step_of(size) for size in batch_sizes}
    found |= evaluations(num_images)
    if distributed.is_first():
        print(json.dumps(found))


class Timed(Callback):
    """Notes where the steps of the last epochs spent their time."""

    def __init__(self) -> None:
        self.spent = {"sum": 0.0, "update": 0.0}
        self.is_counting = False

    def on_epoch(self, progress: Any) -> None:
        self.is_counting = len(progress.history) >= NUM_EPOCHS - COUNTED

    def watched(self, part: str, do: Any) -> Any:
        """Wrap a function, whose time counts as that of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return do(*args, **kwargs)
            finally:
                self.spent[part] += self.is_counting * (time.perf_counter() - started)

        return timed


def step_of(batch_size: int) -> dict[str, float]:
    """Train on random images; return the seconds of a step, and those of its parts."""
    torch.manual_seed(0)
    vae = build(20, [400])
    num_batches = max(5, min(20, NUM_DATA // batch_size))
    x = torch.bernoulli(torch.full((num_batches * batch_size, 784), 0.2))
    timed, optim, total = Timed(), pv.FusedAdam({"lr": 1e-3}), distributed.Team.sum
    optim.__class__ = type("Timed", (pv.FusedAdam,), {}) if distributed.team() is not None else pv.FusedAdam
    if distributed.team() is not None:
        type(optim).__call__ = timed.watched("update", pv.FusedAdam.__call__)
        distributed.Team.sum = timed.watched("sum", total)  # type: ignore[method-assign]
    history = pv.fit(
        vae, x, optim=optim, batch_size=batch_size, num_epochs=NUM_EPOCHS, compile=True, callbacks=[timed],
        progress=False,
    )  # fmt: skip
    distributed.Team.sum = total  # type: ignore[method-assign]
    num_steps = COUNTED * num_batches
    step = min(history.seconds[-COUNTED:]) / num_batches
    if distributed.team() is None:
        return {"seconds": step}
    parts = {name: seconds / num_steps for name, seconds in timed.spent.items()}
    return {"seconds": step, **parts, "rest": sum(history.seconds[-COUNTED:]) / num_steps - sum(parts.values())}


def evaluations(num_images: int) -> dict[str, dict[str, float]]:
    """Evaluate random images; return the seconds of each estimator, graphs compiled before."""
    torch.manual_seed(0)
    vae = build(50, [200, 200])
    x = torch.bernoulli(torch.full((num_images, 784), 0.2))
    found = {}
    for name, estimate in {
        "importance_sampling": lambda: pv.importance_sampling(vae.model, vae.guide, x, num_samples=5000, compile=True),
        "log_evidence": lambda: pv.log_evidence(vae.model, vae.guide, x, max_evaluations=3000, compile=False),
    }.items():
        estimate()
        started = time.perf_counter()
        estimate()
        found[f"{name} of {num_images:,} images"] = {"seconds": time.perf_counter() - started}
    return found


def build(latent_dim: int, hidden_dims: list[int]) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(latent_dim),
        pv.likelihoods.Bernoulli(pv.nn.MLP(latent_dim, hidden_dims, 784)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, hidden_dims, 2 * latent_dim)),
    )


STEP, PAIRS = 0.19e-3, 19e6
"""Seconds of a step (784-200-200-50, batches of 100) and pairs a second (5,000 draws), measured on one H200."""
NETWORKS = {8: (450e9, 5e-6), 64: (50e9, 20e-6), 1024: (50e9, 20e-6)}
"""Bytes a second for each GPU, and seconds for each hop: assumed, of NVLink within a machine of eight, and of
InfiniBand of 400 Gb/s between machines."""
SIZES = {"784-200-200-50": 0.41e6, "a residual network of 50 million weights": 50e6}
ROW, BATCH = 784 * 4, 100
FLOPS_OF_ROW = 6
"""For each weight: forwards, and back twice."""
RATE = 100e12
"""Operations a second that a large network reaches: assumed."""


def limits() -> str:
    """Return the page's table: what a step and an evaluation cost on many GPUs."""
    lines = [
        "| network | GPUs | step on one GPU | gradient | summing it | efficiency, batches of 100 a GPU | rows read a "
        "second | checkpoint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, weights in SIZES.items():
        step = max(STEP, BATCH * FLOPS_OF_ROW * weights / RATE)
        for number, (bandwidth, hop) in NETWORKS.items():
            sending = 2 * (number - 1) / number * 4 * weights / bandwidth + 2 * hop * (number - 1).bit_length()
            reading = number * BATCH / (step + sending)
            lines.append(
                f"| {name} | {number:,} | {1e3 * step:.2f} ms | {4e-6 * weights:.1f} MB | {1e3 * sending:.2f} ms | "
                f"{step / (step + sending):.2f} | {reading:,.0f} ({reading * ROW / 1e9:.2f} GB/s) | "
                f"{12e-6 * weights:.0f} MB |"
            )
    lines += ["", "| GPUs | 50 million pairs | blocks of 10,000 images x 5,000 draws |", "|---|---|---|"]
    tiles = 10_000 * 5_000 / 2**20
    for number in (1, *NETWORKS):
        turns = -(-tiles // number)
        lines.append(f"| {number:,} | {turns * 2**20 / PAIRS:.2f} s | {tiles:.0f}, {turns:.0f} turns |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[100, 1000, 8000])
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--num-repetitions", type=int, default=5)
    parser.add_argument("--limits", action="store_true", help="print what would limit many GPUs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
