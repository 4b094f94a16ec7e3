"""How many (datum, draw) pairs importance sampling should draw together: pairs a second, on a 784-200-200-50 VAE.

Prints, for each size, the rate as a ratio to the size in use, over interleaved repetitions: minimum, median, maximum.

    python benchmarks/tile_size.py
"""

import statistics
import time

import torch

import pyro_vae as pv
from pyro_vae.program import tiles

SIZES = (256, 512, 1024, 2048, 4096, 16384)
NUM_REPETITIONS = 5


def main() -> None:
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50)),
    )
    x = torch.bernoulli(torch.full((20, 784), 0.2))
    in_use = tiles.TILE_SIZE["cpu"]
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(NUM_REPETITIONS):
        for size in SIZES:
            tiles.TILE_SIZE["cpu"] = size
            started = time.perf_counter()
            pv.importance_sampling(vae.model, vae.guide, x, num_samples=4096)
            rates[size].append(20 * 4096 / (time.perf_counter() - started))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ratio to tiles of {in_use}")
    print("   pairs   pairs/s (median)   ratio: min  median  max")
    for size in SIZES:
        ratios = [rate / base for rate, base in zip(rates[size], rates[in_use], strict=True)]
        print(
            f"{size:>8} {statistics.median(rates[size]):>18,.0f} {min(ratios):>12.2f} {statistics.median(ratios):>7.2f}"
            f" {max(ratios):>5.2f}"
        )


if __name__ == "__main__":
    main()
