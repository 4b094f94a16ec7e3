"""How fast the estimators are, side by side with other ways to do it, as shares of the matrix products they need.

    python benchmarks/evidence.py                 # a few minutes on two CPU cores
    python benchmarks/evidence.py --pythae        # with Pythae's get_nll, where pythae is installed
    python benchmarks/evidence.py --profile       # what the time of one run goes to, on one core
    python benchmarks/evidence.py --device cuda   # and the seconds for 10,000 images with 5,000 draws, and by AIS

A 784-200-200-50 VAE with random weights on random binary images. A contestant's share is its rate of (datum, draw)
pairs by the rate at which the machine does the decoder's three matrix products and nothing else. All take turns in each
repetition; the table has the median, and the extremes, of each one's ratio to the products in the same repetition. For
annealing, whose evaluations need gradients too, a pair takes the products forwards and back.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyro
import torch
from pyro import poutine

import pyro_vae as pv

NUM_DATA, NUM_SAMPLES = 400, 4096
NUM_ANNEALED, NUM_TEMPERATURES = 128, 100
PRODUCTS = "matrix products alone"
CHUNKS = (32, 128, 512)  # draws that Pyro's traces take together, of ten data


def main() -> None:
    args = parse_args()
    if args.memory_of:
        return peak_of(args.memory_of)
    device = torch.device(args.device)
    torch.manual_seed(0)
    if args.profile:
        return print_profile()
    vae = build().to(device)
    x = torch.bernoulli(torch.full((NUM_DATA, 784), 0.2)).to(device)
    contestants = {
        PRODUCTS: (lambda: products(device), num_products(device)),
        "importance_sampling(compile=True)": (lambda: ours(vae, x, compile=True), NUM_DATA * NUM_SAMPLES),
        "importance_sampling": (lambda: ours(vae, x, compile=False), NUM_DATA * NUM_SAMPLES),
        **{
            f"Pyro's traces, {chunk} draws at a time": (
                lambda chunk=chunk: pyro_vectorised(vae, x[:10], chunk),
                10 * NUM_SAMPLES,
            )
            for chunk in CHUNKS
        },
        "Pyro's traces, all at once": (lambda: pyro_vectorised(vae, x[:10], NUM_SAMPLES), 10 * NUM_SAMPLES),
        "Pyro's traces, a loop over draws": (lambda: pyro_vectorised(vae, x[:10], 1, 256), 10 * 256),
    }
    if args.pythae:
        contestants["Pythae's get_nll"] = (pythae_contestant(x[:10].cpu()), 10 * NUM_SAMPLES)
    print(f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}, {NUM_SAMPLES} draws")
    compare(contestants, args.num_repetitions, device)
    print(f"\nannealing, {NUM_TEMPERATURES} temperatures")
    compare(annealing(vae, x[:NUM_ANNEALED], device), args.num_repetitions, device)
    if device.type == "cpu":
        print("\npeak memory of a process that draws 1,000 and 100,000 times for one image, MiB:")
        print("   ".join(f"{k:,}: {memory(k):.0f}" for k in (1000, 100_000)))
    if device.type == "cuda":
        whole(vae, device)


def compare(contestants, num_repetitions: int, device: torch.device) -> None:
    """Time them in turns, and print each one's rate by that of the products."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run, _ in contestants.values():  # to warm up, and to compile
        run()
    for _ in range(num_repetitions):
        for name, (run, num_pairs) in contestants.items():
            times[name].append(seconds(run, device) / num_pairs)
    print(f"{'':<36}{'pairs/s':>12}{'share of the products: median':>32}{'min':>7}{'max':>7}")
    for name, values in times.items():
        shares = [one / other for one, other in zip(times[PRODUCTS], values, strict=True)]
        print(
            f"{name:<36}{1 / statistics.median(values):>12,.0f}{statistics.median(shares):>32.3f}{min(shares):>7.3f}"
            f"{max(shares):>7.3f}"
        )


def annealing(vae, x, device: torch.device):
    """Annealing for all, and `log_evidence` where it anneals; and the products forwards and back."""

    def of(estimator, **options):
        def run():
            return estimator(vae.model, vae.guide, x, **options)

        return run, int(run().num_evaluations.sum())

    options = {"num_temperatures": NUM_TEMPERATURES}
    dear = {"tolerance": 1e-3}
    return {
        PRODUCTS: (lambda: (products(device), products(device)), num_products(device)),
        "ais(compile=True)": of(pv.ais, compile=True, **options),
        "ais": of(pv.ais, compile=False, **options),
        "log_evidence(compile=True)": of(pv.log_evidence, compile=True, **dear),
        "log_evidence": of(pv.log_evidence, compile=False, **dear),
    }


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "other loops of the graphs": ("## Call CompiledFxGraph",),
    "random numbers": ("aten::normal_", "aten::uniform_", "aten::bernoulli_"),
    "other operations of torch": ("aten::", "_WithGradients"),
}
"""By what the names of events start with; the first that fits. The rest is Python."""


