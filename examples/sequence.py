"""Rotating digits: a chain of latents, z_t -> z_{t+1} linear and Gaussian, and one decoder for all frames.

    python examples/sequence.py            # some minutes on two CPU cores

A state-space model whose emission is a VAE: the outer program draws the chain and hands it to `vae.model(frames, z=z)`
inside of a plate over time. The guide corrects each prediction by what the encoder sees in the frame, as a filter does.
Beside it stands the same VAE with frames that know nothing of each other. A figure goes to the folder `results/`.

R. G. Krishnan, U. Shalit, D. Sontag (2017), Structured inference networks for nonlinear state space models.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, batches, digits
from torch import Tensor, nn

import pyro_vae as pv

LATENT_DIM, NUM_FRAMES, NUM_SEEN = 16, 8, 4


class Rotation(nn.Module):
    """p(z_1) prod_t p(z_t|z_{t-1}) p(x_t|z_t), of sequences `(N, T, 784)`."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.vae = frame_vae(mean)
        self.transition = nn.Linear(LATENT_DIM, LATENT_DIM, bias=False)
        nn.init.orthogonal_(self.transition.weight)
        self.log_scale = nn.Parameter(torch.full((LATENT_DIM,), -1.0))

    def model(self, x: Tensor) -> Tensor:
        pyro.module("rotation", self)
        frames = x.movedim(1, 0)
        with pyro.plate("data", len(x)):
            chain: list[Tensor] = []
            for t in range(len(frames)):
                chain.append(pyro.sample(f"z_{t}", self.next(chain).to_event(1)))
            z = over_time(chain)
            with pyro.plate("time", len(frames), dim=-2):
                self.vae.model(frames, z=z)
        return z

    def guide(self, x: Tensor) -> Tensor:
        pyro.module("rotation", self)
        frames = x.movedim(1, 0)
        with pyro.plate("data", len(x)):
            with pyro.plate("time", len(frames), dim=-2):
                seen = self.vae.encode(frames).base_dist
            chain: list[Tensor] = []
            for loc, scale in zip(seen.loc, seen.scale, strict=True):
                predicted = self.next(chain)
                precision = predicted.scale**-2 + scale**-2
                mean = (predicted.loc / predicted.scale**2 + loc / scale**2) / precision
                chain.append(pyro.sample(f"z_{len(chain)}", dist.Normal(mean, precision**-0.5).to_event(1)))
        return over_time(chain)

    def next(self, chain: list[Tensor]) -> dist.Normal:
        """p(z_t|z_{t-1}), or p(z_1)."""
        if not chain:
            return dist.Normal(torch.zeros(LATENT_DIM), 1.0)
        return dist.Normal(self.transition(chain[-1]), self.log_scale.exp())

    @torch.no_grad()
    def forecast(self, x: Tensor, num_frames: int) -> Tensor:
        """The mean of each next frame, by the mean of the chain: `(N, num_frames, 784)`."""
        z = self.guide(x)[-1]
        means = []
        for _ in range(num_frames):
            z = self.transition(z)
            means.append(self.vae.decode(z).mean)
        return torch.stack(means, dim=1)


def frame_vae(mean: Tensor) -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT_DIM, [300], 784, output_bias=torch.logit(mean, eps=1e-3))),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [300], 2 * LATENT_DIM, input_mean=mean)),
    )


def over_time(chain: list[Tensor]) -> Tensor:
    """Draws `(..., N, D)` as `(..., T, N, D)`: those of several particles have a dimension of one where time goes."""
    return torch.stack([z if z.ndim == 2 else z.squeeze(-3) for z in chain], dim=-3)


def main(argv: list[str] | None = None) -> None:
    args = arguments(__doc__, argv, num_epochs=40)
    train, test = digits(args)
    x, test_x = rotating(train.first(200 if args.smoke else 5000)), rotating(test.first(200))
    rotation = Rotation(x.mean((0, 1)))
    svi = pv.SVI(rotation.model, rotation.guide, pv.FusedAdam({"lr": 1e-3}), pv.objectives.CompiledTrace_ELBO())
    pv.check_program(rotation.model, rotation.guide, x[:2])
    for epoch in range(args.num_epochs):
        loss = sum(svi.step(x[rows]) for rows in batches(len(x), 50)) / len(x)
        print(f"epoch {epoch + 1}: ELBO {-loss / NUM_FRAMES:.2f} a frame")
    apart = frame_vae(x.mean((0, 1)))
    pv.fit(apart, x.flatten(0, 1), num_epochs=args.num_epochs, batch_size=400, seed=args.seed, progress=False)

    rotation.eval()
    some = test_x[: 3 if args.smoke else 50]
    whole = pv.log_evidence(rotation.model, rotation.guide, some, tolerance=0.5, seed=args.seed)
    start = pv.log_evidence(rotation.model, rotation.guide, some[:, :NUM_SEEN], tolerance=0.5, seed=args.seed)
    frames = pv.log_evidence(apart.model, apart.guide, some.flatten(0, 1), tolerance=0.1, seed=args.seed)
    print(f"\nlog p of {len(some)} test sequences, nats a frame")
    rest = NUM_FRAMES - NUM_SEEN
    rows = {
        "all frames": (whole.mean / NUM_FRAMES, whole.mean_std_error / NUM_FRAMES),
        f"the last {rest}, given the first {NUM_SEEN}": (
            (whole.mean - start.mean) / rest,
            math.hypot(whole.mean_std_error, start.mean_std_error) / rest,
        ),
        "frames apart from each other": (frames.mean, frames.mean_std_error),
    }
    for name, (mean, error) in rows.items():
        print(f"{name:<36}{mean:>10.3f} +- {error:.3f}")

    figure, ax = plt.subplots(figsize=(6, 8), layout="constrained")
    shown = test_x[:6]
    guess = torch.cat([shown[:, :NUM_SEEN], rotation.forecast(shown[:, :NUM_SEEN], rest)], dim=1)
    pictures = torch.stack([shown, guess], dim=1).flatten(0, 2)
    pv.plots.image_grid(pictures, ax, num_columns=NUM_FRAMES, title="Sequences; below each, what follows 4 frames")
    figure.savefig(args.output / "sequence.png", dpi=100)
    print(f"\nA figure is in {args.output}/sequence.png")


def rotating(data: pv.data.Dataset) -> Tensor:
    """Each digit in a full turn of `NUM_FRAMES` steps, from an angle of its own: binary, `(N, T, 784)`."""
    images = (data.x if data.grey is None else data.grey / 255).reshape(-1, 1, 28, 28).float()
    first, step = 2 * math.pi * torch.rand(len(images)), 2 * math.pi / NUM_FRAMES
    frames = []
    for t in range(NUM_FRAMES):
        cos, sin, zero = (first + t * step).cos(), (first + t * step).sin(), torch.zeros(len(images))
        turn = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
        grid = nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
        frames.append(nn.functional.grid_sample(images, grid, align_corners=False))
    return torch.bernoulli(torch.stack(frames, dim=1).flatten(2).clamp(0, 1))


if __name__ == "__main__":
    main()
