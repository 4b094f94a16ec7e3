"""The time of a training step, side by side: Pyro's SVI, PyTorch by hand, NumPyro, Pythae, and compiled ELBOs.

    python benchmarks/training.py                       # about half an hour on two CPU cores, most of it compiling
    python benchmarks/training.py --numpyro --pythae    # with these too, where they are installed
    python benchmarks/training.py --only-epochs         # a few minutes
    python benchmarks/training.py --only-extras         # an epoch with run folder, logs and bar, beside one without
    python benchmarks/training.py --device cuda

The same networks, random data and Adam everywhere. All take turns, a block of steps each, in each repetition; the table
has the median time of a step, and the median and the extremes of its ratio to PyTorch by hand, compiled, in the same
repetition. The floor is the matrix products of the step and one update of Adam's state, and nothing else.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # Pythae's bars

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, JitTraceMeanField_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv

BASE = "PyTorch by hand, compiled"


class Dense:
    """784 pixels of 0 and 1 and ReLU layers."""

    event_shape = (784,)

    def __init__(self, hidden_dims, latent_dim, num_particles=1):
        self.hidden_dims, self.latent_dim, self.num_particles = hidden_dims, latent_dim, num_particles

    def encoder(self):
        return pv.nn.MLP(784, self.hidden_dims, 2 * self.latent_dim, activation=nn.ReLU)

    def decoder(self):
        return pv.nn.MLP(self.latent_dim, self.hidden_dims[::-1], 784, activation=nn.ReLU)

    def jax_layers(self, stax):
        hidden = [layer for dim in self.hidden_dims for layer in (stax.Dense(dim), stax.Relu)]
        back = [layer for dim in self.hidden_dims[::-1] for layer in (stax.Dense(dim), stax.Relu)]
        return stax.serial(*hidden, stax.Dense(2 * self.latent_dim)), stax.serial(*back, stax.Dense(784))


class Convolutional:
    """64x64 pixels of three colours, each 0 or 1, and four convolutions of stride 2 each way."""

    event_shape = (3, 64, 64)
    latent_dim, num_particles = 32, 1
    channels = (16, 32, 64, 64)

    def encoder(self):
        widths = zip((3, *self.channels), self.channels, strict=False)
        layers = [layer for i, o in widths for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.ReLU())]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 2 * self.latent_dim))

    def decoder(self):
        channels = self.channels[::-1]
        widths = zip(channels, (*channels[1:], 3), strict=True)
        layers = [layer for i, o in widths for layer in (nn.ReLU(), nn.ConvTranspose2d(i, o, 4, 2, 1))]
        return nn.Sequential(nn.Linear(self.latent_dim, 64 * 16), nn.Unflatten(-1, (64, 4, 4)), *layers)

    def jax_layers(self, stax):
        """Channels last, as JAX has them."""
        options = {"filter_shape": (4, 4), "strides": (2, 2), "padding": "SAME"}
        down = [layer for channels in self.channels for layer in (stax.Conv(channels, **options), stax.Relu)]
        up = [
            layer
            for channels in (*self.channels[-2::-1], 3)
            for layer in (stax.Relu, stax.ConvTranspose(channels, **options))
        ]
        unflatten = (
            lambda rng, shape: ((*shape[:-1], 4, 4, 64), ()),
            lambda _, x, **kw: x.reshape(*x.shape[:-1], 4, 4, 64),
        )
        return (
            stax.serial(*down, stax.Flatten, stax.Dense(2 * self.latent_dim)),
            stax.serial(stax.Dense(64 * 16), unflatten, *up),
        )


ARCHITECTURES = {
    "784-400-20": Dense([400], 20),
    "784-200-200-50, 50 particles": Dense([200, 200], 50, num_particles=50),
    "convolutions, 64x64x3": Convolutional(),
}


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    print(f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}, pyro {pyro.__version__}")
    if args.only_epochs:
        return whole_epochs(device)
    if args.only_extras:
        return extras(device, args.num_images, args.num_repetitions)
    table = []
    for name in args.architectures:
        for batch_size in args.batch_sizes:
            if ARCHITECTURES[name].num_particles * batch_size <= args.max_pairs:
                table += measure(name, batch_size, device, args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "training.json").write_text(json.dumps(table, indent=1) + "\n")
    plot(table, args.output_dir / "training.png")
    if device.type == "cpu" and "784-400-20" in args.architectures:
        if args.numpyro:
            for batch_size in args.batch_sizes:
                beside_numpyro(batch_size, args.num_repetitions)
        whole_epochs(device)


def measure(name: str, batch_size: int, device: torch.device, args: argparse.Namespace) -> list[dict]:
    """Rows of the table: all contestants on one architecture and batch."""
    architecture = ARCHITECTURES[name]
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((batch_size, *architecture.event_shape), 0.2)).to(device)
    runs, first = {}, {}
    for contestant, make in contestants(args).items():
        try:
            runs[contestant] = make(architecture, x)
            started = time.perf_counter()
            runs[contestant](5)
            synchronize(device)
            first[contestant] = time.perf_counter() - started
        except NotImplementedError as reason:
            print(f"{contestant}: {reason}")
            runs.pop(contestant, None)
    seconds = {contestant: [] for contestant in runs}
    num_steps = max(2, min(40, int(0.3 / timed(runs[BASE], 5, device))))
    for _ in range(args.num_repetitions):
        for contestant, run in runs.items():
            seconds[contestant].append(timed(run, num_steps, device))
    print(f"\n{name}, batches of {batch_size}")
    print(f"{'':<44}{'ms a step':>10}{'ratio: median':>15}{'min':>7}{'max':>7}{'first 5 steps, s':>18}")
    rows = []
    for contestant, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[BASE], strict=True)]
        row = {
            "architecture": name,
            "batch_size": batch_size,
            "contestant": contestant,
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "seconds_of_the_first_5_steps": first[contestant],
        }
        rows.append(row)
        print(
            f"{contestant:<44}{row['milliseconds']:>10.2f}{row['ratio']:>15.2f}{row['ratio_min']:>7.2f}"
            f"{row['ratio_max']:>7.2f}{first[contestant]:>18.1f}"
        )
    return rows


def contestants(args: argparse.Namespace) -> dict:
    """Each takes an architecture and a batch, and gives a function that takes so many steps."""
    found = {
        "the floor": floor,
        BASE: functools.partial(by_hand, compile=True),
        "PyTorch by hand": functools.partial(by_hand, compile=False),
        "Pyro's SVI": functools.partial(svi, TraceMeanField_ELBO, pyro.optim.Adam),
        "Pyro's SVI, no validation": functools.partial(svi, TraceMeanField_ELBO, pyro.optim.Adam, validation=False),
        "Pyro's JitTraceMeanField_ELBO": functools.partial(svi, JitTraceMeanField_ELBO, pyro.optim.Adam),
        "SVI, CompiledTraceMeanField_ELBO, Pyro's Adam": functools.partial(
            svi, pv.objectives.CompiledTraceMeanField_ELBO, pyro.optim.Adam
        ),
        "SVI, CompiledTraceMeanField_ELBO, FusedAdam": functools.partial(
            svi, pv.objectives.CompiledTraceMeanField_ELBO, pv.FusedAdam
        ),
        "pv.SVI, CompiledTraceMeanField_ELBO, FusedAdam": functools.partial(
            svi, pv.objectives.CompiledTraceMeanField_ELBO, pv.FusedAdam, kind=pv.SVI
        ),
    }
    if args.device != "cpu":
        found["PyTorch by hand, compiled, one CUDA graph"] = by_hand_as_one_cuda_graph
    if args.numpyro:
        found["NumPyro, jitted"] = by_numpyro
    if args.pythae:
        found["Pythae's trainer"] = by_pythae
    return found


def build(architecture, device) -> pv.VAE:
    torch.manual_seed(0)
    prior = pv.priors.StandardNormal(architecture.latent_dim)
    return pv.VAE(
        prior, pv.likelihoods.Bernoulli(architecture.decoder()), pv.posteriors.DiagonalNormal(architecture.encoder())
    ).to(device)


def svi(elbo, optim, architecture, x, validation=True, kind=SVI):
    vae = build(architecture, x.device)
    num_particles = architecture.num_particles
    objective = elbo(num_particles=num_particles, vectorize_particles=num_particles > 1)
    one = kind(vae.model, vae.guide, optim({"lr": 1e-3}), objective)

    def run(num_steps):
        with pyro.validation_enabled(validation):
            for _ in range(num_steps):
                one.step(x)

    return run


def by_hand(architecture, x, compile):
    loss_of, adam = written_out(architecture, x)
    if compile:
        loss_of = torch.compile(loss_of, mode="reduce-overhead" if x.is_cuda else "default")

    def run(num_steps):
        for _ in range(num_steps):
            adam.zero_grad()
            loss_of(x).backward()
            adam.step()

    return run


def by_hand_as_one_cuda_graph(architecture, x):
    """Loss, gradient and update, captured together; a batch is copied in at each step."""
    loss_of, adam = written_out(architecture, x)
    loss_of = torch.compile(loss_of)
    own = x.clone()

    def step():
        adam.zero_grad(set_to_none=False)
        loss_of(own).backward()
        adam.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run(num_steps, alive=(loss_of, adam)):  # a graph knows addresses and no more
        for _ in range(num_steps):
            own.copy_(x)
            graph.replay()

    return run


def written_out(architecture, x):
    """The loss of a batch as PyTorch by hand, and Adam."""
    torch.manual_seed(0)
    encoder, decoder = architecture.encoder().to(x.device), architecture.decoder().to(x.device)
    params = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(params, lr=1e-3, fused=True, capturable=x.is_cuda)
    num_particles = architecture.num_particles

    def loss_of(x):
        loc, raw_scale = encoder(x).chunk(2, -1)
        scale = F.softplus(raw_scale)
        z = loc + scale * torch.randn(num_particles, *loc.shape, device=loc.device)
        logits = decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        distortion = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="sum") / num_particles
        return distortion + (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()

    return loss_of, adam


def floor(architecture, x):
    if not isinstance(architecture, Dense):
        raise NotImplementedError("no floor is known for convolutions")
    layers = products_of(architecture, x)
    state = [torch.randn(sum(w.numel() for _, w, _, _ in layers), device=x.device) for _ in range(4)]

    def run(num_steps):
        for _ in range(num_steps):
            multiply(layers)
            update(*state)

    return run


def products_of(architecture, x):
    """Inputs, weights and gradients of the outputs of each layer, and whether the inputs need a gradient."""
    dims = [784, *architecture.hidden_dims, 2 * architecture.latent_dim]
    back = [architecture.latent_dim, *architecture.hidden_dims[::-1], 784]
    layers = []
    for widths, rows in ((dims, len(x)), (back, len(x) * architecture.num_particles)):
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            h, w, g = (
                torch.randn(*shape, device=x.device) for shape in ((rows, inputs), (inputs, outputs), (rows, outputs))
            )
            layers.append((h, w, g, i > 0 or widths is back))
    return layers


@torch.no_grad()
def multiply(layers):
    for h, w, g, needs_gradient in layers:
        torch.mm(h, w)
        torch.mm(h.T, g)
        if needs_gradient:
            torch.mm(g, w.T)


@torch.compile
def update(param, gradient, mean, square):
    mean.lerp_(gradient, 0.1)
    square.lerp_(gradient * gradient, 0.001)
    param.sub_(1e-3 * mean / (square.sqrt() + 1e-8))


def by_numpyro(architecture, x, elbo=None, num_flows=0):
    """With `TraceMeanField_ELBO`, or what `elbo` makes of `numpyro.infer`; so many inverse autoregressive flows."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from jax.example_libraries import stax
    from numpyro import infer
    from numpyro.distributions.flows import InverseAutoregressiveTransform
    from numpyro.nn import AutoregressiveNN

    encoder, decoder = architecture.jax_layers(stax)
    latent_dim = architecture.latent_dim
    data = jnp.asarray((x.movedim(1, -1) if x.ndim == 4 else x).cpu().numpy())
    batch_size, *event_shape = data.shape

    def model(x):
        net = numpyro.module("decoder", decoder, (batch_size, latent_dim))
        with numpyro.plate("data", batch_size):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent_dim), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(len(event_shape)), obs=x)

    def guide(x):
        net = numpyro.module("encoder", encoder, (batch_size, *event_shape))
        loc, raw_scale = jnp.split(net(x), 2, axis=-1)
        z_given_x = dist.Normal(loc, jax.nn.softplus(raw_scale)).to_event(1)
        with numpyro.plate("data", batch_size):
            flows = [flow(number) for number in range(num_flows)]
            numpyro.sample("z", dist.TransformedDistribution(z_given_x, flows) if flows else z_given_x)

    def flow(number):
        order = jnp.arange(latent_dim)[:: (-1) ** number]
        net = AutoregressiveNN(latent_dim, [64, 64], permutation=order, skip_connections=False, nonlinearity=stax.Relu)
        return InverseAutoregressiveTransform(numpyro.module(f"flow {number}", net, (latent_dim,)))

    loss = infer.TraceMeanField_ELBO(num_particles=architecture.num_particles) if elbo is None else elbo(infer)
    one = infer.SVI(model, guide, numpyro.optim.Adam(1e-3), loss)
    state = one.init(jax.random.PRNGKey(0), data)

    @jax.jit
    def loop(state, data, num_steps):
        return jax.lax.fori_loop(0, num_steps, lambda _, state: one.update(state, data)[0], state)

    step = jax.jit(lambda state, data: one.update(state, data)[0])

    def run(num_steps):
        nonlocal state
        if isinstance(architecture, Dense):
            state = loop(state, data, num_steps)
        else:  # XLA's convolutions take several times as long inside of a loop
            for _ in range(num_steps):
                state = step(state, data)
        jax.block_until_ready(state)

    return run