def print_profile() -> None:
    """Print where the time of compiled runs goes. On one core, as the profiler adds up the time of a thread."""
    torch.set_num_threads(1)
    vae = build()
    x = torch.bernoulli(torch.full((NUM_ANNEALED, 784), 0.2))
    pair, options = (vae.model, vae.guide), {"compile": True}
    runs = {
        "importance_sampling": lambda: ours(vae, x, **options),
        "ais": lambda: pv.ais(*pair, x, num_temperatures=NUM_TEMPERATURES, **options),
        "log_evidence": lambda: pv.log_evidence(*pair, x, tolerance=1e-3, **options),
    }
    found = {name: parts_of(run) for name, run in runs.items()}
    print(f"{'1 thread, share of a run':<28}" + "".join(f"{name:>22}" for name in found))
    for part in [*PARTS, "Python"]:
        print(f"{part:<28}" + "".join(f"{shares[part]:>22.1%}" for shares in found.values()))


def parts_of(run) -> dict[str, float]:
    """Return what share of a run's time each part takes."""
    run()  # to compile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        run()
        took = time.perf_counter() - started
    shares = dict.fromkeys(PARTS, 0.0)
    for event in found.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), None)
        if part is not None:
            shares[part] += event.self_cpu_time_total / 1e6 / took
    return {**shares, "Python": 1 - sum(shares.values())}


def build() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(50),
        pv.likelihoods.Bernoulli(pv.nn.MLP(50, [200, 200], 784)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(784, [200, 200], 2 * 50)),
    )


def ours(vae, x, **options):
    pv.importance_sampling(vae.model, vae.guide, x, num_samples=NUM_SAMPLES, **options)


ROWS_OF_A_PRODUCT = {"cpu": 2048, "cuda": 131_072}
TIMES = 200


def num_products(device: torch.device) -> int:
    return TIMES * ROWS_OF_A_PRODUCT[device.type]


@torch.no_grad()
def products(device: torch.device) -> None:
    shapes = ((ROWS_OF_A_PRODUCT[device.type], 50), (50, 200), (200, 200), (200, 784))
    h0, w1, w2, w3 = (torch.randn(*shape, device=device) for shape in shapes)
    for _ in range(TIMES):
        h0 @ w1 @ w2 @ w3


@torch.no_grad()
def pyro_vectorised(vae, x, chunk, num_samples=NUM_SAMPLES):
    """log p(x) of each datum from Pyro's traces, with draws as a plate to the left of the data's."""
    pieces = []
    with poutine.block(), pyro.validation_enabled(False):
        for _ in range(num_samples // chunk):
            draws = pyro.plate("draws", chunk, dim=-2)
            guide = poutine.trace(draws(vae.guide)).get_trace(x)
            model = poutine.trace(poutine.replay(draws(vae.model), trace=guide)).get_trace(x)
            for trace in (guide, model):
                trace.compute_log_prob()
            sites = [model.nodes["z"], model.nodes["x"], guide.nodes["z"]]
            z, likelihood, q = (site["log_prob"] for site in sites)
            pieces.append((z + likelihood - q).double())
    return torch.cat(pieces).logsumexp(0)


def pythae_contestant(x):
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
            self.loc, self.log_var = nn.Linear(200, 50), nn.Linear(200, 50)

        def forward(self, x):
            h = self.body(x.reshape(len(x), -1))
            return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
            self.out = nn.Linear(200, 784)

        def forward(self, z):
            return ModelOutput(reconstruction=self.out(self.body(z)).sigmoid().reshape(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce")
    model = VAE(config, Encoder(), Decoder()).eval()
    images = x.reshape(-1, 1, 28, 28)
    return lambda: model.get_nll(images, n_samples=NUM_SAMPLES, batch_size=2048)


def seconds(run, device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def whole(vae, device) -> None:
    """The evidence of 10,000 images, and its share of the products that its evaluations take."""
    x = torch.bernoulli(torch.full((10_000, 784), 0.2)).to(device)
    pair = vae.model, vae.guide
    runs = {
        "10,000 images, 5,000 draws": (lambda: pv.importance_sampling(*pair, x, num_samples=5000, compile=True), 1),
        "10,000 images, AIS": (lambda: pv.ais(*pair, x, compile=True), 2),
        "10,000 images, log_evidence": (lambda: pv.log_evidence(*pair, x, tolerance=0.1, compile=True), 2),
    }
    rate = num_products(device) / seconds(lambda: products(device), device)
    for name, (run, passes) in runs.items():
        found: list[pv.Evidence] = []
        took = seconds(lambda run=run, found=found: found.append(run()), device)
        evaluations = int(found[0].num_evaluations.sum())
        print(f"{name}: {took:.1f} s, {evaluations:,} evaluations, share {passes * evaluations / took / rate:.2f}")


def memory(num_samples: int) -> float:
    """The peak of a process of its own."""
    command = [sys.executable, __file__, "--memory-of", str(num_samples)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_of(num_samples: int) -> None:
    torch.manual_seed(0)
    vae = build()
    pv.importance_sampling(vae.model, vae.guide, torch.zeros(1, 784), num_samples=num_samples)
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    print(int(peak) / 1024)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythae", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print what the time of one run goes to, and no more")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-repetitions", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
