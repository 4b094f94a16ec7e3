"""How far off log p(x) of a whole data set is, and what it costs, beside samplers of PyMC and NumPyro.

    python benchmarks/joint_evidence.py            # up to an hour
    python benchmarks/joint_evidence.py --smoke    # one model, once

Seven models whose evidence is known, in closed form or by quadrature. All samplers run in float64, on one thread, with
their defaults. A row has means over the seeds: of the estimate, of its error, its root mean square, and of the error
that the sampler states; then the seconds of the first run and the median of the others, and evaluations of the density.
Seconds are what a user waits for: inspection, compilation, and the fit of a guide (whose steps count as evaluations).

- "pv.log_evidence" is ours: without a guide, with its default tolerance of 0.05 nats and 6,000 evaluations at most, or
  with 0.01 and 30,000; and from automatic guides that are fitted for 500 steps. "reliable" says for how many seeds it
  calls its result so.
- "PyMC SMC" is `pymc.sample_smc` with four chains. The estimate is the mean of their log marginal likelihoods, and the
  error comes from their spread; PyMC states none, and counts no evaluations.
- "NumPyro jaxns" is `numpyro.contrib.nested_sampling.NestedSampler`, with the error that jaxns states.

The other libraries are optional, `pip install pymc numpyro "jaxns<3"`; if one is missing, its rows say so.
"""

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any, NamedTuple

if __name__ == "__main__":  # one thread for each library, whichever way it is compiled
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_vae as pv

NUM_STEPS = 500  # of a guide's fit
PACKAGES = ("torch", "pyro-ppl", "pymc", "pytensor", "numpyro", "jax", "jaxns")


class Found(NamedTuple):
    log_evidence: float
    stated_error: float
    num_evaluations: int | None = None
    reliable: bool | None = None


class Problem(NamedTuple):
    """A model, its data, and the truth."""

    name: str
    model: Callable[..., Any]
    """Takes a library, Pyro or NumPyro, and the data."""
    in_pymc: Callable[..., Any]
    """Takes PyMC and the data."""
    data: tuple[Tensor, ...]
    log_evidence: Tensor


# Models. Each is written once for Pyro and NumPyro, and once for PyMC.


def regression(lib: Any, x: Any, y: Any) -> None:
    w = lib.sample("w", lib.dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    with lib.plate("data", len(y)):
        lib.sample("y", lib.dist.Normal((w * x).sum(-1), 0.5), obs=y)


def regression_in_pymc(pm: Any, x: Any, y: Any) -> None:
    w = pm.Normal("w", 0.0, 1.0, shape=5)
    pm.Normal("y", (w * x).sum(-1), 0.5, observed=y)


def regression_problem() -> Problem:
    x = torch.randn(40, 5)
    exact = dist.MultivariateNormal(torch.zeros(40), x @ x.T + 0.25 * torch.eye(40))
    y = exact.sample()
    return Problem("linear regression", regression, regression_in_pymc, (x, y), exact.log_prob(y))


def coin(lib: Any, counts: Any, sizes: Any) -> None:
    p = lib.sample("p", lib.dist.Beta(2.0, 3.0))
    with lib.plate("data", len(counts)):
        lib.sample("counts", lib.dist.Binomial(sizes, p), obs=counts)


def coin_in_pymc(pm: Any, counts: Any, sizes: Any) -> None:
    pm.Binomial("counts", sizes.astype(int), pm.Beta("p", 2.0, 3.0), observed=counts.astype(int))


def log_beta(concentration: Tensor) -> Tensor:
    """The normaliser of a Dirichlet, or of a Beta."""
    return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))


def coin_problem() -> Problem:
    sizes = torch.tensor([8.0, 9.0, 7.0, 30.0, 12.0])
    counts = torch.tensor([3.0, 5.0, 1.0, 11.0, 7.0])
    prior = torch.tensor([2.0, 3.0])
    choose = torch.lgamma(sizes + 1) - torch.lgamma(counts + 1) - torch.lgamma(sizes - counts + 1)
    posterior = prior + torch.stack([counts.sum(), (sizes - counts).sum()])
    exact = choose.sum() + log_beta(posterior) - log_beta(prior)
    return Problem("Beta-Binomial", coin, coin_in_pymc, (counts, sizes), exact)


