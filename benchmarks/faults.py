"""Kill training at random moments, again and again, and see what is left.

    python benchmarks/faults.py --num-kills 200

A process trains a small VAE into a run's folder, and is killed (SIGKILL) at a random moment of training or saving. Then
the last checkpoint is read; the next process goes on from it. When training is done, its parameters are compared, bit
for bit, with those of a run that nobody disturbed.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyro
import torch

import pyro_vae as pv
from pyro_vae.training import Callback
from pyro_vae.training.run import last_checkpoint

NUM_DATA, BATCH_SIZE = 2_000, 20


def new_vae() -> pv.VAE:
    pyro.clear_param_store()
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(8),
        pv.likelihoods.Bernoulli(pv.nn.MLP(8, [64], 64)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(64, [64], 16)),
    )


class SaySteps(Callback):
    """Say that training has begun, so that it is not killed while it is imported."""

    def on_start(self, progress: pv.training.Progress) -> None:
        print("started", flush=True)


def train(run: Path | None, num_epochs: int) -> pv.VAE:
    vae = new_vae()
    x = (torch.rand(NUM_DATA, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    options = {"num_epochs": num_epochs, "batch_size": BATCH_SIZE, "progress": False, "compile": False}
    options["validation"] = x[:200]
    pv.fit(vae, x, run=run, resume="auto", callbacks=[SaySteps()] if run else [], **options)
    return vae


def killed(run: Path, num_epochs: int, most_seconds: float) -> bool:
    """Train in a process of its own, and kill it; False if it was done before."""
    command = [sys.executable, __file__, "--train", str(run), "--num-epochs", str(num_epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        process.wait(random.uniform(0, most_seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-kills", type=int, default=200)
    parser.add_argument("--num-epochs", type=int, default=1_000, help="of which most are not reached")
    parser.add_argument("--most-seconds", type=float, default=2.0, help="until a kill")
    parser.add_argument("--train", type=Path, help="a folder to train in (what the processes are called with)")
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.num_epochs)
        return
    run = Path(tempfile.mkdtemp()) / "run"
    random.seed(0)
    num_killed = num_read = num_lost = steps = 0
    started = time.perf_counter()
    for _ in range(options.num_kills):
        num_killed += killed(run, options.num_epochs, options.most_seconds)
        if (run / "last.json").exists():
            found = last_checkpoint(run).training["num_steps"]
            num_read += 1
            num_lost += found < steps
            steps = found
    print(f"killed {num_killed} times; went back {num_lost} times")
    print(f"read {num_read} checkpoints, the last after {steps:,} steps")
    num_epochs = steps // (NUM_DATA // BATCH_SIZE) + 1
    pairs = zip(train(run, num_epochs).parameters(), train(None, num_epochs).parameters(), strict=True)
    is_equal = all(torch.equal(one, other) for one, other in pairs)
    found = "equal" if is_equal else "NOT equal"
    print(f"after {num_epochs} epochs its parameters are {found} to those of an undisturbed run")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
