"""Clusters of digits, found without labels: a VAE whose latent comes from a mixture of Gaussians.

    python examples/clustering.py            # some minutes on two CPU cores

The outer program draws a cluster, and the latent from it; `vae.model(x, z=z)` does the rest. The cluster is summed out:
by Pyro's `TraceEnum_ELBO` in training, and for log p(x) by the mixture's own density, which is the VAE's prior. Beside
it stands the VAE whose prior is N(0, I), from which both start. A figure goes to the folder `results/`.

Z. Jiang, Y. Zheng, H. Tan, B. Tang, H. Zhou (2017), Variational deep embedding.
"""

from __future__ import annotations

import copy

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, batches, digits
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, NUM_CLUSTERS, HIDDEN = 10, 10, [400]


class Mixture(nn.Module):
    """p(z) = sum_c p(c) N(z; loc_c, diag scale_c^2)."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(scale.log())
        self.logits = nn.Parameter(torch.zeros(len(loc)))

    def cluster(self) -> dist.Distribution:
        """p(c)."""
        return dist.Categorical(logits=self.logits)

    def within(self, cluster: Tensor | slice) -> dist.Distribution:
        """p(z|c)."""
        return dist.Normal(self.loc[cluster], self.log_scale[cluster].exp()).to_event(1)

    def forward(self) -> dist.Distribution:
        """p(z), the cluster summed out."""
        return dist.MixtureSameFamily(self.cluster(), self.within(slice(None)))

    def most_likely(self, z: Tensor) -> Tensor:
        """The cluster with the largest p(c|z)."""
        return (self.cluster().logits + self.within(slice(None)).log_prob(z[:, None])).argmax(-1)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=10)
    train, test = digits(args)
    assert train.labels is not None and test.labels is not None

    plain = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(
            pv.nn.MLP(LATENT_DIM, HIDDEN, 784, nn.ReLU, output_bias=torch.logit(train.mean, eps=1e-3))
        ),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, HIDDEN, 2 * LATENT_DIM, nn.ReLU, input_mean=train.mean)),
    )
    history = pv.fit(plain, train, num_epochs=args.num_epochs, seed=args.seed, progress=False)
    print(f"with N(0, I) as prior: {history}")

    # Clusters start from k-means on the codes; then everything is trained together.
    with torch.no_grad():
        codes = plain.encode(train.x).mean
    start = copy.deepcopy(plain)
    prior = Mixture(*k_means(codes, NUM_CLUSTERS))
    vae = pv.VAE(prior, start.likelihood, start.posterior)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", prior.cluster(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", prior.within(cluster))
            vae.model(x, z=z)

    svi = SVI(model, vae.guide, pv.FusedAdam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    pv.check_program(model, vae.guide, train.x[:2])
    for epoch in range(args.num_epochs):
        loss = sum(svi.step(train.batch(rows)) for rows in batches(len(train), 100)) / len(train)
        found = accuracy(vae, prior, train, test)
        print(f"epoch {epoch + 1}: ELBO {-loss:.2f}, {found:.1%} of test digits lie in a cluster of their own kind")
    pv.fit(plain, train, num_epochs=args.num_epochs, seed=args.seed + 1, progress=False)  # as long as the other

    x = test.x[: 5 if args.smoke else 100]
    mixture, normal = (
        pv.log_evidence(each.model, each.guide, x, tolerance=0.1, seed=args.seed) for each in (vae.eval(), plain)
    )
    print(f"\n{mixture.summary()}\n\nwith N(0, I) as prior: log p(x) {normal.mean:.2f} +- {normal.mean_std_error:.2f}")
    print(f"the mixture less N(0, I), paired: {pv.compare(mixture, normal)}")

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    with torch.no_grad():
        draws = vae.decode(prior.within(slice(None)).sample((10,))).mean.movedim(1, 0).flatten(0, 1)
        pv.plots.image_grid(draws, axes[0], num_columns=10, title="Each row: draws from one cluster")
        pv.plots.latent_codes(vae.encode(test.x).mean, test.labels, axes[1])
    figure.savefig(args.output / "clustering.png", dpi=100)
    print(f"\nA figure is in {args.output}/clustering.png")


def k_means(points: Tensor, num_clusters: int, num_rounds: int = 50) -> tuple[Tensor, Tensor]:
    """The mean and the scale of each cluster."""
    loc = points[torch.randperm(len(points))[:num_clusters]]
    for _ in range(num_rounds):
        nearest = torch.cdist(points, loc).argmin(1)
        members = [points[nearest == c] for c in range(num_clusters)]
        loc = torch.stack([own.mean(0) if len(own) else old for own, old in zip(members, loc, strict=True)])
    scale = torch.stack([own.std(0) if len(own) > 1 else points.std(0) for own in members])
    return loc, scale


@torch.no_grad()
def accuracy(vae: pv.VAE, prior: Mixture, train: pv.data.Dataset, test: pv.data.Dataset) -> float:
    """How many test digits are what most training digits of their cluster are."""
    assert train.labels is not None and test.labels is not None
    of_train, of_test = (prior.most_likely(vae.encode(data.x).mean) for data in (train, test))
    kinds = torch.zeros(NUM_CLUSTERS, 10).index_put((of_train, train.labels), torch.ones(()), accumulate=True)
    return (kinds.argmax(1)[of_test] == test.labels).float().mean().item()


if __name__ == "__main__":
    main()