def location_and_scale(lib: Any, x: Any) -> None:
    variance = lib.sample("variance", lib.dist.InverseGamma(3.0, 2.0))
    mean = lib.sample("mean", lib.dist.Normal(0.0, (variance / 0.5) ** 0.5))
    with lib.plate("data", len(x)):
        lib.sample("x", lib.dist.Normal(mean, variance**0.5), obs=x)


def location_and_scale_in_pymc(pm: Any, x: Any) -> None:
    variance = pm.InverseGamma("variance", 3.0, 2.0)
    mean = pm.Normal("mean", 0.0, (variance / 0.5) ** 0.5)
    pm.Normal("x", mean, variance**0.5, observed=x)


def location_and_scale_problem() -> Problem:
    """Then x has a multivariate t distribution."""
    x = 1.0 + 0.7 * torch.randn(20)
    scale = (torch.eye(20) + 1 / 0.5) * 2.0 / 3.0
    exact = dist.MultivariateStudentT(6.0, torch.zeros(20), torch.linalg.cholesky(scale)).log_prob(x)
    return Problem("Normal-inverse-gamma", location_and_scale, location_and_scale_in_pymc, (x,), exact)


def shares(lib: Any, counts: Any, concentration: Any) -> None:
    p = lib.sample("p", lib.dist.Dirichlet(concentration))
    with lib.plate("data", len(counts)):
        lib.sample("counts", lib.dist.Multinomial(20, p), obs=counts)


def shares_in_pymc(pm: Any, counts: Any, concentration: Any) -> None:
    pm.Multinomial("counts", 20, pm.Dirichlet("p", concentration), observed=counts.astype(int))


def shares_problem() -> Problem:
    prior = torch.tensor([0.5, 1.0, 1.0, 2.0, 3.0])
    counts = dist.Multinomial(20, torch.tensor([0.02, 0.18, 0.2, 0.2, 0.4])).sample((6,))
    arrangements = 6 * torch.lgamma(torch.tensor(21.0)) - torch.lgamma(counts + 1).sum()
    exact = arrangements + log_beta(prior + counts.sum(0)) - log_beta(prior)
    return Problem("Dirichlet-multinomial", shares, shares_in_pymc, (counts, prior), exact)


def schools(lib: Any, y: Any, sigma: Any) -> None:
    mu = lib.sample("mu", lib.dist.Normal(0.0, 10.0))
    tau = lib.sample("tau", lib.dist.HalfCauchy(25.0))
    with lib.plate("schools", len(y)):
        eta = lib.sample("eta", lib.dist.Normal(0.0, 1.0))
        lib.sample("y", lib.dist.Normal(mu + tau * eta, sigma), obs=y)


def schools_in_pymc(pm: Any, y: Any, sigma: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, 10.0), pm.HalfCauchy("tau", 25.0)
    pm.Normal("y", mu + tau * pm.Normal("eta", 0.0, 1.0, shape=len(y)), sigma, observed=y)


