"""What the tests of several processes run, in each of them, and alone for comparison.

torchrun --standalone --nproc-per-node 2 tests/processes.py numbers FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils import data as torch_data

import pyro_vae as pv
from pyro_vae.evidence.importance import ImportanceSampling
from pyro_vae.training import run as run_module

NUM_DATA, NUM_PIXELS = 63, 12


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((NUM_DATA, NUM_PIXELS), 0.4), generator=generator)


def vae(encoder=None):
    return pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(pv.nn.MLP(3, [10], NUM_PIXELS)),
        pv.posteriors.DiagonalNormal(encoder or pv.nn.MLP(NUM_PIXELS, [10], 6)),
    )


def with_dropout():
    """As many hidden numbers as a share of 20 rows has."""
    return vae(nn.Sequential(nn.Linear(NUM_PIXELS, 10), nn.Dropout(0.3), nn.Tanh(), nn.Linear(10, 6)))


def with_batch_norm():
    return vae(nn.Sequential(nn.Linear(NUM_PIXELS, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 6)))


def with_weights_of_all_data(is_subsampled):
    """A pair with a latent that all data share, beside those of each."""
    encoder = nn.Linear(NUM_PIXELS, 1)

    def plate(x):
        size = {"size": NUM_DATA, "subsample_size": len(x)} if is_subsampled else {"size": len(x)}
        return pyro.plate("data", **size)

    def model(x):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(NUM_PIXELS), 1.0).to_event(1))
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[..., None] * weights).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc = pyro.param("loc", torch.full((NUM_PIXELS,), 0.1))
        pyro.sample("weights", dist.Normal(loc, 0.5).to_event(1))
        with plate(x):
            pyro.sample("z", dist.Normal(encoder(x)[:, 0], 1.0))

    return model, guide


def with_coins():
    """A pair with discrete latents, whose guide is trained by the score."""
    encoder, decoder = nn.Linear(NUM_PIXELS, 4), nn.Linear(4, NUM_PIXELS)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return model, guide


def with_gammas():
    encoder = nn.Linear(NUM_PIXELS, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Poisson(rate[..., None].expand(*rate.shape, NUM_PIXELS)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        shape, rate = encoder(x).exp().unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(shape, rate))

    return model, guide


class Stream(torch_data.IterableDataset):
    """Rows one by one, which each worker takes in turns."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __iter__(self):
        worker = torch_data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(self.x[first::step])


def mapped(folder):
    """The data in two files."""
    paths = [Path(folder) / f"{name}-{os.environ.get('RANK', 'alone')}.npy" for name in "ab"]
    for path, rows in zip(paths, data().split(40), strict=True):
        np.save(path, rows.numpy().astype(np.uint8))
    return pv.data.MemoryMapped(paths)


class Looks(pv.training.Callback):
    """Evaluates and draws in between, as callbacks do: in the first process, which waits for nobody."""

    def __init__(self, program):
        self.program = program

    def on_epoch(self, progress):
        torch.randn(3)
        pv.rate_distortion(self.program.model, self.program.guide, data())


def with_a_callback():
    program = vae()
    return program, {"callbacks": [Looks(program)]}


def with_nested_plates(num_dims):
    """Of as many numbers as a share has rows, the last or any, if you like; beside a latent of all data in a plate."""
    encoder, decoder = nn.Linear(NUM_PIXELS, num_dims), nn.Linear(num_dims, NUM_PIXELS)

    def topics():
        return pyro.plate("topics", num_dims, dim=-1)

    def model(x):
        pyro.module("decoder", decoder)
        with topics():
            weights = pyro.sample("weights", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("dims", num_dims, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", NUM_PIXELS, dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=decoder(z * weights)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc = pyro.param("loc", torch.randn(num_dims))
        with topics():
            pyro.sample("weights", dist.Normal(loc, 0.5))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("dims", num_dims, dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5))

    return model, guide


def with_a_mixture():
    return pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(pv.nn.MLP(3, [10], NUM_PIXELS)),
        pv.posteriors.NormalMixture(pv.nn.MLP(NUM_PIXELS, [10], 2 * (2 * 3 + 1)), 3, 2),
    )


PARTICLES = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}

TRAININGS = {
    "mean field": lambda: (vae(), {}),
    "validation": lambda: (vae(), {"validation": data()[:20], "early_stopping": 2}),
    "compiled": lambda: (vae(), {"compile": True}),
    "particles": lambda: (vae(), {"objective": Trace_ELBO(**PARTICLES)}),
    "iwelbo": lambda: (vae(), {"objective": pv.objectives.IWELBO(5, max_plate_nesting=1)}),
    "dreg": lambda: (vae(), {"objective": pv.objectives.IWELBO(5, "dreg", max_plate_nesting=1)}),
    "dropout": lambda: (with_dropout(), {}),
    "schedules": lambda: (vae(), {"kl_warmup": 1, "clip_grad_norm": 1.0, "schedule": lambda step: 1 / (step + 1)}),
    "subsampled": lambda: (with_weights_of_all_data(True), {}),
    "shared latent": lambda: (with_weights_of_all_data(False), {}),
    "coins": lambda: (with_coins(), {}),
    "callback": with_a_callback,
    "plates of a share's size": lambda: (with_nested_plates(10), {}),
    "plates of the last share's size": lambda: (with_nested_plates(2), {"data": data()[:44]}),
    "mixture": lambda: (with_a_mixture(), {}),
    "fewer rows than processes": lambda: (vae(), {"data": data()[:41]}),
    "loader": lambda: (vae(), {"data": torch_data.DataLoader(torch_data.TensorDataset(data()), 20, shuffle=True)}),
    "stream": lambda: (vae(), {"data": torch_data.DataLoader(Stream(data()), 20, num_workers=2)}),
}
"""Programs with the options that they are trained with."""


