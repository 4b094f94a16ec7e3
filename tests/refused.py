"""What is refused, each with the message that a user reads: `python tests/refused.py > docs/refusals.md`."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import planar
from torch import nn

import pyro_vae as pv

X = torch.linspace(-1.0, 1.0, 9)
CASES = {}


def case(what, evaluate=pv.importance_sampling, **options):
    """Register a program: its model; or its model and guide; or these, and what they are called on."""

    def register(make):
        def run():
            pair = make()
            model, guide, *args = pair if isinstance(pair, tuple) else (pair, of_z)
            evaluate(model, guide, *(args or [X]), **options)

        CASES[what] = run
        return make

    return register


def of_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_likelihood(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    return model


def with_guide(posterior, name="z"):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(name, posterior(x))

    return plain, guide


@case("a latent that all data share")
def _():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    return model, guide


@case("no dimension of data")
def _():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    return model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0))


@case("a plate that takes some of the rows")
def _():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows], 1.0))

    return model, guide


@case("data that are visited in turn, with other sites for each")
def _():
    def model(x):
        for i in pyro.plate("data", len(x)):
            for t in range(1 + i % 3):
                pyro.sample(f"z_{i}_{t}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])

    return model, None


@case("a density that depends on the values of other data")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


@case("nothing observed")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model


@case("a guide that leaves out a latent")
def _():
    return plain, lambda x: None


@case("what `obs_mask` leaves out, and the guide does not draw")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=x > 0)

    return model


@case("a guide with a site that the model has not")
def _():
    return with_guide(lambda x: dist.Normal(x, 1.0), name="w")


@case("noise of a guide without a density")
def _():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + u, 0.5))

    return plain, guide


@case("a guide of points")
def _():
    return with_guide(dist.Delta)


@case("points without the density of their change of variables")
def _():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.6), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u / 2))

    return plain, guide


@case("a guide with a seed of its own")
def _():
    return plain, poutine.seed(of_z, 0)


@case("noise in a model that is no site")
def _():
    return with_likelihood(lambda z: dist.Normal(z + 0.3 * torch.randn(len(X)), 1.0))


@case("latents that are not in all draws", joint=True)
def _():
    def model(x):
        is_there = pyro.sample("is_there", dist.Bernoulli(0.5)) == 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0)) if is_there else 3.0
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])

    def guide(x):
        if pyro.sample("is_there", dist.Bernoulli(0.5)) == 1:
            pyro.sample("z", dist.Normal(0.5, 0.8))

    return model, guide


@case("a set of points as a distribution")
def _():
    return with_guide(lambda x: dist.Empirical(x[:, None].expand(-1, 3), torch.zeros(len(x), 3)))


@case("a discrete latent without a list of values, which the guide leaves out")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            count = pyro.sample("count", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(z + count, 1.0), obs=x)

    return model


@case("a discrete latent that the guide draws, where a gradient is needed", partial(pv.ais, start="guide"))
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            count = pyro.sample("z", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(count, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Poisson(2.0 + x))

    return model, guide


@case("draws of latents that are summed out", pv.posterior_samples)
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            cluster = pyro.sample("cluster", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(cluster, 1.0), obs=x)

    return model, None


@case("a distribution that cannot be expanded to a batch")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("matrix", dist.LKJ(2, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, None


@case("a site whose dimensions are not declared")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], torch.ones(4)), obs=x[:, None].expand(-1, 4))

    return model


@case("masked latents on which something depends that counts")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


@case("data outside of the support of their distribution")
def _():
    return with_likelihood(lambda z: dist.Bernoulli(logits=z))


@case("missing values that are masked, but are NaN all the same")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, None, torch.where(X > 0.5, torch.nan, X)


@case("missing values in what parameters are made of")
def _():
    return plain, of_z, torch.where(X > 0.5, torch.nan, X)


@case("parameters of a distribution that cannot be")
def _():
    return with_likelihood(lambda z: dist.Normal(z, -1.0))


@case("an error of the program's own")
def _():
    scope = {"__name__": "network"}
    exec(compile("def network(z):\n    assert z.shape[-1] == 4, 'four numbers'\n", "network.py", "exec"), scope)
    return with_likelihood(lambda z: dist.Normal(scope["network"](z), 1.0))


@case("a density where the model has a point")
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Delta(2 * w))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(x / 2, 1.0))
            pyro.sample("z", dist.Normal(2 * w, 1.0))

    return model, guide


@case("densities that are no numbers")
def _():
    return with_likelihood(lambda z: dist.Normal(z, torch.where(z > 1.0, torch.nan, 1.0)))


@case("modules that share noise among data")
def _():
    noise = nn.Dropout()
    return with_likelihood(lambda z: dist.Normal(noise(z), 1.0))


@case("parameters in half precision")
def _():
    layer = nn.Linear(1, 1).to(torch.bfloat16)
    return with_likelihood(lambda z: dist.Normal(layer(z[..., None].bfloat16())[..., 0].float(), 1.0))


@case("autocast")
def _():
    layer = nn.Linear(1, 1)

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            layer(x[:, None])
        return plain(x)

    return cast


@case("a flow without an inverse, where a density is needed at other values", partial(pv.ais, start="guide"))
def _():
    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar(2)]))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    return model, guide


@case(
    "latents in another order in the guide, with KL divergences in closed form",
    pv.objectives.CompiledTraceMeanField_ELBO().loss,
)
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(2 * x / 3, 0.8))
            pyro.sample("w", dist.Normal(z / 2, 0.7))

    return model, guide


@case("a discrete latent in a guide that should be refined", pv.inference_gap)
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Bernoulli(torch.tensor(0.5)))
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Bernoulli(logits=x))
            pyro.sample("z", dist.Normal((x + w) / 2, 0.7))

    return model, guide


@case("a model that reads the data that it should make", pv.bdmc)
def _():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            before = torch.nn.functional.pad(x, (1, 0))[..., :-1]
            pyro.sample("x", dist.Normal(z[..., None] + before, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    return model, guide, torch.stack([X, X.flip(0)], 1)


@case("a keyword that is no option", num_draws=100)
def _():
    return plain


@case("tensors with other numbers of rows")
def _():
    return lambda x, y: plain(x), lambda x, y: of_z(x), X, X[:4]


@case("arguments that the program does not take")
def _():
    return plain, of_z, X, X


@case("no data for all together", joint=True)
def _():
    return plain, of_z, X[:0]


@case("arguments that the program does not take, for all together", joint=True)
def _():
    return plain, of_z, X, X


@case("a guide that is no program")
def _():
    return plain, 3


@case("a plate by number", plate=7)
def _():
    return plain


@case("no data")
def _():
    return plain, of_z, X[:0]


def message_of(run):
    """What the user reads, on one line."""
    pyro.clear_param_store()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except (TypeError, ValueError) as error:
        return " ".join(str(error).split())
    raise AssertionError("expected an error")


PAGE = """# What is refused, and what it says

Each message says which argument it is about, what was expected, what was found, and how to mend it.

    python tests/refused.py > docs/refusals.md

| what | message |
|---|---|"""


def row(what):
    return f"| {what} | {message_of(CASES[what]).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print("\n".join([PAGE, *map(row, CASES)]))
