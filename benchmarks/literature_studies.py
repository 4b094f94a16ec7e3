"""Published figures that are no log p(x) of a test set, and a table that nobody has published."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from literature_curves import curved, curves
from literature_m2 import m2, told
from literature_results import made_by, sha256_of, write
from literature_rows import ROWS, data_of
from literature_training import told_apart, training
from torch import Tensor, nn

import pyro_vae as pv

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
"""What is published is the mean squared error of what is filled in, of standardized data."""


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


def impute(args: argparse.Namespace) -> dict[str, Any]:
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
    return {**MIWAE, "errors": errors, "log_p_observed": log_ps}


def imputed(result: dict[str, Any]) -> str:
    """The line of docs/literature.md."""
    errors = torch.tensor(result["errors"])
    log_p = torch.tensor([each["mean"] for each in result["log_p_observed"]])
    return (
        f"{result['title']}: error {errors.mean():.3f} +- {errors.std():.3f} over {len(errors)} seeds (paper "
        f"{result['published']['paper']:.3f}, notebook {result['published']['notebook']:.3f}); log p(observed) "
        f"{log_p.mean():.2f} +- {log_p.std():.2f} nats a row"
    )


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


def gaps(args: argparse.Namespace) -> dict[str, Any]:
    """Part the gap between log p(x) and the ELBO into what the family and what the encoder loses."""
    vae, x, how = of_the_run(args)
    evidence = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, compile=True, seed=args.seed)
    found = pv.inference_gap(vae.model, vae.guide, x, evidence=evidence, seed=args.seed)
    parts = {"approximation": found.approximation, "amortization": found.amortization}
    ours = {name: {"mean": gap.mean().item(), "error": gap.std().item() / len(x) ** 0.5} for name, gap in parts.items()}
    return {
        **CREMER,
        **how,
        "log_evidence": evidence.mean,
        "elbo": evidence.elbo.mean().item(),
        "ours": ours,
    }


def wu(args: argparse.Namespace) -> dict[str, Any]:
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
    return {
        **WU,
        **how,
        "ours": {name: {"mean": each.mean, "error": each.mean_std_error} for name, each in found.items()},
        "bdmc_gap": {"mean": sandwich.mean_gap, "error": sandwich.mean_gap_std_error},
    }


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


COUNTS = {
    "title": "Counts of 765 genes in blood cells, 140 of 700 held out",
    "source": "nothing published; networks and rate are the defaults of scvi-tools (one hidden layer of 128, Adam with "
    "1e-3, batches of 128)",
    "num_latents": (2, 5, 10, 20),
    "num_seeds": 3,
    "num_epochs": 400,
    "patience": 45,
}


class OfLogarithms(nn.Module):
    """An encoder that sees log(1 + counts) and the logarithm of their sum."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        return self.network(x.log1p(), size.log())


def of_counts(likelihood: str, latent_dim: int, x: Tensor) -> pv.VAE:
    """A VAE of counts, given their sum."""
    num_genes, shares = x.shape[1], x.sum(0).clamp(min=0.5) / x.sum()
    decoder = pv.nn.MLP(latent_dim, [128], num_genes, nn.ReLU, output_bias=shares.log())
    likelihoods = {
        "Poisson": lambda: pv.likelihoods.Poisson(decoder, has_exposure=True),
        "negative binomial": lambda: pv.likelihoods.NegativeBinomial(
            decoder, inverse_dispersion_shape=num_genes, has_exposure=True
        ),
    }
    encoder = OfLogarithms(pv.nn.MLP(num_genes + 1, [128], 2 * latent_dim, nn.ReLU))
    posterior = pv.posteriors.DiagonalNormal(encoder)
    return pv.VAE(pv.priors.StandardNormal(latent_dim), likelihoods[likelihood](), posterior, context_shapes=[()])