def trained(name, **more):
    """Train, and return the history and all parameters."""
    pyro.clear_param_store()
    torch.manual_seed(0 if "accumulate" in more else int(os.environ.get("RANK", "0")))  # the first process decides
    program, options = TRAININGS[name]() if isinstance(name, str) else name
    x = options.pop("data", None)
    x = data() if x is None else x
    history = pv.fit(program, x, **{"num_epochs": 2, "batch_size": 20, "progress": False, **options, **more})
    modules = program if isinstance(program, tuple) else (program,)
    tensors = [tensor for each in modules if isinstance(each, nn.Module) for tensor in each.state_dict().values()]
    tensors += [value.detach() for _, value in sorted(pyro.get_param_store().items())]
    return {"elbo": torch.tensor(history.train_elbo), "parameters": torch.cat([each.flatten() for each in tensors])}


def evaluated():
    """Evaluate by all estimators; return their numbers."""
    torch.manual_seed(0)
    program, x = vae(), data()
    pair = program.model, program.guide
    found = {
        "importance": pv.importance_sampling(*pair, x, num_samples=500, num_posterior_draws=3),
        "laplace": pv.importance_sampling(*pair, x, num_samples=50, proposal="laplace"),
        "ais": pv.ais(*pair, x, num_temperatures=8, num_chains=64),
        "log_evidence": pv.log_evidence(*pair, x, max_evaluations=1500, tolerance=0.01),
        "gap": pv.inference_gap(*pair, x[:20], num_steps=10).evidence,
    }
    sandwich = pv.bdmc(*pair, num_data=20, num_temperatures=5)
    posterior = pv.posterior_samples(*pair, x[:9], num_samples=10)
    rates = pv.rate_distortion(*pair, x)
    return {
        **{name: [each.log_evidence, each.std_error, each.elbo, each.num_evaluations] for name, each in found.items()},
        "draws": [found["importance"].draws.latents[name] for name in found["importance"].draws.latents],
        "bdmc": [sandwich.lower, sandwich.upper],
        "posterior": [*posterior.latents.values()],
        "rates": [*rates],
    }


def numbers(folder):
    """Train and evaluate everything."""
    results = {name: trained(name) for name in TRAININGS}
    results["memory-mapped"] = trained((vae(), {"data": mapped(folder)}))
    torch.save({"trained": results, "evaluated": evaluated()}, f"{folder}/{os.environ.get('RANK', 'alone')}.pt")


class Killed(nn.Linear):
    """A layer that ends its process, the second of several, unless that was started again."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if type(self).calls == 30 and is_first_start and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def dies_once(folder):
    torch.manual_seed(0)
    trained((vae(Killed(NUM_PIXELS, 6)), {}), num_epochs=12, run=folder, resume="auto")


def saves_often(folder):
    """Train, with a checkpoint after each epoch; go on where others were killed."""
    run_module.SHARE_OF_TIME = 1e9
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trained((vae(), {}), num_epochs=300, run=folder, resume="auto")


def other_data(folder):
    pv.fit(vae(), data() + 0 if os.environ["RANK"] == "0" else 1 - data(), num_epochs=1, progress=False)


def evaluates_other_data(folder):
    """Each process a part, as if nobody shared the work."""
    torch.manual_seed(0)
    program = vae()
    pv.importance_sampling(program.model, program.guide, data()[int(os.environ["RANK"]) :: 2])


def other_backend(folder):
    """Of a device that is not there."""
    torch.distributed.init_process_group("cuda:gloo")
    pv.fit(vae(), data(), num_epochs=1, progress=False)


def other_order(folder):
    """A loader whose order depends on the process, after a first batch that is the same."""
    rows = list(range(NUM_DATA))
    rows[20:] = rows[20:] if os.environ["RANK"] == "0" else rows[:19:-1]
    loader = torch_data.DataLoader(torch_data.Subset(torch_data.TensorDataset(data()), rows), 20)
    pv.fit(vae(), loader, num_epochs=3, progress=False)


def fails_in_one(folder):
    """The second process alone meets an error, in the middle of training."""

    class Failing(nn.Linear):
        calls = 0

        def forward(self, x):
            type(self).calls += self.training
            if type(self).calls == 20 and os.environ["RANK"] == "1":
                raise ValueError("x: the fault of one process")
            return super().forward(x)

    pv.fit(vae(Failing(NUM_PIXELS, 6)), data(), batch_size=20, progress=False)


def diverges(folder):
    pv.fit(vae(), data(), batch_size=20, progress=False, optim=pv.FusedAdam({"lr": 1e30}))


def too_few_rows(folder):
    pv.fit(vae(), data(), batch_size=1, progress=False)


def batch_norm(folder):
    pv.fit(with_batch_norm(), data(), batch_size=20, progress=False)


def gammas(folder):
    pv.fit(with_gammas(), data(), batch_size=20, progress=False)


def evaluation_fails_in_one(folder):
    def measure(*args):
        raise ValueError("x: the fault of one process")

    torch.manual_seed(0)
    program = vae()
    if os.environ["RANK"] == "1":
        ImportanceSampling.measure = measure
    pv.importance_sampling(program.model, program.guide, data(), num_samples=2048)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
