"""Test ELBO of a 784-200-200-50 VAE on all of MNIST: `pv.fit` beside the same VAE written by hand in PyTorch.

Batches of 100, dynamic binarization, Adam with a learning rate of 1e-3 and cosine decay over 60 epochs. The test set is
binarized once, and its ELBO takes one draw for each image.

    python benchmarks/mnist_elbo.py --data-dir data
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
        self.decoder = nn.Sequential(nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784))

    def forward(self, x: Tensor) -> Tensor:
        """The ELBO summed over data."""
        loc, log_variance = self.encoder(x).chunk(2, -1)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        distortion = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        rate = 0.5 * (loc.square() + log_variance.exp() - 1 - log_variance).sum()
        return -distortion - rate


def train_by_hand(
    train: pv.data.Dataset, test: pv.data.Dataset, num_epochs: int, seed: int
) -> tuple[list[float], float]:
    """Test ELBO after each epoch, and seconds an epoch."""
    torch.manual_seed(seed)
    model = ByHand()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    test_x, elbos, seconds = test.x.flatten(1), [], 0.0
    for _ in range(num_epochs):
        started = time.perf_counter()
        for rows in torch.randperm(len(train)).split(100):
            optimizer.zero_grad()
            (-model(train.batch(rows).flatten(1))).backward()
            optimizer.step()
        decay.step()
        seconds += time.perf_counter() - started
        with torch.no_grad():
            elbos.append(model(test_x).item() / len(test))
    return elbos, seconds / num_epochs


def train_with_fit(
    train: pv.data.Dataset, test: pv.data.Dataset, num_epochs: int, seed: int
) -> tuple[list[float], float]:
    """Test ELBO after each epoch, and seconds an epoch."""
    torch.manual_seed(seed)
    vae = pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50, input_mean=train.mean)),
    )
    decay = CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "T_max": num_epochs})
    history = pv.fit(vae, train, optim=decay, num_epochs=num_epochs, seed=seed, validation=test, progress=False)
    return history.validation_elbo, sum(history.seconds) / num_epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--num-epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    train, test = (pv.data.mnist(args.data_dir, split=split) for split in ("train", "test"))
    print(f"{train.provenance}\n{test.provenance}\n{torch.get_num_threads()} threads, torch {torch.__version__}")
    third = args.num_epochs // 3
    print(f"seed            test ELBO after {third} epochs   after {args.num_epochs}   s/epoch", flush=True)
    for seed in args.seeds:
        for name, trained in {"by hand": train_by_hand, "pv.fit": train_with_fit}.items():
            elbos, seconds = trained(train, test, args.num_epochs, seed)
            print(f"{seed:>4}   {name:<8}{elbos[third - 1]:>21.2f}{elbos[-1]:>16.2f}{seconds:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
