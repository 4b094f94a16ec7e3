"""`pyro-vae evaluate`."""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_vae as pv
from pyro_vae import evidence as estimators
from pyro_vae._files import as_json, sha256_of
from pyro_vae.cli.answer import Answer, add_command, add_which, shows_progress
from pyro_vae.cli.arguments import add_option
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import EVALUATION, EVIDENCE, OpenRun, write_signed
from pyro_vae.cli.kinds import FLAG, SEED, Kind, choice, number, several, whole
from pyro_vae.cli.settings import flag_of
from pyro_vae.data import Dataset
from pyro_vae.distributed import alike, is_first
from pyro_vae.evidence.path import STARTS
from pyro_vae.evidence.proposals import PROPOSALS
from pyro_vae.evidence.summary import remarks_of, table_of

__all__ = ["add_evaluate"]

ABOUT = """Estimate log p(x) of test data, with its error and a certified bound.

The estimate is kept in the run's folder: evidence.npz (read it by pv.Evidence.load) and evaluation.json. If it is
interrupted, the same command goes on with what is done."""

EXAMPLES = """examples:
  pyro-vae evaluate runs/digits
  pyro-vae evaluate runs/digits --tolerance 0.1 --num-test 100 --json
  pyro-vae evaluate runs/digits --estimator ais --num-temperatures 500 --num-chains 16
  pyro-vae evaluate runs/digits --estimator importance_sampling --num-samples 5000 --proposal laplace
  pyro-vae evaluate runs/digits --estimator bdmc --num-test 50            # how good AIS is, on simulated data
  pyro-vae evaluate runs/digits --estimator inference_gap --num-test 50   # the guide's family, or the encoder?"""

ESTIMATORS: dict[str, Callable[..., Any]] = {
    "log_evidence": pv.log_evidence,
    "importance_sampling": pv.importance_sampling,
    "ais": pv.ais,
    "bdmc": pv.bdmc,
    "reciprocal_importance_sampling": estimators.reciprocal_importance_sampling,
    "inference_gap": pv.inference_gap,
}

OPTIONS: dict[str, tuple[str, Kind, str]] = {
    "tolerance": ("tolerance", number(), "the standard error wanted of each datum's log p(x), nats"),
    "tolerance_of": (
        "tolerance_of", choice("datum", "mean"), "whose: each datum's, or that of the mean over all data",
    ),
    "max_evaluations": ("max_evaluations", whole(), "evaluations of log p(x, z) to spend on a datum at most"),
    "max_evaluations_of": (
        "max_evaluations_of", choice("datum", "mean"), "what keeps that limit: each, or the mean over neighbours",
    ),
    "num_samples": ("num_samples", whole(), "draws for each datum"),
    "proposal": (
        "proposal", choice(*PROPOSALS), "what is drawn from",
    ),
    "bounds": ("bounds", several(whole(), least=1), "the k of the bounds L_k"),
    "num_temperatures": ("num_temperatures", whole(), "of annealing"),
    "num_chains": ("num_chains", whole(), "for each datum"),
    "num_leapfrog": ("num_leapfrog", whole(), "steps of each transition"),
    "start_from": ("start", choice(*STARTS), "where annealing starts"),
    "schedule": ("schedule", choice("linear", "sigmoid", "adaptive"), "of the temperatures"),
    "num_steps": ("num_steps", whole(), "of the search for the best guide"),
    "num_particles": ("num_particles", whole(), "draws in each of these steps"),
    "num_posterior_draws": ("num_posterior_draws", whole(0), "draws of z to keep for each datum"),
    "chunk_size": ("chunk_size", whole(), "how many draws to evaluate at a time"),
    "compile": ("compile", FLAG, "evaluate by a compiled graph, for large jobs"),
}  # fmt: skip
"""Options by the name of their flag: what estimators call them, what they take, and help. `--start` is torchrun's."""

PARTIAL = ".partial-"
"""What the folder of an evaluation that is not finished is called, before its own name."""
MOST_BY_DEFAULT = {"bdmc": 100, "inference_gap": 100}