def schools_problem() -> Problem:
    """Rubin (1981), with the priors of Pyro's example: by quadrature over mu and log tau."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def log_joint(mu: Tensor, log_tau: Tensor) -> Tensor:
        spread = (log_tau.exp().square()[..., None] + sigma.square()).sqrt()
        prior = dist.Normal(0.0, 10.0).log_prob(mu) + dist.HalfCauchy(25.0).log_prob(log_tau.exp()) + log_tau
        return prior + dist.Normal(mu[..., None], spread).log_prob(y).sum(-1)

    return Problem("eight schools", schools, schools_in_pymc, (y, sigma), on_grid(log_joint, (-60, 60), (-20, 12)))


def on_grid(log_joint: Callable[[Tensor, Tensor], Tensor], first: tuple[int, int], second: tuple[int, int]) -> Tensor:
    """Integrate a smooth density of two numbers by sums on a fine grid."""
    a, b = (torch.linspace(*ends, 801) for ends in (first, second))
    return log_joint(a[:, None], b).flatten().logsumexp(0) + ((a[1] - a[0]) * (b[1] - b[0])).log()


def logistic(lib: Any, x: Any, y: Any) -> None:
    w = lib.sample("w", lib.dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with lib.plate("data", len(y)):
        lib.sample("y", lib.dist.Bernoulli(logits=(w * x).sum(-1)), obs=y)


def logistic_in_pymc(pm: Any, x: Any, y: Any) -> None:
    w = pm.Normal("w", 0.0, 3.0, shape=2)
    pm.Bernoulli("y", logit_p=(w * x).sum(-1), observed=y.astype(int))


def logistic_problem() -> Problem:
    """Nearly separable, so that the posterior is skewed."""
    x = torch.stack([torch.ones(16), torch.linspace(-2, 2, 16)], -1)
    y = (torch.arange(16) > 8).double()
    y[6] = 1.0

    def log_joint(a: Tensor, b: Tensor) -> Tensor:
        prior = dist.Normal(0.0, 3.0).log_prob(a) + dist.Normal(0.0, 3.0).log_prob(b)
        logits = a[..., None] * x[:, 0] + b[..., None] * x[:, 1]
        return prior + dist.Bernoulli(logits=logits).log_prob(y).sum(-1)

    return Problem("logistic regression", logistic, logistic_in_pymc, (x, y), on_grid(log_joint, (-25, 25), (-25, 25)))


def mixture(lib: Any, x: Any, weights: Any) -> None:
    means = lib.sample("means", lib.dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with lib.plate("data", len(x)):
        components = lib.dist.Normal(means, 1.0)
        lib.sample("x", lib.dist.MixtureSameFamily(lib.dist.Categorical(probs=weights), components), obs=x)


def mixture_in_pymc(pm: Any, x: Any, weights: Any) -> None:
    pm.NormalMixture("x", weights, pm.Normal("means", 0.0, 5.0, shape=2), sigma=1.0, observed=x)


def mixture_problem() -> Problem:
    """Two components of nearly equal weight, far apart: the posterior has two modes, of different mass."""
    weights = torch.tensor([0.45, 0.55])
    x = torch.cat([torch.randn(9) - 3, torch.randn(9) + 3])

    def log_joint(a: Tensor, b: Tensor) -> Tensor:
        prior = dist.Normal(0.0, 5.0).log_prob(a) + dist.Normal(0.0, 5.0).log_prob(b)
        each = [w.log() + dist.Normal(m[..., None], 1.0).log_prob(x) for w, m in zip(weights, (a, b), strict=True)]
        return prior + torch.logaddexp(*each).sum(-1)

    return Problem("two modes", mixture, mixture_in_pymc, (x, weights), on_grid(log_joint, (-30, 30), (-30, 30)))


PROBLEMS = (
    regression_problem,
    coin_problem,
    location_and_scale_problem,
    shares_problem,
    schools_problem,
    logistic_problem,
    mixture_problem,
)


# Samplers. Each makes a function of a seed for a problem, so that what can be compiled once is.

Run = Callable[[int], Found]


def ours(kind: Any, problem: Problem, **options: Any) -> Run:
    """`pv.log_evidence`, with an automatic guide of this kind, or without one."""
    model = partial(problem.model, SimpleNamespace(sample=pyro.sample, plate=pyro.plate, dist=dist))

    def run(seed: int) -> Found:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = None if kind is None else fitted(kind(model), model, problem.data)
        evidence = pv.log_evidence(model, guide, *problem.data, joint=True, seed=seed, **options)
        num_evaluations = int(evidence.num_evaluations) + (0 if kind is None else NUM_STEPS)
        return Found(evidence.mean, evidence.std_error.item(), num_evaluations, bool(evidence.reliable))

    return run


def fitted(guide: Any, model: Callable[..., Any], data: tuple[Tensor, ...]) -> Any:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(NUM_STEPS):
        svi.step(*data)
    return guide


def by_pymc(problem: Problem) -> Run:
    pm = import_module("pymc")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    with pm.Model() as model:
        problem.in_pymc(pm, *(each.numpy() for each in problem.data))

    def run(seed: int) -> Found:
        options = {"progressbar": False, "return_inferencedata": False, "compute_convergence_checks": False}
        found = pm.sample_smc(chains=4, cores=1, model=model, random_seed=seed, **options)
        chains = [stages[-1] for stages in found.report.log_marginal_likelihood]
        return Found(float(np.mean(chains)), float(np.std(chains, ddof=1)) / len(chains) ** 0.5)

    return run


def by_jaxns(problem: Problem) -> Run:
    import_module("jaxns")
    jax, numpyro = import_module("jax"), import_module("numpyro")
    numpyro.enable_x64()
    library = SimpleNamespace(sample=numpyro.sample, plate=numpyro.plate, dist=import_module("numpyro.distributions"))
    sampler = import_module("numpyro.contrib.nested_sampling").NestedSampler(partial(problem.model, library))
    data = [jax.numpy.asarray(each.numpy()) for each in problem.data]

    def run(seed: int) -> Found:
        sampler.run(jax.random.key(seed), *data)
        found = sampler._results  # which no public method returns
        return Found(float(found.log_Z_mean), float(found.log_Z_uncert), int(found.total_num_likelihood_evaluations))

    return run


SAMPLERS: dict[str, Callable[[Problem], Run]] = {
    "pv.log_evidence": partial(ours, None),
    "pv.log_evidence, tolerance 0.01": partial(ours, None, tolerance=0.01, max_evaluations=30_000),
    "pv.log_evidence, AutoNormal": partial(ours, AutoNormal),
    "pv.log_evidence, AutoMultivariateNormal": partial(ours, AutoMultivariateNormal),
    "PyMC SMC": by_pymc,
    "NumPyro jaxns": by_jaxns,
}


def row(sampler: Callable[[Problem], Run], problem: Problem, num_seeds: int) -> str:
    """Run a sampler once with each seed. If it ends in an error, that is what the row says."""
    found, seconds = [], []
    try:
        start = time.perf_counter()
        run = sampler(problem)
        for seed in range(num_seeds):
            found.append(run(seed))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    except ModuleNotFoundError as missing:
        return f"not installed: {missing.name}"
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return cells(found, problem.log_evidence.item(), seconds)


def cells(found: list[Found], truth: float, seconds: list[float]) -> str:
    errors = [each.log_evidence - truth for each in found]
    rmse = math.hypot(*errors) / len(errors) ** 0.5
    stated = fmean(each.stated_error for each in found)
    later = f"{median(seconds[1:]):7.1f}" if len(seconds) > 1 else f"{'':>7}"
    counts = [each.num_evaluations for each in found if each.num_evaluations is not None]
    evaluations = f"{round(fmean(counts)):,}" if counts else "?"
    flags = [each.reliable for each in found if each.reliable is not None]
    reliable = f"{sum(flags)}/{len(flags)}" if flags else ""
    return (
        f"{truth + fmean(errors):9.3f} {fmean(errors):8.4f} {rmse:7.4f} {stated:7.4f} {seconds[0]:7.1f} {later} "
        f"{evaluations:>12} {reliable:>9}"
    )


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="one model, one seed")
    options = parser.parse_args()
    problems, num_seeds = (PROBLEMS[:1], 1) if options.smoke else (PROBLEMS, options.num_seeds)
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(f"one thread, seeds: {num_seeds}; {', '.join(map(installed, PACKAGES))}")
    print(
        f"{'':<42} {'estimate':>9} {'error':>8} {'RMSE':>7} {'stated':>7} {'first s':>7} {'later s':>7} "
        f"{'evaluations':>12} {'reliable':>9}"
    )
    for make in problems:
        pyro.set_rng_seed(0)
        problem = make()
        print(f"{problem.name}, truth {problem.log_evidence:.3f}")
        for name in options.samplers:
            found = row(SAMPLERS[name], problem, num_seeds)
            print(f"  {name:<40} {found}", flush=True)


if __name__ == "__main__":
    main()