def counts(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate held-out cells by VAEs of either likelihood and several numbers of latents, each from several seeds."""
    train, test = (pv.data.pbmc68k(args.data_dir, split=split) for split in ("train", "test"))
    found = [
        {"num_latents": num_latents, "seed": seed, **of_cells(num_latents, seed, train, test, args)}
        for num_latents in COUNTS["num_latents"]
        for seed in range(COUNTS["num_seeds"])
    ]
    return {**COUNTS, "found": found, "num_cells": len(test), "data": {"test": str(test.provenance)}}


def of_cells(
    num_latents: int, seed: int, train: pv.data.Dataset, test: pv.data.Dataset, args: argparse.Namespace
) -> dict[str, Any]:
    """Return log p(counts | sum) by both likelihoods, nats a cell, and their paired difference."""
    some, validation = train.hold_out(len(train) // 10, seed=seed)
    evidence = {}
    for likelihood in ("Poisson", "negative binomial"):
        torch.manual_seed(seed)
        vae = of_counts(likelihood, num_latents, some.x)
        pv.fit(
            vae, (some, some.x.sum(1)), num_epochs=args.num_epochs or COUNTS["num_epochs"], batch_size=128, seed=seed,
            validation=(validation, validation.x.sum(1)), early_stopping=COUNTS["patience"], progress=False,
        )  # fmt: skip
        evidence[likelihood] = pv.log_evidence(vae.model, vae.guide, test.x, test.x.sum(1), tolerance=0.2, seed=seed)
        print(f"{num_latents} latents, seed {seed}, {likelihood}: {evidence[likelihood]!r}", flush=True)
    difference = pv.compare(evidence["negative binomial"], evidence["Poisson"])
    return {
        **{likelihood: as_figures(each) for likelihood, each in evidence.items()},
        "difference": {"mean": difference.mean, "error_of_test_set": difference.std_error},
    }


def as_figures(evidence: pv.Evidence) -> dict[str, float]:
    return {
        "elbo": evidence.elbo.mean().item(),
        "log_p": evidence.mean,
        "monte_carlo_error": evidence.mean_std_error,
        "certified_lower_bound": evidence.certified_lower_bound(),
        "reliable": evidence.reliable.double().mean().item(),
    }


def counted(result: dict[str, Any]) -> str:
    """The table of docs/literature.md: means over the seeds, and the deviation from seed to seed."""
    lines = [
        f"{result['title']}: log p(counts | sum), nats a cell, mean and deviation over {result['num_seeds']} seeds.\n",
        "| latents | Poisson | negative binomial | difference, cells paired | its error for other cells | reliable |",
        "|---|---|---|---|---|---|",
    ]
    for num_latents in result["num_latents"]:
        of = [each for each in result["found"] if each["num_latents"] == num_latents]
        figures = [
            torch.tensor([each[likelihood]["log_p"] for each in of]) for likelihood in ("Poisson", "negative binomial")
        ]
        difference = torch.tensor([each["difference"]["mean"] for each in of])
        error = torch.tensor([each["difference"]["error_of_test_set"] for each in of])
        reliable = min(each[likelihood]["reliable"] for each in of for likelihood in ("Poisson", "negative binomial"))
        cells = [f"{each.mean():.1f} +- {each.std():.1f}" for each in (*figures, difference)]
        lines.append(f"| {num_latents} | {' | '.join(cells)} | {error.mean():.1f} | {reliable:.0%} |")
    return "\n".join(lines)


class Study(NamedTuple):
    """A function that finds a result, and one that says it as docs/literature.md does."""

    run: Callable[[argparse.Namespace], dict[str, Any]]
    line: Callable[[dict[str, Any]], str]


STUDIES = {
    "miwae": Study(impute, imputed),
    "gaps": Study(gaps, examined),
    "wu": Study(wu, examined),
    "counts": Study(counts, counted),
    "curves": Study(curves, curved),
    "m2": Study(m2, told),
    "training": Study(training, told_apart),
}


def study(name: str, args: argparse.Namespace) -> None:
    """Run a study, keep its result, and print it."""
    result = {"study": name, **STUDIES[name].run(args), **made_by(name, args)}
    write(result, args.output_dir / f"{name}-{args.budget}.json")
    print(STUDIES[name].line(result))