def beside_numpyro(batch_size: int, num_repetitions: int) -> None:
    """Where the time of a step goes, beside NumPyro's."""
    import jax

    device, architecture = torch.device("cpu"), ARCHITECTURES["784-400-20"]
    x = torch.bernoulli(torch.full((batch_size, 784), 0.2))
    layers = products_of(architecture, x)
    arrays = [[jax.numpy.asarray(each.numpy()) for each in layer[:3]] for layer in layers]
    needs_gradient = [layer[3] for layer in layers]

    @jax.jit
    def loop(arrays, num_steps):
        def body(_, total):
            for (inputs, w, gradient), needed in zip(arrays, needs_gradient, strict=True):
                # So that no product is the same in each turn:
                h, g = inputs.at[0, 0].set(total), gradient.at[0, 0].set(total)
                found = [h @ w, h.T @ g, *([g @ w.T] if needed else [])]
                total = sum((product[0, 0] for product in found), 1e-6 * total)
            return total

        return jax.lax.fori_loop(0, num_steps, body, 0.0)

    vae, elbo, optim = (
        build(architecture, device),
        pv.objectives.CompiledTraceMeanField_ELBO(),
        pv.FusedAdam({"lr": 1e-3}),
    )
    one = pv.SVI(vae.model, vae.guide, optim, elbo)
    for _ in range(3):
        one.step(x)
    (program,) = elbo._pairs.values()
    ((graph,),) = program.graphs.values()
    runs = {
        "NumPyro's step": by_numpyro(architecture, x),
        "SVI's step with FusedAdam": lambda num_steps: [one.step(x) for _ in range(num_steps)],
        "its graph alone": lambda num_steps: [graph.run(x) for _ in range(num_steps)],
        "its matrix products alone": lambda num_steps: [multiply(layers) for _ in range(num_steps)],
        "the same products by XLA": lambda num_steps: jax.block_until_ready(loop(arrays, num_steps)),
    }
    for run in runs.values():
        run(5)
    num_steps = max(2, min(100, int(0.3 / timed(runs["its graph alone"], 5, device))))
    seconds = {name: [] for name in [*runs, "a step of fit"]}
    for _ in range(3 * num_repetitions):
        for name, run in runs.items():
            seconds[name].append(timed(run, num_steps, device))
        seconds["a step of fit"].append(step_of_fit(x))
    print(f"\n784-400-20, batches of {batch_size}: where the time goes")
    print(f"{'':<44}{'ms':>10}{'of NumPyro: median':>20}{'quartiles':>14}")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["NumPyro's step"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<44}{1e3 * statistics.median(values):>10.2f}{middle:>20.2f}{low:>7.2f}{high:>7.2f}")


