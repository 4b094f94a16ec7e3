"""Digits of which a hundred have labels: the second model of Kingma et al. (2014), as a Pyro program."""

from __future__ import annotations

import argparse
from typing import Any

import pyro
import torch
from literature_checkpoints import go_on, keep
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

import pyro_vae as pv

KINGMA_M2 = {
    "title": "M2, 100 labels",
    "source": "Kingma, Rezende, Mohamed and Welling (2014), table 1 (from memory): 88.03 % +- 1.71 %",
    "published": {"accuracy": 0.8803},
    "num_latents": 50,
    "num_labels": 100,
    "weight_of_labels": 0.1,
    "rate": 3e-4,
    "num_epochs": {"full": 1000, "hours": 60, "minutes": 2},
    "remarks": "The source trains by AdaGrad or RMSProp with momentum, ours by Adam; the weight of its classifier's "
    "loss is a tenth of the number of data, as here.",
}


class M2(nn.Module):
    """p(y) p(z) p(x|y, z), with q(y|x) q(z|x, y)."""

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.classifier = pv.nn.MLP(784, [500], 10, nn.Softplus)
        self.prior = pv.priors.StandardNormal(num_latents)
        self.likelihood = pv.likelihoods.Bernoulli(pv.nn.MLP(num_latents + 10, [500], 784, nn.Softplus))
        self.posterior = pv.posteriors.DiagonalNormal(pv.nn.MLP(784 + 10, [500], 2 * num_latents, nn.Softplus))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(10) / 10), obs=y)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(joined(z, y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            pyro.sample("z", self.posterior(joined(x, y)))


def joined(one: Tensor, other: Tensor) -> Tensor:
    """Concatenate after what broadcasts in front."""
    shape = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return torch.cat([one.expand(*shape, -1), other.expand(*shape, -1)], -1)


def m2(args: argparse.Namespace) -> dict[str, Any]:
    """Train on all digits, with the labels of a few, ten of each; say how many test digits are told, and log p(x)."""
    train, test = (pv.data.mnist(args.data_dir, split=split, seed=args.seed) for split in ("train", "test"))
    torch.manual_seed(args.seed)
    pyro.clear_param_store()
    net = M2(KINGMA_M2["num_latents"])
    optimizer = torch.optim.Adam(net.parameters(), lr=KINGMA_M2["rate"])
    labelled = some_of_each(train.labels, KINGMA_M2["num_labels"] // 10)
    y = nn.functional.one_hot(train.labels[labelled], 10).float()
    num_epochs = args.num_epochs or KINGMA_M2["num_epochs"][args.budget]
    kept = args.runs / f"m2-{args.budget}-{args.seed}.pt"
    for epoch in range(go_on(kept, net, optimizer).get("num_epochs", 0), num_epochs):
        elbo = 0.0
        for rows in torch.randperm(len(train)).split(100):
            optimizer.zero_grad()
            loss, without_labels = loss_of(
                net, train.batch(rows).flatten(1), train.batch(labelled).flatten(1), y, len(train)
            )
            loss.backward()
            optimizer.step()
            elbo += without_labels * len(rows) / len(train)
        keep(kept, net, optimizer, num_epochs=epoch + 1)
        print(f"epoch {epoch + 1}: ELBO {elbo:.2f}, {accuracy(net, test):.2%} of test digits told", flush=True)
    x = test.x[:: max(1, len(test) // args.num_test)].flatten(1)
    evidence = pv.log_evidence(net.model, config_enumerate(net.guide), x, tolerance=0.1, seed=args.seed)
    return {
        **KINGMA_M2,
        "num_epochs": num_epochs,
        "accuracy": accuracy(net, test),
        "num_images": len(x),
        "log_p": evidence.mean,
        "monte_carlo_error": evidence.mean_std_error,
        "reliable": evidence.reliable.double().mean().item(),
        "elbo": evidence.elbo.mean().item(),
    }


def some_of_each(labels: Tensor, number: int) -> Tensor:
    """Rows of so many data of each label."""
    order = torch.randperm(len(labels))
    return torch.cat([order[labels[order] == label][:number] for label in labels.unique()])


def loss_of(net: M2, x: Tensor, x_of_y: Tensor, y: Tensor, num_data: int) -> tuple[Tensor, float]:
    """The loss for each datum of a batch without labels, of all that have one, and of the classifier."""
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    without = elbo.differentiable_loss(net.model, config_enumerate(net.guide), x) / len(x)
    labelled = elbo.differentiable_loss(net.model, net.guide, x_of_y, y)
    log_q = dist.OneHotCategorical(logits=net.classifier(x_of_y)).log_prob(y).sum()
    weight = KINGMA_M2["weight_of_labels"] * num_data / len(y)
    return without + (labelled - weight * log_q) / num_data, -without.item()


def accuracy(net: M2, data: pv.data.Dataset) -> float:
    with torch.no_grad():
        return (net.classifier(data.x.flatten(1)).argmax(-1) == data.labels).double().mean().item()


def told(result: dict[str, Any]) -> str:
    """The line of docs/literature.md."""
    return (
        f"{result['title']}, {result['num_epochs']:,} epochs: {result['accuracy']:.1%} of test digits told (published "
        f"{result['published']['accuracy']:.1%}); log p(x) of {result['num_images']:,} test images "
        f"{result['log_p']:.2f} +- {result['monte_carlo_error']:.2f} nats, ELBO {result['elbo']:.2f}, reliable for "
        f"{result['reliable']:.0%}"
    )
