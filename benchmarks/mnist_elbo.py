"""Test ELBO of a 784-200-200-50 VAE on all of MNIST, after 20 and 60 epochs of one run of `pv.fit`.

Batches of 100, dynamic binarization, Adam with a learning rate of 1e-3 and cosine decay over 60 epochs. The test set is
binarized once, and its ELBO takes one draw for each image.

    python benchmarks/mnist_elbo.py --data-dir data
"""

import argparse

import torch
from pyro.optim import CosineAnnealingLR

import pyro_vae as pv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--num-epochs", type=int, default=60)
    args = parser.parse_args()

    torch.manual_seed(0)
    train = pv.data.mnist(args.data_dir)
    test = pv.data.mnist(args.data_dir, split="test")
    vae = pv.VAE(
        pv.StandardNormal(50),
        pv.Bernoulli(pv.nn.MLP(50, [200, 200], 784, output_bias=torch.logit(train.mean, eps=1e-3))),
        pv.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50, input_mean=train.mean)),
    )
    decay = CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "T_max": args.num_epochs})
    history = pv.fit(vae, train, optim=decay, num_epochs=args.num_epochs, validation=test)
    print(train.provenance)
    print(test.provenance)
    for epoch in sorted({20, args.num_epochs}):
        if epoch <= len(history):
            elbo = history.validation_elbo[epoch - 1]
            print(f"epoch {epoch}: test ELBO {elbo:.2f} nats, training {history.train_elbo[epoch - 1]:.2f}")
    print(f"{sum(history.seconds) / len(history):.2f} s an epoch on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
