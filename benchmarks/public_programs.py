"""Evaluate public programs, unmodified, from copies of their repositories that lie outside of this project.

    python benchmarks/public_programs.py --pyro ../pyro --pyroved ../pyroVED
    python benchmarks/public_programs.py --pyro ../pyro --only CEVAE

`--pyro` is a checkout of Pyro, whose `examples/` are used, and `--pyroved` one of PyroVED. Each program is trained for
a few steps of Pyro's own SVI on random data, or left as it was initialised. A row for each says how it was run, log
p(x) from 2,000 draws of its guide, and what each estimator finds: the share of its reliable data, and the largest
z-score of those that both call reliable. The last column is of `posterior_samples`, four chains of 100 draws: the
median and the largest R-hat over the data, after a look at the shapes. A program that ends in an error has its message
in the row.

With `--train` the table is another: the losses and gradients of four calls of `CompiledTrace_ELBO` beside those of
Pyro's `Trace_ELBO` from the same seeds, as the largest relative difference, and how the calls were run.

Modules that only draw or download (visdom, scanpy and the like) are replaced by stand-ins.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import pyro_vae as pv

STAND_INS = ("visdom", "scanpy", "anndata", "data", "multiprocess", "pandas", "gpytorch")
ESTIMATORS: dict[str, Callable[..., pv.Evidence]] = {
    "guide": pv.importance_sampling,
    "laplace": partial(pv.importance_sampling, proposal="laplace"),
    "ais": partial(pv.ais, num_temperatures=50),
    "log_evidence": pv.log_evidence,
}


class Program(NamedTuple):
    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    args: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012


def trained(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, num_steps: int = 50) -> None:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(*args)


def images(num_data: int, *shape: int) -> Tensor:
    return (torch.rand(num_data, *shape) > 0.7).float()


def one_hot(num_data: int, num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.arange(num_data) % num_classes, num_classes).float()


def of_pyro(folder: Path) -> Iterator[Program]:
    """Pyro's examples."""
    for part in ("", "vae", "cvae", "scanvi", "capture_recapture"):
        sys.path.insert(0, str(folder / "examples" / part))

    x = images(8, 784)
    vae = import_module("vae").VAE(z_dim=5, hidden_dim=50)
    trained(vae.model, vae.guide, x)
    yield Program("VAE", vae.model, vae.guide, (x,))

    ssvae = import_module("ss_vae_M2").SSVAE(z_dim=5, hidden_layers=[50])
    marked = partial(config_enumerate, default="parallel", expand=True)
    yield Program("semi-supervised VAE, labelled", ssvae.model, ssvae.guide, (x, one_hot(8, 10)))
    yield Program("semi-supervised VAE", ssvae.model, ssvae.guide, (x,))
    yield Program("semi-supervised VAE, y enumerated", ssvae.model, marked(ssvae.guide), (x,))

    baseline = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 784), torch.nn.Sigmoid())
    baseline.append(torch.nn.Unflatten(1, (28, 28)))
    cvae = import_module("cvae").CVAE(5, 50, 50, baseline)
    whole, upper = x.view(-1, 28, 28), x.view(-1, 28, 28).clone()
    upper[:, 14:] = -1
    yield Program("conditional VAE", cvae.model, cvae.guide, (upper, whole))

    scanvi = import_module("scanvi").SCANVI(num_genes=20, num_labels=4, l_loc=3.0, l_scale=0.5, latent_dim=3).eval()
    counts = torch.poisson(5 * torch.rand(10, 20))
    yield Program("scANVI, labelled", scanvi.model, scanvi.guide, (counts, one_hot(10, 4)))
    yield Program("scANVI, y enumerated", scanvi.model, marked(scanvi.guide), (counts,))

    lda = import_module("lda")
    sizes = SimpleNamespace(num_topics=4, num_words=30, num_words_per_doc=16, num_docs=25)
    topics = {"topic_weights": torch.full((4,), 0.6), "topic_words": lda.model(args=sizes)[1]}
    words = poutine.condition(lda.model, data=topics)(args=sizes)[2]
    fixed = poutine.block(poutine.condition(lda.model, data=topics), hide=list(topics))
    yield Program("LDA, topics fixed", fixed, None, (words, sizes))

    hmm, sizes = import_module("hmm"), SimpleNamespace(hidden_dim=4, jit=False)
    sequences, lengths = images(8, 6, 5), torch.tensor([6, 3, 2, 5, 4, 6, 1, 2])
    for number in range(1, 5):
        model = getattr(hmm, f"model_{number}")
        trace = poutine.trace(model).get_trace(sequences, lengths, sizes)
        tables = {name: site["value"] for name, site in trace.nodes.items() if name.startswith("probs")}
        fixed = poutine.block(poutine.condition(model, data=tables), hide=list(tables))
        options = {"plate": "sequences"}
        yield Program(f"hidden Markov model {number}", fixed, None, (sequences, lengths, sizes), options)

    cjs, captured = import_module("cjs"), (torch.rand(40, 7) > 0.6).float()
    sex = (torch.arange(40) % 2).float()
    for number in range(1, 6):
        name = f"capture and recapture {number}, all data"
        yield Program(name, getattr(cjs, f"model_{number}"), None, (captured, sex), {"joint": True})

    cevae = import_module("pyro.contrib.cevae").CEVAE(
        feature_dim=4, outcome_dist="normal", latent_dim=3, hidden_dim=20, num_layers=2, num_samples=10
    )
    x, treatment, y = torch.randn(30, 4), images(30), torch.randn(30)
    cevae.fit(x, treatment, y, num_epochs=3, batch_size=30, log_every=0)
    cevae.eval()
    yield Program("CEVAE (pyro.contrib)", cevae.model, cevae.guide, (cevae.whiten(x), treatment, y))
    yield deep_markov_model()


