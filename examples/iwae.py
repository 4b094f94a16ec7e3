"""Importance-weighted autoencoders: one network, trained on the bound of one draw and on that of five.

    python examples/iwae.py            # some minutes on two CPU cores

Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders: the network of one stochastic layer,
784-[200 x 2]-50 with tanh, on digits that are binarized anew for each batch. Both start from the same weights and take
as many steps. A bound of more draws forgives a guide that is only now and then right, so that the model can be better
and its guide worse: log p(x) says which model is better, and a bound does not. A figure goes to the folder `results/`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pyro
import torch
from common import arguments, digits
from torch import Tensor

import pyro_vae as pv
from pyro_vae.nn import MLP

TRAINED_ON = (1, 5)  # draws; the paper has 50 too, which takes ten times as long as 5
SHOWN = (1, 2, 5, 10, 50, 100, 500, 1000, 5000)


def network(mean: Tensor) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(MLP(50, [200, 200], 784, output_bias=torch.logit(mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(MLP(784, [200, 200], 2 * 50, input_mean=mean)),
    )


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=10)
    train, test = digits(args)
    x, most = (test.x[:5], 500) if args.smoke else (test.x[:100], 6000)
    found, usual, drawn = {}, {}, {}
    for k in TRAINED_ON:
        pyro.clear_param_store()
        torch.manual_seed(args.seed)
        vae = network(train.mean)
        history = pv.fit(
            vae,
            train,
            objective=pv.objectives.IWELBO(k),
            optim=pv.FusedAdam({"lr": 1e-3, "eps": 1e-4}),
            num_epochs=args.num_epochs,
            seed=args.seed,
            progress=False,
        )
        found[k] = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.1, max_evaluations=most, seed=args.seed)
        usual[k] = pv.importance_sampling(vae.model, vae.guide, x, num_samples=5000, bounds=SHOWN, seed=args.seed)
        drawn[k] = vae.reconstruct(test.x[:25])
        active = pv.latent_use(vae.model, vae.guide, test.x[:1000]).num_active
        print(
            f"\ntrained on L_{k} in {sum(history.seconds):.0f} s; {active} of 50 units are active\n{found[k].summary()}"
        )

    few, many = TRAINED_ON
    print(f"\nlog p(x) and bounds of {len(x)} test digits, nats per datum")
    print(f"{'trained on':<12}{'log p(x)':>10} +-      {'ELBO':>10}{'L_5000, the usual estimate':>30}")
    for k in TRAINED_ON:
        print(
            f"L_{k:<10}{found[k].mean:>10.2f} +- {found[k].mean_std_error:.2f}{usual[k].elbo.mean():>11.2f}"
            f"{usual[k].bounds(5000).mean:>30.2f}"
        )
    print(f"L_{many} less L_{few}, paired: {pv.compare(found[many], found[few])}")

    figure, (curves, *grids) = plt.subplots(1, 4, figsize=(15, 4), width_ratios=[1.6, 1, 1, 1], layout="constrained")
    for k, colour in zip(TRAINED_ON, ("C0", "C1"), strict=True):
        bounds = [usual[k].bounds(shown) for shown in SHOWN]
        curves.errorbar(
            SHOWN, [b.mean for b in bounds], [b.mean_std_error for b in bounds], color=colour, label=f"trained on L_{k}"
        )
        curves.axhline(found[k].mean, color=colour, linestyle=":", label=f"log p(x), L_{k}")
    curves.set(xscale="log", xlabel="k", ylabel="nats per datum", title=f"Bounds L_k of {len(x)} test digits")
    curves.legend()
    titles = ["Test digits"] + [f"Reconstructed, L_{k}" for k in TRAINED_ON]
    for ax, title, images in zip(grids, titles, [test.x[:25], *drawn.values()], strict=True):
        pv.plots.image_grid(images, ax, title=title)
    figure.savefig(args.output / "iwae.png", dpi=100)
    print(f"\nA figure is in {args.output}/iwae.png")


if __name__ == "__main__":
    main()
