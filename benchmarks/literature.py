"""Published log-likelihoods, reproduced: the paper's own estimate, ours by the same estimator, and what it really is.

    python benchmarks/literature.py vae-static --budget minutes --data-dir data
    python benchmarks/literature.py iwae-50 --budget hours --device cuda
    python benchmarks/literature.py --table               # of all results so far, as in docs/literature.md

A row trains with the settings of its source, as long as the budget says, and goes on where it was interrupted: the run
is kept in `--runs`. Then all test images are evaluated by the paper's estimator, importance sampling from the encoder,
and the first `--num-test` of them by it and by `log_evidence` too, whose difference is the estimator's bias. Results go
to `--output-dir` as JSON. The data have to lie in `--data-dir`: static MNIST in `static_mnist/`, MNIST in `MNIST/raw/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

import pyro_vae as pv

Budget = Literal["full", "hours", "minutes"]


class SoftplusNormal(nn.Module):
    """A diagonal Gaussian whose scale is a softplus, as the sources of some rows have it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.network(x).chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published figure, with the settings that gave it."""

    title: str
    source: str
    published: float
    """log p(x) by the source's own estimator, nats."""
    num_draws: int
    """Draws of that estimator."""
    make: Callable[[pv.data.Dataset], pv.VAE]
    num_epochs: dict[Budget, int]
    batch_size: int
    optim: Callable[[], Any]
    data: Literal["static", "dynamic"] = "static"
    objective: Callable[[], Any] = pv.objectives.CompiledTraceMeanField_ELBO
    factor: Callable[[int], float] | None = None
    """Of the learning rate, by the epoch."""
    published_elbo: float | None = None
    keeps_best: bool = False
    """Whether the parameters of the best validation ELBO are kept."""
    remarks: str = ""
    """Where ours differ from the source's settings."""


def burda_stage(epoch: int) -> float:
    """3^i epochs at 10^(-i / 7) of the rate, for i = 0, 1, ..., 7."""
    stage = next(i for i in range(9) if epoch < (3 ** (i + 1) - 1) / 2)
    return 10 ** (-stage / 7)


def burda(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 100)),
    )


def saar(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(128),
        pv.likelihoods.Bernoulli(pv.nn.MLP(128, [256, 256], 784, nn.ReLU)),
        SoftplusNormal(pv.nn.MLP(784, [256, 256], 2 * 128, nn.ReLU)),
    )


def chadebec(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(40),
        pv.likelihoods.Bernoulli(pv.nn.MLP(40, [400], 784, nn.ReLU)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [400], 2 * 40, nn.ReLU)),
    )


def iwae(num_particles: int, published: float) -> Row:
    return Row(
        title=f"IWAE, 784-[200 x 2]-50, k = {num_particles}",
        source="Burda, Grosse and Salakhutdinov (2016), table 1; settings in github.com/yburda/iwae",
        published=published,
        num_draws=5000,
        make=burda,
        num_epochs={"full": 3280, "hours": 364, "minutes": 4},
        batch_size=20,
        optim=lambda: pv.FusedAdam({"lr": 1e-3, "eps": 1e-4}),
        data="dynamic",
        objective=lambda: pv.objectives.IWELBO(num_particles),
        factor=burda_stage,
        remarks="The source's Adam has moments of its own making (beta 0.99, second moments that start at one); ours "
        "is Kingma and Ba's. Its learning rates are rounded to one digit.",
    )


ROWS: dict[str, Row] = {
    "vae-128": Row(
        title="VAE, 784-[256 x 2]-128",
        source="README of github.com/altosaar/variational-autoencoder, mean field",
        published=-97.10,
        published_elbo=-103.31,
        num_draws=128,
        make=saar,
        num_epochs={"full": 167, "hours": 167, "minutes": 10},  # 65,000 steps
        batch_size=128,
        optim=lambda: pyro.optim.RMSprop({"lr": 1e-3, "centered": True}),
        remarks="The source stops by the validation ELBO, looked at every few thousand steps; ours takes as many "
        "steps, and keeps the last.",
    ),
    "vae-static": Row(
        title="VAE, 784-400-40",
        source="Pythae, examples/scripts/reproducibility (vae.py; README), 500 epochs",
        published=-89.78,
        num_draws=200,
        make=chadebec,
        num_epochs={"full": 500, "hours": 500, "minutes": 10},
        batch_size=100,
        optim=lambda: pv.FusedAdam({"lr": 1e-4}),
        factor=lambda epoch: 10 ** (-0.2 * ((epoch >= 200) + (epoch >= 350))),
        keeps_best=True,
    ),
    "iwae-1": iwae(1, -86.76),
    "iwae-5": iwae(5, -85.54),
    "iwae-50": iwae(50, -84.78),
}


def data_of(row: Row, args: argparse.Namespace) -> tuple[pv.data.Dataset, pv.data.Dataset | None, pv.data.Dataset]:
    """Data to train on, to choose by, and to test on."""
    if row.data == "static":
        train, validation, test = (
            pv.data.static_mnist(args.data_dir, split=split) for split in ("train", "validation", "test")
        )
        return train, validation, test
    train = pv.data.mnist(args.data_dir, split="train", binarization="dynamic", seed=args.seed)
    return train, None, pv.data.mnist(args.data_dir, split="test", binarization="static", seed=args.seed)


