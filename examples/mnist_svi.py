"""Train a VAE on handwritten digits with Pyro's SVI, and measure how well it models digits that it has not seen.

    python examples/mnist_svi.py                       # a few minutes on two CPU cores
    python examples/mnist_svi.py --latent-dim 2        # with a picture of the learned manifold
    python examples/mnist_svi.py --likelihood gaussian # grey levels as they are
    python examples/mnist_svi.py --help

Figures and `results.json` go to the folder `results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

OBJECTIVES = {"trace": Trace_ELBO, "mean-field": TraceMeanField_ELBO}
DATASETS = {"mnist": pv.data.mnist, "fashion-mnist": pv.data.fashion_mnist}
GAUSSIAN_SCALES: dict[str, dict] = {
    "gaussian": {"scale": 0.1},
    "gaussian-learned": {"scale": "learned"},
    "gaussian-per-pixel": {"scale": "per-pixel"},
}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # 1. Data: tensors that know where they come from.
    try:
        train, test = (
            DATASETS[args.dataset](args.data_dir, split=split, binarization=args.binarization, seed=args.seed)
            for split in ("train", "test")
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if args.smoke:
        train, test = train.first(500), test.first(50)
    train, validation = train.hold_out(len(train) // 12, seed=args.seed)
    test = test.first(args.num_test)
    print(f"train       {train.provenance}\nvalidation  {validation.provenance}\ntest        {test.provenance}")

    # 2. The VAE: p(z), p(x|z) and q(z|x), each a module that returns a Pyro distribution.
    torch.manual_seed(args.seed)
    vae = build_vae(args, train).to(args.device)
    test_x = vae.check(test.x.to(args.device))

    # 3. SVI: the ELBO with draws of the KL term (trace) or with its formula (mean-field).
    objective: ELBO = OBJECTIVES[args.objective](
        num_particles=args.num_particles, vectorize_particles=True, max_plate_nesting=1
    )
    num_epochs = args.num_epochs or max(1, round(12_000 * args.batch_size / len(train)))
    options = {"num_epochs": num_epochs, "batch_size": args.batch_size, "seed": args.seed}
    history = pv.fit(vae, train, objective=objective, validation=validation, **options)
    print(history)

    # 4. How good is it? The ELBO is a lower bound; importance sampling says how far log p(x) lies above it.
    evidence = pv.importance_sampling(
        vae.model, vae.guide, test_x, num_samples=args.num_samples, seed=args.seed, progress=True
    )
    terms = pv.rate_distortion(vae.model, vae.guide, test_x, num_samples=10, seed=args.seed)
    print(f"\n{evidence.summary()}")
    print(f"{'rate':<28}{terms.rate.mean():>10.3f}   KL(q(z|x) || p(z)), what the code z says of an image")
    print(f"{'distortion':<28}{terms.distortion.mean():>10.3f}   -log p(x|z), what z leaves out")

    # For some images, what each of them needs: where the guide will not do, annealing does.
    some = pv.log_evidence(vae.model, vae.guide, test_x[: args.num_annealed], seed=args.seed, progress=True)
    print(f"\n{some.summary()}")
    guide_only = evidence.log_evidence[: len(some)].mean().item()
    print(f"{'from the guide alone':<28}{guide_only:>10.3f}   for these images, with {args.num_samples:,} draws each")

    # 5. Everything that was found, with all that is needed to find it again.
    results = {
        "settings": {**vars(args), "num_epochs": num_epochs},
        "data": {name: data.provenance.as_dict() for name, data in
                 {"train": train, "validation": validation, "test": test}.items()},
        "versions": {"python": platform.python_version(), "pyro_vae": pv.__version__, "pyro": pyro.__version__,
                     "torch": torch.__version__},
        "vae": str(vae),
        "history": history.as_dict(),
        "test": {**evidence.as_dict(), "rate": terms.rate.mean().item(), "distortion": terms.distortion.mean().item()},
        "test_annealed": {**some.as_dict(), "from_the_guide_alone": guide_only},
    }  # fmt: skip
    (args.output / "results.json").write_text(json.dumps(results, indent=2, default=str))
    draw_figures(vae.cpu(), test, history, evidence, args.output)
    print(f"\nFigures and results.json are in {args.output}/")


def build_vae(args: argparse.Namespace, train: pv.data.Dataset) -> pv.VAE:
    hidden, latent_dim, num_pixels = args.hidden_dims, args.latent_dim, train.x[0].numel()
    likelihood: torch.nn.Module
    if args.likelihood == "bernoulli":
        bias = torch.logit(train.mean, eps=1e-3)  # start from the mean image
        likelihood = pv.likelihoods.Bernoulli(pv.nn.MLP(latent_dim, hidden, num_pixels, output_bias=bias))
    else:
        form = GAUSSIAN_SCALES[args.likelihood]
        num_outputs = num_pixels * (2 if form["scale"] == "per-pixel" else 1)
        likelihood = pv.likelihoods.Gaussian(pv.nn.MLP(latent_dim, hidden, num_outputs), **form)
    encoder = pv.nn.MLP(num_pixels, hidden[::-1], 2 * latent_dim, input_mean=train.mean)
    return pv.VAE(pv.priors.StandardNormal(latent_dim), likelihood, pv.posteriors.DiagonalNormal(encoder))


@torch.no_grad()
def draw_figures(vae: pv.VAE, test: pv.data.Dataset, history: pv.History, evidence: pv.Evidence, output: Path) -> None:
    draws = vae.likelihood(vae.prior().sample((100,))).mean
    figures: dict[str, Any] = {
        "training": pv.plots.training_curves(history),
        "reconstructions": pv.plots.reconstructions(test.x[:30], vae.reconstruct(test.x[:30])),
        "prior_draws": pv.plots.image_grid(draws, title="The mean of p(x|z), z drawn from the prior"),
        "bounds": pv.plots.bounds(evidence),
        "latent_codes": pv.plots.latent_codes(vae.encode(test.x).mean, test.labels),
    }
    if vae.prior().event_shape == (2,):
        figures["manifold"] = pv.plots.manifold(lambda z: vae.likelihood(z).mean)
    for name, ax in figures.items():
        ax.figure.savefig(output / f"{name}.png", dpi=150)
    overview, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    pv.plots.reconstructions(test.x[:50], vae.reconstruct(test.x[:50]), axes[0])
    pv.plots.image_grid(draws, axes[1], title="The mean of p(x|z), z drawn from the prior")
    pv.plots.bounds(evidence, axes[2])
    overview.savefig(output / "overview.png", dpi=100)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="mnist", help="default %(default)s")
    add("--data-dir", type=Path, default=Path("data"), help="default %(default)s; MNIST goes there if it is not")
    add("--binarization", choices=["dynamic", "static", "threshold"], help="default dynamic; none for Gaussians")
    add("--num-epochs", type=positive_int, help="default: as many as make 12,000 steps (22 on all of MNIST)")
    add("--batch-size", type=positive_int, default=100, help="default %(default)s")
    add("--latent-dim", type=positive_int, default=50, help="default %(default)s")
    add("--hidden-dims", type=positive_int, nargs="*", default=[200, 200], help="of the decoder, default %(default)s")
    add("--objective", choices=OBJECTIVES, default="mean-field", help="default %(default)s")
    add("--num-particles", type=positive_int, default=1, help="draws of z for each image and step, default %(default)s")
    add("--likelihood", choices=["bernoulli", *GAUSSIAN_SCALES], default="bernoulli", help="default %(default)s")
    add("--num-samples", type=positive_int, help="draws of z for the log p(x) of each test image, default 1000")
    add("--num-annealed", type=positive_int, help="for how many test images log p(x) is annealed, default 100")
    add("--num-test", type=positive_int, default=1000, help="how many test images, 2 or more, default %(default)s")
    add("--seed", type=lambda text: positive_int(text, minimum=0), default=0, help="default %(default)s")
    add("--device", type=torch.device, default=torch.device("cpu"), help="default %(default)s")
    add("--output", type=Path, default=Path("results"), help="folder of figures and results.json, default %(default)s")
    add("--smoke", action="store_true", help="a few seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.likelihood == "bernoulli":
        args.binarization = args.binarization or "dynamic"
    elif args.binarization:
        parser.error("--binarization goes with --likelihood bernoulli; a Gaussian one takes grey levels as they are")
    if args.num_test < 2:
        parser.error("--num-test: expected 2 or more; got 1; a sampling error takes two")
    args.num_samples = args.num_samples or (100 if args.smoke else 1000)
    args.num_annealed = args.num_annealed or (3 if args.smoke else 100)
    args.num_epochs = args.num_epochs or (2 if args.smoke else None)
    try:
        torch.zeros(1, device=args.device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device: expected a device of this machine; got {args.device} ({str(error).splitlines()[0]})")
    try:  # found out now, not after training
        args.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.output).close()
    except OSError as error:
        parser.error(f"--output: expected a folder that can be written; got {args.output} ({error}); name another")
    return args


def positive_int(text: str, minimum: int = 1) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number of {minimum} or more; got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
