"""How far each estimator of log p(x) is from the truth, and what it costs, on a VAE trained on MNIST.

    python benchmarks/accuracy.py --data-dir data              # about an hour on two CPU cores
    python benchmarks/accuracy.py --data-dir data --num-test 16 --num-epochs 1 --num-temperatures 100   # a look
    python benchmarks/accuracy.py --data-dir data --others weights.npz   # the VAE of github.com/lxuechen/BDMC
    python benchmarks/accuracy.py --data-dir data --estimators "AIS from gaussian" log_evidence --seeds 0 1 2 3 4

The truth is a long AIS (`--num-temperatures`), whose own error bidirectional Monte Carlo bounds on data from the model.
Prints a table, and writes `accuracy.json` and `accuracy.png` to `--output`.
"""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch

import pyro_vae as pv

DRAWS = (10, 100, 1000, 10_000)
LENGTHS = (5, 20, 80)


def main() -> None:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    train = pv.data.mnist(args.data_dir)
    x = pv.data.mnist(args.data_dir, split="test").x[: args.num_test]
    vae = trained(train, args.num_epochs, args.weights) if args.others is None else of_others(args.others)
    pair = vae.model, vae.guide
    truth = timed(
        "AIS, the truth", lambda: pv.ais(*pair, x, start="gaussian", num_temperatures=args.num_temperatures, seed=1000)
    )
    sandwich = timed(
        "BDMC",
        lambda: pv.bdmc(
            *pair, num_data=args.num_test, start="gaussian", num_temperatures=args.num_temperatures, seed=1000
        ),
    )
    print(f"\n{sandwich.summary()}\n")
    chosen = {name: run for name, run in contestants(pair, x).items() if name.startswith(tuple(args.estimators))}
    rows = [row for name, run in chosen.items() for row in rows_of(name, [run(seed) for seed in args.seeds], truth)]
    print(f"\n{len(x)} test images of MNIST, truth {truth.mean:.3f} +- {truth.mean_std_error:.3f}; nats per datum")
    print(
        f"{'estimator':<38}{'evaluations':>12}{'bias':>9}{'+-':>8}{'RMSE':>8}{'largest':>9}{'reliable':>10}{'RMSE':>8}"
        f"{'reached':>9}"
    )
    for row in rows:
        reached = "" if row["reached"] is None else f"{row['reached']:.0%}"
        of_reliable = "" if math.isnan(row["rmse_of_reliable"]) else f"{row['rmse_of_reliable']:.3f}"
        print(
            f"{row['name']:<38}{row['evaluations']:>12,.0f}{row['bias']:>9.3f}{row['std_error']:>8.3f}"
            f"{row['rmse']:>8.3f}{row['largest']:>9.2f}{row['reliable']:>10.0%}{of_reliable:>8}{reached:>9}"
        )
    results = {"truth": truth.as_dict(), "bdmc_gap": [sandwich.mean_gap, sandwich.mean_gap_std_error], "rows": rows}
    (args.output / "accuracy.json").write_text(json.dumps(results, indent=1))
    draw(rows, args.output / "accuracy.png")


def contestants(pair, x):
    """Estimators by name, from cheap to dear."""
    found = {}
    for proposal in ("guide", "inflated", "heavy-tailed", "defensive", "laplace", "gaussian", "local"):
        for k in DRAWS:
            found[f"{proposal}, {k:,} draws"] = lambda seed, proposal=proposal, k=k: pv.importance_sampling(
                *pair, x, proposal=proposal, num_samples=k, seed=seed
            )
    for start in ("laplace", "gaussian", "guide", "prior"):
        for length in LENGTHS:
            found[f"AIS from {start}, {length} temperatures"] = lambda seed, start=start, length=length: pv.ais(
                *pair, x, start=start, num_temperatures=length, seed=seed
            )
    for tolerance in (0.2, 0.1, 0.05):
        found[f"log_evidence, tolerance {tolerance}"] = lambda seed, tolerance=tolerance: pv.log_evidence(
            *pair, x, tolerance=tolerance, seed=seed
        )
    return {
        name: lambda seed, name=name, run=run: timed(f"{name}, seed {seed}", lambda: run(seed))
        for name, run in found.items()
    }


def rows_of(name, runs, truth):
    """One for the estimates of all seeds; for draws from the guide another for the same draws' jackknife."""
    yield row_of(name, runs, [run.log_evidence for run in runs], truth)
    if name.startswith("guide"):
        yield row_of(name.replace("guide", "guide jackknifed"), runs, [run.jackknife for run in runs], truth)