def deep_markov_model() -> Program:
    """Sequences of several lengths, one of its arguments a PackedSequence."""
    dmm = import_module("dmm").DMM(input_dim=8, z_dim=2, emission_dim=10, transition_dim=10, rnn_dim=12)
    lengths = torch.tensor([6, 6, 5, 5, 4, 4, 3, 2, 2, 1])
    mask = (torch.arange(6) < lengths[:, None]).float()
    tones = images(10, 6, 8) * mask[..., None]
    loader = import_module("pyro.contrib.examples.polyphonic_data_loader")
    packed = pack_padded_sequence(loader.reverse_sequences(tones, lengths), lengths, batch_first=True)
    trained(dmm.model, dmm.guide, tones, packed, mask, lengths)
    return Program("deep Markov model", dmm.model, dmm.guide, (tones, packed, mask, lengths))


def of_pyroved(folder: Path) -> Iterator[Program]:
    """PyroVED's models, which take one batch dimension."""
    sys.path.insert(0, str(folder))
    models = import_module("pyroved.models")
    small: dict[str, Any] = {"hidden_dim_e": [32], "hidden_dim_d": [32], "device": "cpu"}
    x = images(20, 8, 8)
    for invariances in (None, ["r"], ["r", "t"]):
        kind = "".join(invariances or "-")
        ivae = models.iVAE((8, 8), latent_dim=2, invariances=invariances, **small).eval()
        trained(ivae.model, ivae.guide, x)
        yield Program(f"iVAE {kind}", ivae.model, ivae.guide, (x,))
        jivae = models.jiVAE((8, 8), 2, 3, invariances=invariances, **small).eval()
        marked = config_enumerate(jivae.guide, "parallel", expand=True)
        yield Program(f"jiVAE {kind}", jivae.model, marked, (x,))
        ssivae = models.ssiVAE((8, 8), 2, 3, invariances=invariances, **small).eval()
        marked = config_enumerate(ssivae.guide, "parallel", expand=True)
        yield Program(f"ssiVAE {kind}", ssivae.model, marked, (x.flatten(1),))
    ved = models.VED((8, 8), (16,), latent_dim=2, hidden_dim_e=[(8,)], hidden_dim_d=[(8,)], device="cpu").eval()
    yield Program("VED", ved.model, ved.guide, (x[:, None], images(20, 1, 16)))


def row(program: Program, num_draws: int) -> str:
    """Evaluate a program in each way."""
    run: tuple[Any, ...] = program.model, program.guide, *program.args
    try:
        reference = pv.importance_sampling(*run, num_samples=num_draws, seed=1, **program.options)
    except (TypeError, ValueError) as error:
        return f"{program.name:<34} {' '.join(str(error).split())[:200]}"
    how = reference.settings
    summed = "summed out" if "summed_out" in how else ""
    cells = [
        f"{program.name:<34} {how['draws']:<12} {summed:<10} {reference.mean:9.3f} +- {reference.mean_std_error:5.3f}"
    ]
    for estimate in ESTIMATORS.values():
        cells.append(compared(estimate, run, program.options, reference))
    return "  ".join([*cells, sampled(run, program.options, len(reference))])


