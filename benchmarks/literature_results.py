"""Results of the literature: files, the table and the figure."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from literature_rows import ROWS

import pyro_vae as pv


def made_by(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """How a result was made; where data and runs lay is nobody's concern."""
    options = {"budget": args.budget, "num-epochs": args.num_epochs, "num-test": args.num_test, "seed": args.seed}
    given = [f"--{option} {value}" for option, value in options.items() if value is not None]
    given += ["--by-hand"] if args.by_hand else []
    return {
        "command": " ".join(["python benchmarks/literature.py", name.removesuffix("-by-hand"), *given]),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def sha256_of(vae: pv.VAE) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def results_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows = [result for result in results_in(folder) if "row" in result]
    return sorted(rows, key=lambda result: (list(ROWS).index(result["row"].removesuffix("-by-hand")), result["row"]))


def table(results: list[dict[str, Any]]) -> str:
    """The rows of docs/literature.md."""
    lines = [
        "| what | epochs | published | ours, the same estimator | on some images: the same | log p(x) | reliable | "
        "bias of the estimator |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, some = result["by_the_paper_s_estimator"], result["on_some"]
        epochs = f"{result['num_epochs']:,}"
        if result["num_epochs"] < result["full_num_epochs"]:
            epochs += f" of {result['full_num_epochs']:,}"
        log_p = f"**{with_bits(some['log_evidence'], result)}** +- {some['monte_carlo_error']:.2f}"
        bias = f"{some['bias_of_the_paper_s_estimator']:+.2f} +- {some['its_error']:.2f}"
        lines.append(
            f"| {result['title']} | {epochs} | {with_bits(result['published']['log_p'], result)} | {ours['log_p']:.2f} "
            f"+- {ours['error_of_test_set']:.2f} | {some['paper_s_estimator']:.2f} | "
            f"{log_p} | {some['reliable']:.0%} | {bias} |"
        )
    return "\n".join(lines)


def with_bits(log_p: float, result: dict[str, Any]) -> str:
    """Nats, and bits for each pixel where these are what is published."""
    if not result.get("num_pixels"):
        return f"{log_p:.2f}"
    return f"{log_p:.2f} ({-log_p / result['num_pixels'] / math.log(2):.2f} bits)"


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