def by_pythae(architecture, x):
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    if architecture.num_particles > 1:
        raise NotImplementedError("its VAE has one particle")

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = architecture.encoder()

        def forward(self, x):
            loc, log_var = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = architecture.decoder()

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(
        input_dim=architecture.event_shape, latent_dim=architecture.latent_dim, reconstruction_loss="bce"
    )
    model = VAE(config, Encoder(), Decoder())

    @functools.cache
    def trainer(num_steps):
        data = x.cpu().repeat(num_steps, *(1 for _ in architecture.event_shape))
        options = BaseTrainerConfig(
            output_dir="/tmp/pythae", per_device_train_batch_size=len(x), learning_rate=1e-3, no_cuda=not x.is_cuda
        )
        made = BaseTrainer(model, BaseDataset(data, torch.zeros(len(data))), training_config=options)
        made.prepare_training()
        return made

    return lambda num_steps: trainer(num_steps).train_step(epoch=2)


def step_of_fit(x) -> float:
    """Seconds of a step of `fit`, by its own clock, in the second of two epochs of 200 steps: the first compiles."""
    vae = build(ARCHITECTURES["784-400-20"], x.device)
    optim = pv.FusedAdam({"lr": 1e-3})
    history = pv.fit(vae, x.repeat(200, 1), optim=optim, num_epochs=2, batch_size=len(x), compile=True, progress=False)
    return history.seconds[-1] / 200


