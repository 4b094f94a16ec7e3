"""How far each estimator of log p(x) is from the truth, and what it costs, on VAEs trained on real data.

    python benchmarks/accuracy.py --data-dir data              # about an hour on two CPU cores
    python benchmarks/accuracy.py --data-dir data --num-test 16 --num-epochs 1 --num-temperatures 100   # a look
    python benchmarks/accuracy.py --data-dir data --estimators "AIS from gaussian" log_evidence --seeds 0 1 2 3 4
    python benchmarks/accuracy.py --data-dir data --programs flow mixture two-layers faces cells
    python benchmarks/accuracy.py --data-dir data --programs others --others weights.npz   # github.com/lxuechen/BDMC

The truth is a long AIS (`--num-temperatures`), the mean of a few runs in p(x), as any one may miss a mode;
bidirectional Monte Carlo bounds the error of such a run on data from the model.
Prints each row once it is measured, and writes it to `PROGRAM.json` in `--output`, beside the rows that are there. From
all that are there it prints a table of each program, and draws `accuracy.png`.
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from accuracy_programs import PROGRAMS

import pyro_vae as pv

DRAWS = (10, 100, 1000, 10_000)
LENGTHS = (5, 20, 80)
PROPOSALS = ("guide", "inflated", "heavy-tailed", "defensive", "laplace", "gaussian", "local")
STARTS = ("laplace", "gaussian", "guide", "prior")
FAMILIES = (*PROPOSALS, "guide jackknifed", *(f"AIS from {start}" for start in STARTS))


def main() -> None:
    args = parse_args()
    for folder in (args.output, args.weights):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    for name in args.programs:
        torch.manual_seed(0)
        compare(PROGRAMS[name](args, name), args, name)
    found = {name: json.loads(path.read_text()) for name in PROGRAMS if (path := args.output / f"{name}.json").exists()}
    for result in found.values():
        values, errors = (torch.tensor(each) for each in result["truth"].values())
        truth = f"truth {values.mean():.3f} +- {errors.square().sum().sqrt() / len(errors):.3f}"
        print(f"\n{result['title']}: {len(values)} data, {truth}; nats per datum")
        print_table(result["rows"])
    draw(found, args.output / "accuracy.png")


def compare(program, args, name):
    """Find errors and costs of the estimators that were asked for on one program."""
    pair, data = (program.model, program.guide), program.args
    truth, gap = kept_or_found(pair, data, args, name)
    truth_as_lists = {name: value.tolist() for name, value in truth._asdict().items()}
    path = args.output / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"truth": truth_as_lists, "rows": []}
    if kept["truth"] != truth_as_lists:
        raise SystemExit(f"--output: expected rows of the same truth; {path} has another: choose another folder.")
    rows = {row["name"]: row for row in kept["rows"]}
    everyone = contestants(pair, data)
    order = {row: i for i, name in enumerate(everyone) for row in (name, jackknifed(name))}
    for contestant, run in everyone.items():
        if not contestant.startswith(tuple(args.estimators)):
            continue
        for row in rows_of(contestant, [run(seed) for seed in args.seeds], truth):
            print_table([row])
            rows[row["name"]] = row
            of_all = sorted(rows.values(), key=lambda row: order[row["name"]])
            result = {"title": program.title, "truth": truth_as_lists, "bdmc_gap": gap, "rows": of_all}
            path.write_text(json.dumps(result, indent=1))


def kept_or_found(pair, data, args, name):
    """Return the truth and BDMC's gap, from the folder that keeps weights if they are there."""
    weights = f"-{hashlib.sha256(args.others.read_bytes()).hexdigest()[:8]}" if name == "others" else ""
    kept = f"{name}{weights}-truth-{len(data[0])}-{args.num_temperatures}-{args.num_truths}.json"
    path = None if args.weights is None else args.weights / kept
    if path is not None and path.exists():
        found = json.loads(path.read_text())
        return Truth(*(torch.tensor(each, dtype=torch.float64) for each in found["truth"])), found["bdmc_gap"]
    long = {"start": "gaussian", "num_temperatures": args.num_temperatures}
    truth = Truth.of(
        timed(f"AIS, the truth, run {i}", lambda i=i: pv.ais(*pair, *data, **long, seed=1000 + i))
        for i in range(args.num_truths)
    )
    sandwich = timed("BDMC", lambda: pv.bdmc(*pair, *data, **long, seed=1000))
    print(f"\n{sandwich.summary()}\n")
    gap = [sandwich.mean_gap, sandwich.mean_gap_std_error]
    if path is not None:
        path.write_text(json.dumps({"truth": [each.tolist() for each in truth], "bdmc_gap": gap}))
    return truth, gap