def row_of(name, runs, estimates, truth):
    errors = torch.stack(estimates) - truth.log_evidence
    reliable = torch.stack([run.reliable for run in runs])
    spent = torch.stack([run.num_evaluations for run in runs])
    reached = [run.diagnostics["reached"] for run in runs if "reached" in run.diagnostics]
    return {
        "name": name,
        "evaluations": spent.double().mean().item(),
        "most_evaluations": spent.max().item(),
        "bias": errors.mean().item(),
        # Over data, whose noise is that of both runs.
        "std_error": errors.mean(0).std().item() / errors.shape[1] ** 0.5,
        "rmse": errors.square().mean().sqrt().item(),
        "rmse_of_seeds": errors.square().mean(1).sqrt().tolist(),
        "largest": errors.abs().max().item(),
        "reliable": reliable.double().mean().item(),
        "rmse_of_reliable": errors[reliable].square().mean().sqrt().item(),
        "reached": torch.stack(reached).double().mean().item() if reached else None,
    }


class InShape(torch.nn.Module):
    """A network of others between images and rows of pixels, whose code has log variances for log scales."""

    def __init__(self, network, shape=None):
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, x):
        if self.shape is not None:
            return self.network(x).unflatten(-1, self.shape)
        loc, log_variance = self.network(x.flatten(-3)).chunk(2, -1)
        return torch.cat([loc, log_variance / 2], -1)


def of_others(path):
    """The VAE of github.com/lxuechen/BDMC from its weights: fc1 to fc3 encode, fc4 to fc6 decode, ELU between."""
    with np.load(path) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}

    def network(numbers):
        layers = []
        for number in numbers:
            layer = torch.nn.Linear(*reversed(weights[f"fc{number}.weight"].shape))
            layer.load_state_dict({name: weights[f"fc{number}.{name}"] for name in ("weight", "bias")})
            layers += [layer, torch.nn.ELU()]
        return torch.nn.Sequential(*layers[:-1])

    decoder, encoder = InShape(network((4, 5, 6)), (1, 28, 28)), InShape(network((1, 2, 3)))
    likelihood, posterior = pv.likelihoods.Bernoulli(decoder), pv.posteriors.DiagonalNormal(encoder)
    return pv.VAE(pv.priors.StandardNormal(50), likelihood, posterior).eval()


def trained(train, num_epochs, weights):
    vae = pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50, input_mean=train.mean)),
    )
    if weights is not None and weights.exists():
        vae.load_state_dict(torch.load(weights, weights_only=True))
        return vae.eval()
    print(pv.fit(vae, train, optim=pyro.optim.Adam({"lr": 1e-3}), num_epochs=num_epochs, batch_size=100, seed=0))
    if weights is not None:
        torch.save(vae.state_dict(), weights)
    return vae.eval()


def timed(name, run):
    started = time.perf_counter()
    result = run()
    print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return result


def draw(rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    families = {}
    for row in rows:
        families.setdefault(row["name"].split(",")[0], []).append(row)
    for name, points in families.items():
        style = "*-" if name == "log_evidence" else "o--" if name.startswith("AIS") else "o-"
        size = 12 if name == "log_evidence" else 5
        color = "black" if name == "log_evidence" else None
        cost = [point["evaluations"] for point in points]
        axes[0].plot(cost, [abs(point["bias"]) for point in points], style, ms=size, color=color, label=name)
        axes[1].plot(cost, [point["rmse"] for point in points], style, ms=size, color=color, label=name)
    axes[0].axhline(0.03, color="0.6", ls=":")
    axes[0].text(0.02, 0.031, "0.03", color="0.4", transform=axes[0].get_yaxis_transform())
    for ax, what in zip(axes, ("|bias| of the mean", "RMSE of a datum"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="evaluations of log p(x, z) a datum", ylabel=f"{what}, nats")
    axes[0].set_title("log p(x) of MNIST test images against its cost")
    axes[1].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=120)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--num-test", type=int, default=200)
    parser.add_argument("--num-epochs", type=int, default=22)
    parser.add_argument("--num-temperatures", type=int, default=1000)
    parser.add_argument("--weights", type=Path, help="a file to keep the trained VAE in, or to take it from")
    parser.add_argument("--others", type=Path, help="weights of another VAE, to evaluate that one")
    parser.add_argument("--estimators", nargs="+", default=[""], help="what the names of those to run start with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
