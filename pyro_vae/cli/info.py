"""`pyro-vae info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyro_vae.cli.answer import Answer, add_command
from pyro_vae.cli.failure import refuse
from pyro_vae.cli.folder import EVALUATION, HISTORY, OpenRun, read_signed

__all__ = ["add_info"]

ABOUT = """Say what a run is: its settings, its data, how far it was trained, and its log p(x)."""

EXAMPLES = """examples:
  pyro-vae info runs/digits
  pyro-vae info runs/digits --json | jq .settings.latent_dim"""


def add_info(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(commands, "info", info, ABOUT, EXAMPLES)
    parser.add_argument("run", help="the folder of a run")


def info(args: argparse.Namespace) -> Answer:
    """Collect what the folder says; neither data nor parameters are read."""
    run = OpenRun(args.run)
    epochs = _lines(run.folder / HISTORY)
    evaluation = run.folder / EVALUATION
    found = read_signed(evaluation) if evaluation.is_file() else None
    settings = run.settings.as_dict()
    values = {
        "run": str(run.folder),
        "settings": settings,
        "data": run.recorded,
        "num_epochs": len(epochs),
        "last_epoch": epochs[-1] if epochs else None,
        "evaluation": found,
    }
    set_by = {name: value for name, value in settings.items() if value is not None and value is not False}
    lines = [
        *(
            f"{name:<16}{' '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in set_by.items()
        ),
        *(_line_of(part, run.recorded[part]) for part in ("train", "validation", "test") if run.recorded[part]),
        f"{'epochs':<16}{len(epochs)} of {settings['num_epochs']}",
    ]
    if epochs:
        lines += [
            f"{name:<16}{epochs[-1][name]:.3f}" for name in ("train_elbo", "validation_elbo") if name in epochs[-1]
        ]
    if found is not None and found.get("log_evidence") is not None:
        what = f"{found['log_evidence']:.3f} of {found['num_data']:,} test data, by {_named(found['estimator'])}"
        lines.append(f"{'log p(x)':<16}{what}")
    return Answer("\n".join(lines), values)


def _lines(path: Path) -> list[dict[str, float]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [{name: float(value) for name, value in line.items()} for line in lines]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        refuse(
            str(path),
            "one JSON object of numbers an epoch",
            f"a damaged file ({type(error).__name__})",
            "go on with train --resume, which mends it",
        )


def _named(estimator: str | dict[str, int]) -> str:
    """Name the estimators, with the number of data of each."""
    if isinstance(estimator, str):
        return estimator
    return ", ".join(f"{name} ({number:,})" for name, number in estimator.items())


def _line_of(part: str, provenance: dict[str, Any]) -> str:
    return f"{part:<16}{provenance['num_data']:,} data, sha256 {provenance['sha256'][:12]}, {provenance['source']}"
