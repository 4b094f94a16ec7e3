"""A VAE whose latent also predicts the label, by a last layer with a distribution over its weights.

    python examples/supervised.py            # some minutes on two CPU cores

`vae.model(x)` hands out z, and a Bayesian linear layer (`PyroSample`) reads the label from it. The weights are latents
of all data together: they are drawn before the plate, which must know how many data a batch stands for. The labels of
1,000 digits are known. Beside it stands logistic regression on the pixels of these. A figure goes to `results/`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, batches, digits
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, NUM_LABELLED, NUM_DRAWS = 20, 1000, 200
WEIGHTS = ["head.weight", "head.bias"]


class Weights(PyroModule):
    """p(W), of the last layer."""

    def __init__(self) -> None:
        super().__init__("head")
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([10, LATENT_DIM]).to_event(2))
        self.bias = PyroSample(dist.Normal(0.0, 1.0).expand([10]).to_event(1))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias


class Supervised:
    """p(W) prod_n p(z_n) p(x_n|z_n) p(y_n|z_n, W), and q(W) prod_n q(z_n|x_n)."""

    def __init__(self, mean: Tensor) -> None:
        self.vae = pv.VAE(
            pv.priors.StandardNormal(LATENT_DIM),
            pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, [300], 784, output_bias=torch.logit(mean, eps=1e-3))),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [300], 2 * LATENT_DIM, input_mean=mean)),
        )
        self.weights = Weights()
        self.weights_guide = AutoNormal(poutine.block(self.model, expose=WEIGHTS))

    def model(self, x: Tensor, y: Tensor, num_data: int | None = None) -> None:
        weight, bias = self.weights()  # inside of the plate, each datum would have its own
        with pyro.plate("data", num_data or len(x), subsample=x):
            z = self.vae.model(x)
            pyro.sample("y", dist.Categorical(logits=logits(weight, bias, z)), obs=y)

    def guide(self, x: Tensor, y: Tensor, num_data: int | None = None) -> None:
        self.weights_guide(x, y, num_data)
        with pyro.plate("data", num_data or len(x), subsample=x):
            self.vae.guide(x)

    @torch.no_grad()
    def log_prob_labels(self, x: Tensor, weights: list[dict[str, Tensor]]) -> Tensor:
        """log p(y|x) for each y, `(N, 10)`, averaged over draws of z from q(z|x) and the weights given."""
        q_z = self.vae.encode(x)
        draws = [logits(w["head.weight"], w["head.bias"], q_z.sample()).softmax(-1) for w in weights]
        return torch.stack(draws).mean(0).log()


def logits(weight: Tensor, bias: Tensor, z: Tensor) -> Tensor:
    """Wz + b, with any leading dimensions of each."""
    return (weight @ z[..., None])[..., 0] + bias


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=15)
    train, test = digits(args)
    assert train.labels is not None and test.labels is not None
    both = Supervised(train.mean.flatten())
    order = torch.randperm(len(train))
    num_known = min(NUM_LABELLED, len(train) // 2)
    known, unknown = order[:num_known], order[num_known:]
    y = train.labels[known]

    optim = pv.FusedAdam({"lr": 1e-3})
    labelled = pv.SVI(both.model, both.guide, optim, pv.objectives.CompiledTrace_ELBO())
    unlabelled = pv.SVI(both.vae.model, both.vae.guide, optim, pv.objectives.CompiledTraceMeanField_ELBO())
    pv.check_program(both.model, both.guide, train.x[:2].flatten(1), train.labels[:2], kwargs={"num_data": num_known})
    for epoch in range(args.num_epochs):
        losses = []
        for rows in batches(len(unknown), 100):
            # As many data as the labelled ones, so that both kinds of steps have gradients of one size.
            losses.append(unlabelled.step(train.batch(unknown[rows]).flatten(1), num_data=num_known) / num_known)
            some = torch.randint(num_known, (100,))
            labelled.step(train.batch(known[some]).flatten(1), y[some], num_data=num_known)
        print(f"epoch {epoch + 1}: ELBO of digits without a label {-sum(losses) / len(losses):.2f}")
    both.vae.eval()

    x, labels = test.x.flatten(1), test.labels
    weights_mean = both.weights_guide.median()
    weights = [both.weights_guide(x[:1], labels[:1]) for _ in range(NUM_DRAWS)]
    found = {
        "drawn weights": both.log_prob_labels(x, weights),
        "mean weights": both.log_prob_labels(x, [weights_mean] * NUM_DRAWS),
        "logistic regression on the pixels": regression(train.x[known].flatten(1), y)(x).log_softmax(-1),
    }
    print(f"\n{len(x)} test digits, {num_known} labels")
    for name, log_prob in found.items():
        right = (log_prob.argmax(-1) == labels).float().mean()
        print(f"{name:<36}reads {right:.1%}, log p(y|x) {mean_log_prob(log_prob, labels):.3f} nats")

    # log p(y|x) by draws from q(z|x) is only as good as q. By evidence, with the mean weights:
    some = torch.arange(5 if args.smoke else 100)
    given = poutine.block(poutine.condition(both.model, data=weights_mean), hide=WEIGHTS)
    joint = pv.log_evidence(given, lambda x, y: both.vae.guide(x), x[some], labels[some], tolerance=0.05)
    alone = pv.log_evidence(both.vae.model, both.vae.guide, x[some], tolerance=0.05)
    error = (joint.mean_std_error**2 + alone.mean_std_error**2) ** 0.5
    print(f"\nof {len(joint)} digits, by log p(x, y) - log p(x): {joint.mean - alone.mean:.3f} +- {error:.3f} nats")
    print(f"by draws from q(z|x):              {mean_log_prob(found['mean weights'][some], labels[some]):.3f}")

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    pv.plots.latent_codes(both.vae.encode(x).mean.detach(), labels, axes[0])
    unsure = found["drawn weights"].max(-1).values.argsort()[:50]
    pv.plots.image_grid(x[unsure], axes[1], num_columns=10, title="The digits whose label is least certain")
    figure.savefig(args.output / "supervised.png", dpi=100)
    print(f"\nA figure is in {args.output}/supervised.png")


def regression(x: Tensor, y: Tensor) -> nn.Module:
    """Logistic regression with the same prior on its weights, at the most likely ones."""
    network = nn.Linear(784, 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(500):
        penalty = sum(parameter.square().sum() for parameter in network.parameters()) / 2
        loss = nn.functional.cross_entropy(network(x), y, reduction="sum") + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def mean_log_prob(log_prob: Tensor, labels: Tensor) -> float:
    return log_prob.gather(-1, labels[:, None]).mean().item()


if __name__ == "__main__":
    main()