class Truth(NamedTuple):
    """log p(x) and its error, `(N,)` each."""

    log_evidence: torch.Tensor
    std_error: torch.Tensor

    @classmethod
    def of(cls, runs):
        """The mean of p(x) over runs, which is unbiased as each of them is."""
        log_evidence, std_error = (
            torch.stack(each) for each in zip(*((run.log_evidence, run.std_error) for run in runs), strict=True)
        )
        share = log_evidence.softmax(0)
        return cls(log_evidence.logsumexp(0) - math.log(len(log_evidence)), (share * std_error).square().sum(0).sqrt())


def print_table(rows):
    print(
        f"{'estimator':<36}{'runs':>5}{'evaluations':>12}{'bias':>9}{'+-':>8}{'RMSE':>8}{'largest':>9}{'reliable':>10}"
        f"{'RMSE':>8}{'reached':>9}"
    )
    for row in rows:
        reached = "" if row["reached"] is None else f"{row['reached']:.0%}"
        of_reliable = "" if math.isnan(row["rmse_of_reliable"]) else f"{row['rmse_of_reliable']:.3f}"
        print(
            f"{row['name']:<36}{len(row['rmse_of_seeds']):>5}{row['evaluations']:>12,.0f}{row['bias']:>9.3f}{row['std_error']:>8.3f}"
            f"{row['rmse']:>8.3f}{row['largest']:>9.2f}{row['reliable']:>10.0%}{of_reliable:>8}{reached:>9}"
        )


def contestants(pair, data):
    """Estimators by name, from cheap to dear."""
    found = {}
    for proposal in PROPOSALS:
        for k in DRAWS:
            found[f"{proposal}, {k:,} draws"] = lambda seed, proposal=proposal, k=k: pv.importance_sampling(
                *pair, *data, proposal=proposal, num_samples=k, seed=seed
            )
    for start in STARTS:
        for length in LENGTHS:
            found[f"AIS from {start}, {length} temperatures"] = lambda seed, start=start, length=length: pv.ais(
                *pair, *data, start=start, num_temperatures=length, seed=seed
            )
    found["log_evidence, 2,000 evaluations"] = lambda seed: pv.log_evidence(
        *pair, *data, tolerance=0.1, max_evaluations=2000, seed=seed
    )
    for tolerance in (0.2, 0.1, 0.05):
        found[f"log_evidence, tolerance {tolerance}"] = lambda seed, tolerance=tolerance: pv.log_evidence(
            *pair, *data, tolerance=tolerance, seed=seed
        )
    return {
        name: lambda seed, name=name, run=run: timed(f"{name}, seed {seed}", lambda: run(seed))
        for name, run in found.items()
    }


def rows_of(name, runs, truth):
    """One for the estimates of all seeds; for draws from the guide another for the same draws' jackknife."""
    yield row_of(name, runs, [run.log_evidence for run in runs], truth)
    if name.startswith("guide"):
        yield row_of(jackknifed(name), runs, [run.jackknife for run in runs], truth)


def jackknifed(name):
    return name.replace("guide", "guide jackknifed", 1)


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


def timed(name, run):
    started = time.perf_counter()
    result = run()
    print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return result


def draw(found, path):
    """A panel for each program: the RMSE of a datum against cost."""
    height = math.ceil(len(found) / 4)
    width = math.ceil(len(found) / height)
    figure, axes = plt.subplots(
        height,
        width,
        figsize=(1 + 4 * width, 3.6 * height),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, result in zip(axes.flat, found.values(), strict=False):
        families = {}
        for row in result["rows"]:
            families.setdefault(row["name"].split(",")[0], []).append(row)
        for name, rows in families.items():
            axis.plot([row["evaluations"] for row in rows], [row["rmse"] for row in rows], label=name, **style_of(name))
        axis.set(xscale="log", yscale="log", title=result["title"])
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    figure.supxlabel("evaluations of log p(x, z) a datum")
    figure.supylabel("RMSE of a datum, nats")
    handles = {name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=100)


def style_of(name):
    """Give an estimator the same look in each panel."""
    if name == "log_evidence":
        return {"marker": "*", "markersize": 12, "color": "black"}
    return {
        "marker": "o",
        "linestyle": "--" if name.startswith("AIS") else "-",
        "color": f"C{FAMILIES.index(name) % 10}",
    }


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--num-test", type=int, default=200)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["mnist"], help=", ".join(PROGRAMS))
    parser.add_argument("--num-epochs", type=int, help="instead of as many as each program needs")
    parser.add_argument("--num-temperatures", type=int, default=1000)
    parser.add_argument("--num-truths", type=int, default=3, help="long runs whose mean is the truth")
    parser.add_argument(
        "--weights", type=Path, help="a folder to keep trained weights and truths in, and to take them from"
    )
    parser.add_argument("--others", type=Path, help="the weights of --programs others")
    parser.add_argument("--estimators", nargs="+", default=[""], help="what the names of those to run start with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