def add_evaluate(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "evaluate", evaluate, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default="log_evidence",
        help="default %(default)s, which picks one for each datum",
    )
    group = parser.add_argument_group("data")
    add_option(
        group,
        "num_test",
        whole(),
        "how many of the test data, the first; default 1,000, or 100 for bdmc and inference_gap",
    )
    add_which(parser)
    add_option(parser, "seed", SEED, "of the draws, default 0")
    group = parser.add_argument_group("options of estimators, each of those that know it; the defaults are theirs")
    for name, (_, kind, text) in OPTIONS.items():
        add_option(group, name, kind, f"{text} ({', '.join(_estimators_with(name))})")


def _takes(estimator: str, name: str) -> bool:
    return OPTIONS[name][0] in inspect.signature(ESTIMATORS[estimator]).parameters


def _estimators_with(name: str) -> list[str]:
    return [estimator for estimator in ESTIMATORS if _takes(estimator, name)]


def evaluate(args: argparse.Namespace) -> Answer:
    """Evaluate, and keep the result in the run's folder."""
    options = _options(args)
    run, vae, test = alike(lambda: _opened(args))
    estimate = ESTIMATORS[args.estimator]
    if "progress" in inspect.signature(estimate).parameters:
        options["progress"] = shows_progress()
    partial = run.folder / f"{PARTIAL}{_name_of(args, run)}"
    if "partial" in inspect.signature(estimate).parameters:
        options["partial"] = partial
    result = estimate(vae.model, vae.guide, *_arguments(args.estimator, run, test, options), **options)
    less = _less_in_own_unit(args.estimator, run, test)
    record = _record(args, run, test, result, less)
    if is_first():
        _keep(run.folder, args.estimator, result, record)
        shutil.rmtree(partial, ignore_errors=True)
    warnings = _warnings(result)
    lines = [_table(result), *_own_unit(result, less), *(f"warning: {warning}" for warning in warnings)]
    return Answer("\n".join(lines), {**record, "warnings": warnings})


def _opened(args: argparse.Namespace) -> tuple[OpenRun, pv.VAE, Dataset]:
    run = OpenRun(args.run, args.which)
    vae = run.vae
    return run, vae, run.test_data(getattr(args, "num_test", None), MOST_BY_DEFAULT.get(args.estimator, 1000))


def _name_of(args: argparse.Namespace, run: OpenRun) -> str:
    """Name an evaluation: the same command, of the same checkpoint, goes on with what is there."""
    asked_for = {name: str(getattr(args, name, None)) for name in (*OPTIONS, "estimator", "which", "num_test", "seed")}
    versions = {"torch": torch.__version__, "pyro": pyro.__version__, "pyro_vae": pv.__version__}
    how = {"checkpoint": str(run.checkpoint), "device": run.settings.device, **versions}
    return sha256_of(as_json({**asked_for, **how}))[:12]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the options of the estimator, and refuse those of others."""
    given = {name: value for name, value in vars(args).items() if name in OPTIONS}
    for name in given:
        if not _takes(args.estimator, name):
            others = " or ".join(_estimators_with(name))
            refuse(
                flag_of(name),
                f"an option of {args.estimator}",
                "one of others",
                f"leave it out, or pass --estimator {others}",
            )
    return {OPTIONS[name][0]: value for name, value in given.items()} | {"seed": getattr(args, "seed", 0)}


def _arguments(estimator: str, run: OpenRun, test: Dataset, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what model and guide are called with; bdmc makes its own data, as many."""
    if estimator == "bdmc" and run.num_labels is None:
        options["num_data"] = len(test)
        return ()
    return (run.vae.check(test.x), *run.context(test))


def _less_in_own_unit(estimator: str, run: OpenRun, test: Dataset) -> float | None:
    """Return what the mean log p(x) loses in the unit of the file; bdmc's own data are complete."""
    if run.scaling is None:
        return None
    return run.scaling.log_volume(torch.zeros_like(test.x) if estimator == "bdmc" else test.x)


