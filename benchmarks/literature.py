"""Published log-likelihoods, reproduced: the paper's own estimate, ours by the same estimator, and what it really is.

    python benchmarks/literature.py vae-static --budget minutes --data-dir data
    python benchmarks/literature.py iwae-50 --budget hours --device cuda
    python benchmarks/literature.py iwae-1 --budget hours --by-hand
    python benchmarks/literature.py miwae                   # imputation of half a table
    python benchmarks/literature.py gaps wu --budget hours  # of the run of iwae-1, what the encoder and draws lose
    python benchmarks/literature.py counts                  # of cells, by two likelihoods
    python benchmarks/literature.py curves m2 --budget hours  # ELBO against samples seen; digits with a few labels
    python benchmarks/literature.py training                # why vae-128 is better than its source
    python benchmarks/literature.py --table                 # of all results so far, as in docs/literature.md
    python benchmarks/literature.py --figure                # of the same

A row trains with the settings of its source, as long as the budget says, and goes on where it was interrupted: the run
is kept in `--runs`. Then all test images are evaluated by the paper's estimator, importance sampling from the encoder,
and `--num-test` of them, evenly spaced, by it and by `log_evidence` too, whose difference is the estimator's bias.
Results go to `--output-dir` as JSON. The data have to lie in `--data-dir`: static MNIST in `static_mnist/`, MNIST in
`MNIST/raw/`, Frey Face in `frey/`, the cells in `pbmc/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from literature_by_hand import trained_by_hand
from literature_results import draw, made_by, results_in, rows_in, sha256_of, table, write
from literature_rows import ROWS, Row, burda, data_of
from literature_studies import STUDIES, study

import pyro_vae as pv


def trained(name: str, row: Row, args: argparse.Namespace) -> tuple[Any, pv.History, pv.data.Dataset]:
    train, validation, test = data_of(row, args)
    torch.manual_seed(args.seed)
    module = row.make(train).to(args.device)
    steps = math.ceil(len(train) / row.batch_size)
    factor = row.factor
    history = pv.fit(
        module if isinstance(module, pv.VAE) else (module.model, module.guide),
        train,
        objective=row.objective(),
        optim=row.optim(),
        schedule=None if factor is None else lambda step: factor(step // steps),
        num_epochs=num_epochs_of(row, args),
        batch_size=row.batch_size,
        seed=args.seed,
        kl_warmup=row.kl_warmup,
        validation=validation if row.patience else None,
        early_stopping=row.patience,
        compile=True,
        run=args.runs / f"{name}-{args.budget}",
        resume="auto",
    )
    return module, history, test


def num_epochs_of(row: Row, args: argparse.Namespace) -> int:
    return args.num_epochs or row.num_epochs[args.budget]


def evaluated(row: Row, vae: Any, test: pv.data.Dataset, args: argparse.Namespace) -> dict[str, Any]:
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
    """Train and evaluate a row, keep the result, and print it."""
    row = ROWS[name]
    if args.by_hand:
        return reproduce_by_hand(name, row, args)
    vae, history, test = trained(name, row, args)
    stopped_early = len(history) < num_epochs_of(row, args)
    how = {
        "num_epochs": len(history),
        "full_num_epochs": len(history) if stopped_early else row.num_epochs["full"],
        "seconds_of_training": sum(history.seconds),
        "execution": history.execution,
        "train_elbo": history.train_elbo[-1],
    }
    keep(name, row, how, vae, test, args)


def reproduce_by_hand(name: str, row: Row, args: argparse.Namespace) -> None:
    """The same by a loop and a bound of plain PyTorch."""
    objective = row.objective()
    if not (isinstance(objective, pv.objectives.IWELBO) and row.make is burda):
        raise SystemExit(f"--by-hand: expected iwae-1, iwae-5 or iwae-50; got {name}, for which there is no such loop.")
    name, row = f"{name}-by-hand", dataclasses.replace(row, title=f"{row.title}, trained by hand")
    num_epochs = num_epochs_of(row, args)
    vae, bounds, seconds, test = trained_by_hand(name, row, objective.num_particles, num_epochs, args)
    how = {
        "num_epochs": num_epochs,
        "full_num_epochs": row.num_epochs["full"],
        "seconds_of_training": seconds,
        "execution": "eager PyTorch",
        "train_elbo": bounds[-1],
    }
    keep(name, row, how, vae, test, args)


def keep(name: str, row: Row, how: dict[str, Any], vae: Any, test: pv.data.Dataset, args: argparse.Namespace) -> None:
    """Evaluate what was trained, write the result, and print it."""
    result = {
        "row": name,
        "title": row.title,
        "source": row.source,
        "published": {"log_p": row.published, "elbo": row.published_elbo},
        "num_pixels": row.num_pixels,
        "remarks": row.remarks,
        "budget": args.budget,
        **how,
        **made_by(name, args),
        "sha256_of_weights": sha256_of(vae),
        "data": {"test": str(test.provenance)},
        **evaluated(row, vae, test, args),
    }
    write(result, args.output_dir / f"{name}-{args.budget}.json")
    print(table([result]))


def main() -> None:
    args = parse_args()
    if args.table:
        return print_all(args.output_dir)
    if args.figure:
        other_ways = ("-by-hand", "-gated")  # to a figure that is there
        ours = [row for row in rows_in(args.output_dir) if not row["row"].endswith(other_ways)]
        return draw([row for row in ours if not row.get("num_pixels")], args.output_dir / "bias.png")
    for name in args.names:
        pyro.clear_param_store()
        (study if name in STUDIES else reproduce)(name, args)


def print_all(folder: Path) -> None:
    print(table(rows_in(folder)))
    for result in results_in(folder):
        if "study" in result:
            print(f"\n{STUDIES[result['study']].line(result)}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[*ROWS, *STUDIES, []], metavar="NAME", help=", ".join([*ROWS, *STUDIES])
    )
    parser.add_argument("--budget", choices=["full", "hours", "minutes"], default="full")
    parser.add_argument("--num-epochs", type=int, help="instead of the budget's")
    parser.add_argument("--by-hand", action="store_true", help="train rows of iwae-1, -5 and -50 in plain PyTorch")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/literature"), help="where runs are kept")
    parser.add_argument("--output-dir", type=Path, default=Path("docs/results/literature"))
    parser.add_argument("--num-test", type=int, default=1000, help="images that log_evidence evaluates, evenly spaced")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of all results so far")
    parser.add_argument("--figure", action="store_true", help="draw its rows of MNIST")
    return parser.parse_args()


if __name__ == "__main__":
    main()
