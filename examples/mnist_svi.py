"""Train a VAE on handwritten digits with Pyro's SVI, and measure how well it models digits that it has not seen.

    python examples/mnist_svi.py                       # a few minutes on two CPU cores
    python examples/mnist_svi.py --latent-dim 2 --output results/plane
    python examples/mnist_svi.py --likelihood gaussian --output results/gaussian # grey levels as they are
    python examples/mnist_svi.py --help

Everything goes to one folder: the run, which the same command goes on with if it was stopped, and `report.html`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
        train, test = train.first(500), test.first(5)
    train, validation = train.hold_out(len(train) // 12, seed=args.seed)
    test = test.first(args.num_test)
    print(f"train       {train.provenance}\nvalidation  {validation.provenance}\ntest        {test.provenance}")

    # 2. The VAE: p(z), p(x|z) and q(z|x), each a module that returns a Pyro distribution.
    torch.manual_seed(args.seed)
    vae = build_vae(args, train).to(args.device)

    # 3. SVI: the ELBO with draws of the KL term (trace) or with its formula (mean-field). The run is kept in a folder.
    objective: ELBO = OBJECTIVES[args.objective](
        num_particles=args.num_particles, vectorize_particles=True, max_plate_nesting=1
    )
    num_epochs = args.num_epochs or max(1, round(12_000 * args.batch_size / len(train)))
    options = {"num_epochs": num_epochs, "batch_size": args.batch_size, "seed": args.seed}
    print(f"\nTraining for {num_epochs} epochs; stop it at any time, and the same command goes on.")
    try:
        pv.fit(vae, train, objective=objective, validation=validation, run=args.output, resume="auto", **options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    vae = pv.load(args.output).to(args.device)  # with the parameters of the best epoch

    # 4. How good is it? The ELBO is a lower bound. log p(x) takes draws of z: from the encoder, as is usual, or from
    # what each image needs; where no proposal will do, that is annealing.
    x = vae.check(test.x.to(args.device))
    print(f"\nEstimating log p(x) of {len(x)} test images: by what each of them needs, then in the usual way.")
    evidence = pv.log_evidence(vae.model, vae.guide, x, seed=args.seed, progress=True)
    usual = pv.importance_sampling(vae.model, vae.guide, x, num_samples=args.num_samples, seed=args.seed, progress=True)
    print(f"\n{evidence.summary(usual)}")

    # 5. Everything that was found: figures for programs, and a page for people.
    evidence.save(args.output / "evidence.npz")
    found = {"log_evidence": evidence.as_dict(), "usual": usual.as_dict()}
    (args.output / "evaluation.json").write_text(json.dumps(found, indent=1))
    report = pv.write_report(args.output, test, vae=vae, evidence=evidence, seed=args.seed, progress=False)
    print(f"\nThe report, with pictures and the worst images: {report}")


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
    add("--num-samples", type=positive_int, help="draws of z for the usual estimate of each test image, default 1000")
    add("--num-test", type=positive_int, default=100, help="how many test images, 2 or more, default %(default)s")
    add("--seed", type=lambda text: positive_int(text, minimum=0), default=0, help="default %(default)s")
    add("--device", type=torch.device, default=torch.device("cpu"), help="default %(default)s")
    add(
        "--output",
        type=Path,
        default=Path("results/mnist"),
        help="folder of the run and its report, default %(default)s",
    )
    add("--smoke", action="store_true", help="a few seconds, to see that it runs")
    args = parser.parse_args(argv)
    if args.likelihood == "bernoulli":
        args.binarization = args.binarization or "dynamic"
    elif args.binarization:
        parser.error("--binarization goes with --likelihood bernoulli; a Gaussian one takes grey levels as they are")
    if args.num_test < 2:
        parser.error("--num-test: expected 2 or more; got 1; a sampling error takes two")
    args.num_samples = args.num_samples or (100 if args.smoke else 1000)
    args.num_epochs = args.num_epochs or (2 if args.smoke else None)
    try:
        torch.zeros(1, device=args.device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device: expected a device of this machine; got {args.device} ({str(error).splitlines()[0]})")
    return args


def positive_int(text: str, minimum: int = 1) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number of {minimum} or more; got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
