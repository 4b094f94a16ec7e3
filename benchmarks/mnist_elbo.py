"""Test ELBO of a 784-200-200-50 VAE on all of MNIST: `pv.fit` beside the same VAE written by hand in PyTorch.

Batches of 100, dynamic binarization, Adam with a learning rate of 1e-3 and cosine decay over the run. The test set is
binarized once, and its ELBO takes one draw for each image. The two train in turn, so their seconds can be compared.

    python benchmarks/mnist_elbo.py --data-dir data --num-epochs 20 60
"""

import argparse
import time

import torch
from pyro.optim import CosineAnnealingLR
from torch import Tensor, nn
from torch.nn import functional

import pyro_vae as pv


class ByHand(nn.Module):
    """The VAE as textbooks have it, with PyTorch's own initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 2 * 50)
        )
        self.decoder = nn.Sequential(
            nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The ELBO summed over data."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        distortion = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        rate = 0.5 * (loc.square() + log_variance.exp() - 1 - log_variance).sum()
        return -distortion - rate


def train_by_hand(train: pv.data.Dataset, test: pv.data.Dataset, num_epochs: int) -> tuple[float, float]:
    """Test ELBO and seconds an epoch."""
    torch.manual_seed(0)
    model = ByHand()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    started = time.perf_counter()
    for _ in range(num_epochs):
        for rows in torch.randperm(len(train)).split(100):
            optimizer.zero_grad()
            (-model(train.batch(rows).flatten(1))).backward()
            optimizer.step()
        decay.step()
    seconds = (time.perf_counter() - started) / num_epochs
    with torch.no_grad():
        return model(test.x.flatten(1)).item() / len(test), seconds


def train_with_fit(train: pv.data.Dataset, test: pv.data.Dataset, num_epochs: int) -> tuple[float, float]:
    """Test ELBO and seconds an epoch."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.StandardNormal(50),
        pv.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50, input_mean=train.mean)),
    )
    decay = CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "T_max": num_epochs})
    history = pv.fit(vae, train, optim=decay, num_epochs=num_epochs, validation=test, progress=False)
    return history.validation_elbo[-1], sum(history.seconds) / num_epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--num-epochs", type=int, nargs="+", default=[20, 60])
    args = parser.parse_args()
    train, test = (pv.data.mnist(args.data_dir, split=split) for split in ("train", "test"))
    print(f"{train.provenance}\n{test.provenance}\n{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("epochs   by hand: test ELBO   s/epoch   pv.fit: test ELBO   s/epoch   ratio of seconds", flush=True)
    for num_epochs in args.num_epochs:
        (elbo_a, seconds_a), (elbo_b, seconds_b) = (
            trained(train, test, num_epochs) for trained in (train_by_hand, train_with_fit)
        )
        print(f"{num_epochs:>6}{elbo_a:>21.2f}{seconds_a:>10.2f}{elbo_b:>20.2f}{seconds_b:>10.2f}"
              f"{seconds_b / seconds_a:>19.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