def whole_epochs(device) -> None:
    """Epochs through `fit`, beside their steps alone, and what compiling costs and saves."""
    grey = torch.randint(0, 256, (60_000, 784), dtype=torch.uint8)
    data = pv.data.from_tensor(grey, binarization="dynamic")
    print("\nepochs of 60,000 images through fit, 784-400-20, batches of 128, dynamic binarization")
    architecture = ARCHITECTURES["784-400-20"]
    x = data.batch(torch.arange(128))
    step = svi(pv.objectives.CompiledTraceMeanField_ELBO, pv.FusedAdam, architecture, x)
    step(5)
    seconds, alone = {}, []

    class BetweenEpochs(torch.optim.lr_scheduler.ConstantLR):
        """Times the same number of steps after each epoch, when the machine is as busy as it was."""

        def step(self, *args):
            super().step(*args)
            if len(seconds) == 1 and self.last_epoch > 0:
                alone.append(timed(step, 469, device) * 469)

    for compile in (False, True):
        vae, optim = build(architecture, device), pv.FusedAdam({"lr": 1e-3}, BetweenEpochs)
        history = pv.fit(vae, data, optim=optim, num_epochs=10, batch_size=128, compile=compile, progress=False)
        seconds[compile] = history.seconds
        print(f"compile={compile}: " + " ".join(f"{each:.2f}" for each in history.seconds) + " s")
    print("its 469 steps alone: " + " ".join(f"{each:.2f}" for each in alone) + " s")
    ratios = [epoch / steps for epoch, steps in zip(seconds[True], alone, strict=True)][2:]  # compiled in the first two
    print(f"an epoch is {statistics.median(ratios):.2f} times its steps ({min(ratios):.2f} to {max(ratios):.2f})")
    epoch = statistics.median(seconds[True][2:])
    cost, gain = sum(seconds[True]) - len(seconds[True]) * epoch, statistics.median(seconds[False]) - epoch
    print(
        f"compiling takes {cost:.1f} s and is paid back after {cost / gain:.1f} epochs ({469 * cost / gain:.0f} steps)"
    )


