"""Published log-likelihoods, reproduced: the paper's own estimate, ours by the same estimator, and what it really is.

    python benchmarks/literature.py vae-static --budget minutes --data-dir data
    python benchmarks/literature.py iwae-50 --budget hours --device cuda
    python benchmarks/literature.py miwae                 # imputation of half a table
    python benchmarks/literature.py gaps wu --budget hours  # of the run of iwae-1, what the encoder and draws lose
    python benchmarks/literature.py --table               # of all results so far, as in docs/literature.md
    python benchmarks/literature.py --figure              # of the same

A row trains with the settings of its source, as long as the budget says, and goes on where it was interrupted: the run
is kept in `--runs`. Then all test images are evaluated by the paper's estimator, importance sampling from the encoder,
and `--num-test` of them, evenly spaced, by it and by `log_evidence` too, whose difference is the estimator's bias.
Results go to `--output-dir` as JSON. The data have to lie in `--data-dir`: static MNIST in `static_mnist/`, MNIST in
`MNIST/raw/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
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


def saar_with_flow(train: pv.data.Dataset) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(128),
        pv.likelihoods.Bernoulli(pv.nn.MLP(128, [256, 256], 784, nn.ReLU)),
        pv.posteriors.Flow(
            pv.nn.MLP(784, [256, 256], 3 * 128, nn.ReLU),
            128,
            context_dim=128,
            num_transforms=2,
            hidden_dims=[256, 256],
            autoregressive="inverse",
        ),
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
        "is Kingma and Ba's. Its learning rates are rounded to two digits.",
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
    "vae-128-iaf": Row(
        title="the same with an inverse autoregressive flow",
        source="README of github.com/altosaar/variational-autoencoder, flow",
        published=-95.33,
        published_elbo=-101.64,
        num_draws=128,
        make=saar_with_flow,
        num_epochs={"full": 384, "hours": 167, "minutes": 10},  # 150,000 and 65,000 steps
        batch_size=128,
        optim=lambda: pyro.optim.RMSprop({"lr": 1e-3, "centered": True}),
        objective=pv.objectives.CompiledTrace_ELBO,
        remarks="The source's transforms are gated as in an LSTM, ours affine; its first scale is a softplus, ours an "
        "exponential. It stops by the validation ELBO; ours takes as many steps, and keeps the last.",
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


MIWAE = dict(
    title="MIWAE, breast cancer, half of the entries missing",
    source="Mattei and Frellsen (2019), table 2 (from memory); github.com/pamattei/miwae, the notebook "
    "MIWAE_UCI_single_multiple-imputation, whose hidden entries, networks, steps and rate these are",
    published={"paper": 0.280, "notebook": 0.287},
    num_epochs=1001,
    num_seeds=5,
    remarks="The notebook's encoder gives a Student's t, of data with learned constants in the gaps; ours gives a "
    "Gaussian, and sees the mask. Its scales have a floor of 0.001. It fills in by 10,000 weighted draws from the "
    "encoder, ours by draws of log_evidence.",
)
"""Settings of the row that is no log p(x): the mean squared error of what is filled in, of standardized data."""


def half_a_table() -> tuple[Tensor, Tensor]:
    """Standardized data `(569, 30)`, and the same with NaN in the entries that the notebook hides."""
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data
    x = (x - x.mean(0)) / x.std(0)
    hidden = np.random.RandomState(1234).choice(x.size, x.size // 2, replace=False)
    incomplete = x.copy().reshape(-1)
    incomplete[hidden] = np.nan
    return torch.tensor(x, dtype=torch.float32), torch.tensor(incomplete.reshape(x.shape), dtype=torch.float32)


def mattei() -> pv.VAE:
    decoder = pv.nn.MLP(10, [128, 128], 2 * 30, nn.ReLU)
    encoder = pv.nn.MLP(2 * 30, [128, 128, 128], 2 * 10, nn.ReLU)
    return pv.VAE(
        pv.priors.StandardNormal(10),
        pv.likelihoods.Incomplete(pv.likelihoods.StudentT(decoder, scale="per-pixel", df="learned")),
        pv.posteriors.DiagonalNormal(pv.nn.WithMask(encoder)),
    )


def impute(args: argparse.Namespace) -> None:
    """Train on the incomplete table, fill it in, and compare with what was hidden; for several seeds of all noise."""
    complete, x = half_a_table()
    errors, log_ps = [], []
    for seed in range(MIWAE["num_seeds"]):
        pyro.clear_param_store()
        torch.manual_seed(seed)
        vae = mattei()
        pv.fit(
            vae, x, objective=pv.objectives.IWELBO(20), optim=pv.FusedAdam({"lr": 2e-4}), batch_size=64,
            num_epochs=args.num_epochs or MIWAE["num_epochs"], seed=seed, compile=True,
            run=args.runs / f"miwae-{seed}", resume="auto",
        )  # fmt: skip
        done = pv.impute(vae, x, max_evaluations=2000, seed=seed)
        errors.append((done.x - complete)[done.missing].square().mean().item())
        log_ps.append({"mean": done.evidence.mean, "error": done.evidence.mean_std_error})
        print(f"seed {seed}: error {errors[-1]:.3f}, log p(observed) {done.evidence!r}")
    result = {**MIWAE, "errors": errors, "log_p_observed": log_ps, **made_by("miwae", args)}
    write(result, args.output_dir / "miwae.json")
    print(imputed(result))


CREMER = {
    "title": "what the encoder loses",
    "source": "Cremer, Li and Duvenaud (2018), a factorised Gaussian on MNIST (from memory)",
    "published": {"approximation": 1.43, "amortization": 1.34},
}
WU = {
    "title": "importance sampling from the encoder beside annealing",
    "source": "Wu, Burda, Salakhutdinov and Grosse (2017), an IWAE on MNIST (from memory)",
    "published": {"10,000 draws": -86.90, "100,000 draws": -86.46, "AIS": -85.62},
}


def of_the_run(args: argparse.Namespace) -> tuple[pv.VAE, Tensor, dict[str, Any]]:
    """Return the VAE that `iwae-1` trained, some test images, and how it was made."""
    row, run = ROWS["iwae-1"], args.runs / f"iwae-1-{args.budget}"
    vae = pv.load(run, which="last").to(args.device)
    _, _, test = data_of(row, args)
    x = test.x[:: max(1, len(test) // args.num_test)].to(args.device)
    num_epochs = row.num_epochs[args.budget]
    return vae, x, {"num_images": len(x), "num_epochs": num_epochs, "sha256_of_weights": sha256_of(vae)}


def gaps(args: argparse.Namespace) -> None:
    """Part the gap between log p(x) and the ELBO into what the family and what the encoder loses."""
    vae, x, how = of_the_run(args)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, compile=True, seed=args.seed)
    found = pv.inference_gap(vae.model, vae.guide, x, evidence=evidence, seed=args.seed)
    parts = {"approximation": found.approximation, "amortization": found.amortization}
    ours = {name: {"mean": gap.mean().item(), "error": gap.std().item() / len(x) ** 0.5} for name, gap in parts.items()}
    result = {
        "examined": "gaps", **CREMER, **how,
        "log_evidence": evidence.mean,
        "elbo": evidence.elbo.mean().item(),
        "ours": ours,
        **made_by("gaps", args),
    }  # fmt: skip
    write(result, args.output_dir / f"gaps-{args.budget}.json")
    print(examined(result))


def wu(args: argparse.Namespace) -> None:
    """Evaluate the same images by more and more draws from the encoder, and by annealing; simulated ones both ways."""
    vae, x, how = of_the_run(args)
    pair, options = (vae.model, vae.guide), {"compile": True, "seed": args.seed}
    found = {
        "5,000 draws": pv.importance_sampling(*pair, x, num_samples=5_000, **options),
        "10,000 draws": pv.importance_sampling(*pair, x, num_samples=10_000, **options),
        "100,000 draws": pv.importance_sampling(*pair, x, num_samples=100_000, **options),
        "AIS": pv.ais(*pair, x, num_temperatures=1000, num_chains=16, start="guide", **options),
        "log_evidence": pv.log_evidence(*pair, x, tolerance=0.1, **options),
    }
    sandwich = pv.bdmc(*pair, num_data=len(x), num_temperatures=1000, num_chains=16, start="guide", **options)
    result = {
        "examined": "wu", **WU, **how,
        "ours": {name: {"mean": each.mean, "error": each.mean_std_error} for name, each in found.items()},
        "bdmc_gap": {"mean": sandwich.mean_gap, "error": sandwich.mean_gap_std_error},
        **made_by("wu", args),
    }  # fmt: skip
    write(result, args.output_dir / f"wu-{args.budget}.json")
    print(examined(result))


def examined(result: dict[str, Any]) -> str:
    """The line of docs/literature.md."""
    ours = "; ".join(
        f"{name} {each['mean']:.2f} +- {each['error']:.2f}"
        + (f" ({result['published'][name]:.2f})" if name in result["published"] else "")
        for name, each in result["ours"].items()
    )
    sandwich = result.get("bdmc_gap")
    both_ways = f"; BDMC's gap {sandwich['mean']:.3f} +- {sandwich['error']:.3f}" if sandwich else ""
    return (
        f"{result['title']}, IWAE of k = 1 after {result['num_epochs']:,} epochs, {result['num_images']:,} images "
        f"(published, of another model): {ours}{both_ways}"
    )


def imputed(result: dict[str, Any]) -> str:
    """The line of docs/literature.md."""
    errors = torch.tensor(result["errors"])
    log_p = torch.tensor([each["mean"] for each in result["log_p_observed"]])
    return (
        f"{result['title']}: error {errors.mean():.3f} +- {errors.std():.3f} over {len(errors)} seeds (paper "
        f"{result['published']['paper']:.3f}, notebook {result['published']['notebook']:.3f}); log p(observed) "
        f"{log_p.mean():.2f} +- {log_p.std():.2f} nats a row"
    )


def made_by(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """How a result was made; where data and runs lay is nobody's concern."""
    options = {"budget": args.budget, "num-epochs": args.num_epochs, "num-test": args.num_test, "seed": args.seed}
    given = [f"--{option} {value}" for option, value in options.items() if value is not None]
    return {
        "command": " ".join(["python benchmarks/literature.py", name, *given]),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


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
    some = x[:: max(1, len(x) // args.num_test)]  # not the first: static MNIST's test images are in the order of digits
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
        "on_some": {
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
        **made_by(name, args),
        "sha256_of_weights": sha256_of(vae),
        "data": {"test": str(test.provenance)},
        **evaluated(row, vae, test, args),
    }
    write(result, args.output_dir / f"{name}-{args.budget}.json")
    print(table([result]))


def sha256_of(vae: pv.VAE) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def table(results: list[dict[str, Any]]) -> str:
    """The rows of docs/literature.md."""
    lines = [
        "| what | epochs | published | ours, the same estimator | on some images: the same | log p(x) | bias of "
        "the estimator |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, some = result["by_the_paper_s_estimator"], result["on_some"]
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


OTHERS: dict[str, Callable[[argparse.Namespace], None]] = {"miwae": impute, "gaps": gaps, "wu": wu}
"""Rows that are no table of log p(x)."""


def main() -> None:
    args = parse_args()
    if args.table:
        return print_table(args.output_dir)
    if args.figure:
        return draw(rows_in(args.output_dir), args.output_dir / "bias.png")
    for name in args.names:
        pyro.clear_param_store()
        OTHERS[name](args) if name in OTHERS else reproduce(name, args)


def results_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows = [result for result in results_in(folder) if "row" in result]
    return sorted(rows, key=lambda result: list(ROWS).index(result["row"]))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """What is published, what the same estimator says of our model, and what its log p(x) is."""
    figure, ax = plt.subplots(figsize=(9, 0.9 + 0.6 * len(results)), layout="constrained")
    for place, result in enumerate(reversed(results)):
        usual, true = (result["on_some"][name] for name in ("paper_s_estimator", "log_evidence"))
        ax.annotate("", (true, place), (usual, place), arrowprops={"arrowstyle": "->", "color": "C1"})
        ax.text((usual + true) / 2, place + 0.12, f"{true - usual:.1f}", ha="center", color="C1")
        ax.plot(result["published"]["log_p"], place, "k|", ms=16)
        ax.plot(usual, place, "o", color="0.6")
        ax.plot(true, place, "o", color="C1")
    for style, color, label in (
        ("|", "k", "published"),
        ("o", "0.6", "ours, by the same estimator"),
        ("o", "C1", "ours, log p(x)"),
    ):
        ax.plot([], [], style, color=color, label=label)
    epochs = [result["num_epochs"] / result["full_num_epochs"] for result in results]
    names = [
        f"{result['title']}{'' if done >= 1 else f', {done:.0%} of its epochs'}"
        for result, done in zip(results, epochs, strict=True)
    ]
    ax.set_yticks(range(len(results)), names[::-1])
    ax.set(ylim=(-0.6, len(results) - 0.4), xlabel="nats per image of MNIST")
    ax.legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=120)


def print_table(folder: Path) -> None:
    found = results_in(folder)
    print(table(rows_in(folder)))
    for result in found:
        if "row" not in result:
            print(f"\n{examined(result) if 'examined' in result else imputed(result)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*ROWS, *OTHERS, []], metavar="NAME", help=", ".join([*ROWS, *OTHERS])
    )
    parser.add_argument("--budget", choices=["full", "hours", "minutes"], default="full")
    parser.add_argument("--num-epochs", type=int, help="instead of the budget's")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/literature"), help="where runs are kept")
    parser.add_argument("--output-dir", type=Path, default=Path("docs/results/literature"))
    parser.add_argument("--num-test", type=int, default=1000, help="images that log_evidence evaluates, evenly spaced")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of all results so far")
    parser.add_argument("--figure", action="store_true", help="draw it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