def trained(name: str, row: Row, args: argparse.Namespace) -> tuple[pv.VAE, pv.History, pv.data.Dataset]:
    train, validation, test = data_of(row, args)
    torch.manual_seed(args.seed)
    vae = row.make(train).to(args.device)
    steps = math.ceil(len(train) / row.batch_size)
    factor = row.factor
    history = pv.fit(
        vae,
        train,
        objective=row.objective(),
        optim=row.optim(),
        schedule=None if factor is None else lambda step: factor(step // steps),
        num_epochs=args.num_epochs or row.num_epochs[args.budget],
        batch_size=row.batch_size,
        seed=args.seed,
        validation=validation if row.keeps_best else None,
        early_stopping=pv.training.EarlyStopping(patience=10**6) if row.keeps_best else None,
        compile=True,
        run=args.runs / f"{name}-{args.budget}",
        resume="auto",
    )
    return vae, history, test


def evaluated(row: Row, vae: pv.VAE, test: pv.data.Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """By the paper's estimator, on all; and on some by it and by `log_evidence`."""
    x = test.x.to(args.device)
    started = time.perf_counter()
    options = {"num_samples": row.num_draws, "compile": True, "seed": args.seed}
    paper = pv.importance_sampling(vae.model, vae.guide, x, **options)
    seconds_of_paper = time.perf_counter() - started
    started = time.perf_counter()
    some = x[: args.num_test]
    true = pv.log_evidence(vae.model, vae.guide, some, tolerance=0.1, compile=True, seed=args.seed)
    seconds_of_true = time.perf_counter() - started
    same = pv.importance_sampling(vae.model, vae.guide, some, **options)
    difference = pv.compare(true, same)
    print(f"\n{true.summary()}")
    return {
        "by_the_paper_s_estimator": {
            "elbo": paper.elbo.mean().item(),
            "log_p": paper.mean,
            "error_of_test_set": (paper.log_evidence.std() / len(x) ** 0.5).item(),
            "num_images": len(x),
            "num_draws": row.num_draws,
            "seconds": seconds_of_paper,
        },
        "on_the_first": {
            "num_images": len(some),
            "paper_s_estimator": same.mean,
            "log_evidence": true.mean,
            "monte_carlo_error": true.mean_std_error,
            "certified_lower_bound": true.certified_lower_bound(),
            "reliable": true.reliable.double().mean().item(),
            "bias_of_the_paper_s_estimator": -difference.mean,
            "its_error": difference.std_error,
            "evaluations": true.num_evaluations.double().mean().item(),
            "seconds": seconds_of_true,
        },
    }


def reproduce(name: str, args: argparse.Namespace) -> None:
    row = ROWS[name]
    vae, history, test = trained(name, row, args)
    result = {
        "row": name,
        "title": row.title,
        "source": row.source,
        "published": {"log_p": row.published, "elbo": row.published_elbo},
        "remarks": row.remarks,
        "budget": args.budget,
        "num_epochs": len(history),
        "full_num_epochs": row.num_epochs["full"],
        "seconds_of_training": sum(history.seconds),
        "execution": history.execution,
        "train_elbo": history.train_elbo[-1],
        "command": " ".join(["python", "benchmarks/literature.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "sha256_of_weights": sha256_of(vae),
        "data": {"test": str(test.provenance)},
        **evaluated(row, vae, test, args),
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / f"{name}-{args.budget}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table([result]))


def sha256_of(vae: pv.VAE) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def table(results: list[dict[str, Any]]) -> str:
    """The rows of docs/literature.md."""
    lines = [
        "| what | epochs | published | ours, the same estimator | on the first images: the same | log p(x) | bias of "
        "the estimator |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, some = result["by_the_paper_s_estimator"], result["on_the_first"]
        epochs = f"{result['num_epochs']:,}"
        if result["num_epochs"] < result["full_num_epochs"]:
            epochs += f" of {result['full_num_epochs']:,}"
        bias = f"{some['bias_of_the_paper_s_estimator']:+.2f} +- {some['its_error']:.2f}"
        lines.append(
            f"| {result['title']} | {epochs} | {result['published']['log_p']:.2f} | {ours['log_p']:.2f} +- "
            f"{ours['error_of_test_set']:.2f} | {some['paper_s_estimator']:.2f} | **{some['log_evidence']:.2f}** +- "
            f"{some['monte_carlo_error']:.2f} | {bias} |"
        )
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    if args.table:
        found = [json.loads(path.read_text()) for path in sorted(args.output_dir.glob("*.json"))]
        return print(table(sorted(found, key=lambda result: list(ROWS).index(result["row"]))))
    for name in args.names:
        pyro.clear_param_store()
        reproduce(name, args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ROWS, []], metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--budget", choices=["full", "hours", "minutes"], default="full")
    parser.add_argument("--num-epochs", type=int, help="instead of the budget's")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/literature"), help="where runs are kept")
    parser.add_argument("--output-dir", type=Path, default=Path("docs/results/literature"))
    parser.add_argument("--num-test", type=int, default=1000, help="images that log_evidence evaluates")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of all results so far")
    return parser.parse_args()


if __name__ == "__main__":
    main()