def extras(device, num_images: int, num_repetitions: int) -> None:
    """Epochs with a run folder, two logs and a bar, and epochs without, in turns; evaluation and checkpoints included.

    In seconds of CPU time, which others on the machine disturb less. Waiting for the disk is no part of it: `Run` keeps
    that under 2 % by itself.
    """
    grey = torch.randint(0, 256, (num_images, 784), dtype=torch.uint8)
    data = pv.data.from_tensor(grey, binarization="dynamic")
    print(
        f"\nepochs of {num_images:,} images through fit, 784-400-20, batches of 128: with run folder, JSON, CSV and bar"
    )

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    class Clock(pv.training.Callback):
        def on_start(self, progress):
            self.times = []

        def on_epoch(self, progress):
            self.times.append(time.process_time())

    def epochs(has_extras):
        pyro.clear_param_store()
        vae, clock = build(ARCHITECTURES["784-400-20"], device), Clock()
        options = {"num_epochs": 5, "batch_size": 128, "compile": True, "callbacks": [clock], "progress": False}
        with tempfile.TemporaryDirectory() as folder:
            if has_extras:
                logs = [pv.training.JSONLines(f"{folder}/log.jsonl"), pv.training.CSV(f"{folder}/log.csv")]
                options |= {"callbacks": [clock, *logs], "progress": True, "run": f"{folder}/run"}
            with contextlib.redirect_stderr(Terminal()) as terminal:
                pv.fit(vae, data, **options)
        assert ("5/5" in terminal.getvalue()) == has_extras
        return [after - before for before, after in itertools.pairwise(clock.times)]  # the first compiles

    os.environ.pop("TQDM_DISABLE", None)
    epochs(False)  # the compiler's code is kept
    ratios = []
    for number in range(num_repetitions):
        found = {has_extras: epochs(has_extras) for has_extras in ((False, True), (True, False))[number % 2]}
        ratios.append(statistics.median(found[True]) / statistics.median(found[False]))
        words = [" ".join(f"{each:.2f}" for each in found[has_extras]) for has_extras in (False, True)]
        print(f"without {words[0]} s, with {words[1]} s: {ratios[-1]:.3f} times", flush=True)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{middle:.3f} times as long with all of it (quartiles {low:.3f} to {high:.3f})")