def sampled(run: tuple[Any, ...], options: dict[str, Any], num_data: int) -> str:
    """The median and the largest R-hat of posterior draws; a dash for all data together, which has none."""
    if "joint" in options:
        return f"{'-':>12}"
    try:
        found = pv.posterior_samples(*run, num_samples=100, num_chains=4, **options)
    except (TypeError, ValueError):
        return f"{'refused':>12}"
    for name, value in [*found.latents.items(), ("log p(x|z)", found.log_likelihood)]:
        if value.shape[:3] != (4, 100, num_data) or not value.double().isfinite().all():
            return f"{name}: {tuple(value.shape)}, or not finite"
    return f"{found.rhat.median():>6.2f} {found.rhat.max():>5.2f}"


def compared(
    estimate: Callable[..., pv.Evidence], run: tuple[Any, ...], options: dict[str, Any], reference: pv.Evidence
) -> str:
    """The share of reliable data, and the largest z-score of those that both call so."""
    try:
        found = estimate(*run, **options)
    except (TypeError, ValueError):
        return f"{'refused':>12}"
    both = found.reliable & reference.reliable
    error = (found.std_error.square() + reference.std_error.square()).sqrt() + 1e-4
    largest = ((found.log_evidence - reference.log_evidence).abs() / error)[both]
    score = f"{largest.max():.1f}" if both.any() else "-"
    return f"{found.reliable.double().mean():>6.0%} {score:>5}"


def training_row(program: Program) -> str:
    """Train by a compiled ELBO, and by Pyro's."""
    pair = (program.model, program.guide)
    compiled = pv.objectives.CompiledTrace_ELBO()
    results = []
    for elbo in (Trace_ELBO(), compiled):
        try:
            results.append(four_calls(elbo, *pair, *program.args))
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            message = " ".join(str(error).split())[:100]
            return f"{program.name:<34} {type(elbo).__name__} itself raises {type(error).__name__}: {message}"
    expected, found = results
    differences = (
        (one - other).norm() / one.norm().clamp(min=1e-9) for one, other in zip(expected, found, strict=True)
    )
    loss, gradient = (f"{difference:.0e}" for difference in differences)
    return f"{program.name:<34} {loss:>8} {gradient:>9}  {compiled.execution(*pair)[:150]}"


def four_calls(elbo: Any, model: Any, guide: Any, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the losses of four calls, and the gradients of the last."""
    losses = []
    for seed in range(4):
        pyro.set_rng_seed(seed)
        parameters = [value.unconstrained() for value in pyro.get_param_store().values()]
        pyro.infer.util.zero_grads(parameters)
        losses.append(elbo.loss_and_grads(model, guide, *args))
    gradients = [each.unconstrained().grad for each in pyro.get_param_store().values()]
    return torch.tensor(losses), torch.cat([each.flatten() for each in gradients if each is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyro", type=Path, help="a checkout of Pyro")
    parser.add_argument("--pyroved", type=Path, help="a checkout of PyroVED")
    parser.add_argument("--num-draws", type=int, default=2_000, help="of the guide, for the reference")
    parser.add_argument("--only", default="", help="a pattern of the names of programs to evaluate; all are trained")
    parser.add_argument("--train", action="store_true", help="compare compiled ELBOs with Pyro's, and nothing else")
    options = parser.parse_args()
    for name in STAND_INS:
        if find_spec(name) is None:
            sys.modules[name] = MagicMock(__spec__=None)
    warnings.simplefilter("ignore")
    heads = "  ".join(f"{name:>12}" for name in [*ESTIMATORS, "posterior"])
    if options.train:
        print(f"{'program':<34} {'loss':>8} {'gradient':>9}  how it ran")
    else:
        print(f"{'program':<34} {'draws':<12} {'':<10} {'log p(x), reference':>18}  {heads}")
    for folder, programs in ((options.pyro, of_pyro), (options.pyroved, of_pyroved)):
        if folder is not None:
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            for program in programs(folder):
                if not re.search(options.only, program.name):
                    continue
                if not options.train:
                    print(row(program, options.num_draws), flush=True)
                elif program.guide is not None:
                    print(training_row(program), flush=True)


if __name__ == "__main__":
    main()