def _record(
    args: argparse.Namespace, run: OpenRun, test: Dataset, result: Any, less_in_own_unit: float | None
) -> dict[str, Any]:
    """Say what was found, and all that is needed to find it again."""
    found = _evidence_of(result)
    in_own_unit = None if found is None or less_in_own_unit is None else found.mean - less_in_own_unit
    return {
        "run": str(run.folder),
        "command": ["pyro-vae", *args.argv],
        "asked_for": args.estimator,
        "parameters": args.which,
        "checkpoint": run.checkpoint,
        "data": test.provenance.as_dict(),
        **({} if found is None else found.as_dict() | {"reliable_share": found.reliable.double().mean().item()}),
        **({} if found is result else _figures(result)),
        "log_evidence_in_the_unit_of_the_file": in_own_unit,
        "versions": {
            "python": platform.python_version(), "pyro_vae": pv.__version__, "pyro": pyro.__version__,
            "torch": torch.__version__,
        },
    }  # fmt: skip


def _evidence_of(result: Any) -> pv.Evidence | None:
    return result if isinstance(result, pv.Evidence) else getattr(result, "evidence", None)


def _figures(result: Any) -> dict[str, Any]:
    """Return the means over data of what is no Evidence."""
    if isinstance(result, pv.Sandwich):
        return {
            "num_data": len(result.gap),
            "lower_bound": result.lower.mean().item(),
            "upper_bound": result.upper.mean().item(),
            "gap": result.mean_gap,
            "gap_std_error": result.mean_gap_std_error,
            "certified_gap": {"value": result.certified_gap(), "delta": 1e-3},
            "settings": result.settings,
        }
    return {
        "approximation_gap": result.approximation.mean().item(),
        "amortization_gap": result.amortization.mean().item(),
        "best_elbo": result.best_elbo.mean,
    }


def _keep(folder: Path, estimator: str, result: Any, record: dict[str, Any]) -> None:
    """Write the result whole or not at all; what bdmc says of simulated data takes no evaluation's place."""
    found = _evidence_of(result)
    if found is None:
        write_signed(folder / f"{estimator}.json", record)
        return
    partial = folder / f".{EVIDENCE}"
    found.save(partial)
    os.replace(partial, folder / EVIDENCE)
    write_signed(folder / EVALUATION, record)


def _table(result: Any) -> str:
    """Return the figures, without the remarks, whose remedies are for Python."""
    if not isinstance(result, pv.Evidence):
        return result.summary()
    reliable = int(result.reliable.sum())
    row = f"{'reliable':<28}{f'{reliable / len(result):.0%}':>10}   {reliable:,} of {len(result):,} data"
    return "\n".join([table_of(result)._replace(remarks=[]).text, row])


def _own_unit(result: Any, less: float | None) -> list[str]:
    found = _evidence_of(result)
    if found is None or less is None:
        return []
    return [
        f"columns are standardized: in the unit of the file log p(x) is {found.mean - less:.3f}, "
        f"{abs(less):.3f} {'lower' if less > 0 else 'higher'}"
    ]


def _warnings(result: Any) -> list[str]:
    """Say in one line each what went wrong, and what to do about it, in the words of the command line."""
    found = _evidence_of(result)
    if found is None:
        return []
    lines = [f"{remark.what}: {_with_flags(remark.remedy)}" for remark in remarks_of(found) if remark.remedy]
    if len(found) < 2:
        lines.append("one datum says nothing of others: raise --num-test")
    elif found.sampling_error > max(10 * found.mean_std_error, 1.0):
        lines.append(
            f"other data would change the mean by {found.sampling_error:.2f} nats, other draws by "
            f"{found.mean_std_error:.3f}: raise --num-test, if there are more"
        )
    return lines


def _with_flags(remedy: str) -> str:
    """Write options as they are typed."""
    names = "|".join(OPTIONS)
    return re.sub(
        rf"\b({names})\b",
        lambda match: flag_of(match[1]),
        remedy.replace("use log_evidence", "pass --estimator log_evidence"),
    )