def timed(run, num_steps: int, device) -> float:
    """Seconds a step."""
    synchronize(device)
    started = time.perf_counter()
    run(num_steps)
    synchronize(device)
    return (time.perf_counter() - started) / num_steps


def synchronize(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def plot(table: list[dict], path: Path) -> None:
    """A panel for each architecture and batch."""
    import matplotlib.pyplot as plt

    architectures, batch_sizes, names = (
        list(dict.fromkeys(row[key] for row in table)) for key in ("architecture", "batch_size", "contestant")
    )
    figure, grid = plt.subplots(
        len(architectures),
        len(batch_sizes),
        figsize=(2.3 * len(batch_sizes) + 2.8, 2.2 * len(architectures) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, (architecture, batch_size) in zip(grid.flat, itertools.product(architectures, batch_sizes), strict=True):
        rows = [row for row in table if (row["architecture"], row["batch_size"]) == (architecture, batch_size)]
        for row in rows:
            errors = [[row["ratio"] - row["ratio_min"]], [row["ratio_max"] - row["ratio"]]]
            color = "C1" if "Compiled" in row["contestant"] else "0.4"
            place = names.index(row["contestant"])
            ax.errorbar(row["ratio"], place, xerr=errors, fmt="o", color=color, markersize=4)
        ax.set_xscale("log")
        ax.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        ax.minorticks_off()
        ax.grid(axis="x", color="0.9")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(f"{architecture}\nbatches of {batch_size:,}", fontsize=8)
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].invert_yaxis()
    for ax in grid[:, 0]:
        ax.tick_params(axis="y", labelsize=7)
    figure.supxlabel(f"time of a step, as a multiple of {BASE}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numpyro", action="store_true")
    parser.add_argument("--pythae", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--architectures", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[20, 128, 1000])
    parser.add_argument("--max-pairs", type=int, default=50_000, help="leave out larger batches times particles")
    parser.add_argument("--only-epochs", action="store_true", help="of `fit`, beside their steps")
    parser.add_argument("--only-extras", action="store_true", help="run folder, logs and bar, beside none")
    parser.add_argument("--num-images", type=int, default=60_000, help="of --only-extras")
    parser.add_argument("--num-repetitions", type=int, default=10)
    parser.add_argument("--output-dir", type=Path, default=Path("results/training"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
