"""Programs of which a VAE is a part: `COMPOSITIONS[name]()` makes one, with its log joint density written by hand."""

import pyro
import pyro.distributions as dist
import torch
from programs import Case, binary, data
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vae as pv

WIDTH, LATENT = 12, 2


def vae_of(context=0, name=None, encoder=None, context_shapes=None):
    torch.manual_seed(len(name or ""))
    shapes = ([(context,)] if context else []) if context_shapes is None else context_shapes
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT),
        pv.likelihoods.Bernoulli(pv.nn.MLP(LATENT + context, [7], WIDTH)),
        pv.posteriors.DiagonalNormal(encoder or pv.nn.MLP(WIDTH + context, [7], 2 * LATENT)),
        name=name,
        context_shapes=shapes,
    )
    return vae.to(torch.get_default_dtype())


def log_joint_of(vae, z, x, *context):
    """log p(z) + log p(x|z), of each pair."""
    return vae.prior().log_prob(z) + vae.likelihood(z, *context).log_prob(x)


def case_of(log_joint, *args, modules, **kwargs):
    case = Case(*args, **kwargs)
    case.log_joint, case.modules = log_joint, modules
    return case


def two_in_one_plate():
    left, right = vae_of(name="left"), vae_of(name="right")

    def program(role):
        def run(x, y):
            with pyro.plate("data", len(x)):
                getattr(left, role)(x)
                getattr(right, role)(y)

        return run

    def log_joint(latents, x, y):
        return (log_joint_of(left, latents["left/z"], x) + log_joint_of(right, latents["right/z"], y)).sum()

    calls = [(binary(6), binary(6).flip(0))]
    return case_of(log_joint, program("model"), program("guide"), calls, modules=[left, right])


def two_with_their_own_plates():
    left, right = vae_of(name="left"), vae_of(name="right")

    def program(role):
        def run(x, y):
            getattr(left, role)(x)
            getattr(right, role)(y)

        return run

    def log_joint(latents, x, y):
        return log_joint_of(left, latents["left/z"], x).sum() + log_joint_of(right, latents["right/z"], y).sum()

    return case_of(log_joint, program("model"), program("guide"), [(binary(6), binary(4))], modules=[left, right])


def one_in_two_scopes():
    vae = vae_of()

    def program(role):
        def run(x, y):
            with pyro.plate("data", len(x)):
                for prefix, rows in {"first": x, "second": y}.items():
                    with scope(prefix=prefix):
                        getattr(vae, role)(rows)

        return run

    def log_joint(latents, x, y):
        return (log_joint_of(vae, latents["first/z"], x) + log_joint_of(vae, latents["second/z"], y)).sum()

    calls = [(binary(6), binary(6).flip(0))]
    return case_of(log_joint, program("model"), program("guide"), calls, modules=[vae])


def groups(shape=(3, 5, WIDTH), encoder=None):
    vae = vae_of(encoder=encoder)

    def program(role):
        def run(x):
            with pyro.plate("groups", 3, dim=-2):
                getattr(vae, role)(x)

        return run

    x = binary(15, WIDTH)[: shape[0] * shape[1] if len(shape) > 2 else shape[0]].reshape(shape)
    return case_of(
        lambda latents, x: log_joint_of(vae, latents["z"], x).sum(),
        *(program("model"), program("guide")),
        [(x,)],
        modules=[vae],
    )


def one_x_for_all_groups():
    return groups((5, WIDTH))


class ConvEncoder(nn.Sequential):
    """A network that knows one batch dimension only."""

    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(24, 2 * LATENT)
        )


def groups_of_images():
    return groups(encoder=pv.nn.Batched(ConvEncoder(), event_dim=1))


def a_chain_over_time():
    vae, transition = vae_of(), nn.Linear(LATENT, LATENT)
    num_frames = 3

    def chain_of(draw):
        chain = []
        for t in range(num_frames):
            chain.append(draw(t, chain))
        return torch.stack([z if z.ndim == 2 else z.squeeze(-3) for z in chain], dim=-3)

    def step(chain):
        loc = transition(chain[-1]) if chain else torch.zeros(LATENT)
        return dist.Normal(loc, 0.5).to_event(1)

    def model(x):
        pyro.module("transition", transition)
        with pyro.plate("data", x.shape[1]):
            z = chain_of(lambda t, chain: pyro.sample(f"z_{t}", step(chain)))
            with pyro.plate("time", num_frames, dim=-2):
                vae.model(x, z=z)

    def guide(x):
        with pyro.plate("data", x.shape[1]):
            with pyro.plate("time", num_frames, dim=-2):
                seen = vae.encode(x).base_dist
            chain_of(lambda t, _: pyro.sample(f"z_{t}", dist.Normal(seen.loc[t], seen.scale[t]).to_event(1)))

    def log_joint(latents, x):
        chain = [latents[f"z_{t}"] for t in range(num_frames)]
        prior = sum(step(chain[:t]).log_prob(chain[t]).sum() for t in range(num_frames))
        return prior + sum(vae.likelihood(z).log_prob(frame).sum() for z, frame in zip(chain, x, strict=True))

    x = binary(12).reshape(3, 4, WIDTH)
    return case_of(log_joint, model, guide, [(x,)], modules=[vae, transition])


def labels():
    vae = vae_of(context=3)
    y = torch.eye(3, dtype=torch.get_default_dtype())[torch.arange(6) % 3]
    return case_of(
        lambda latents, x, y: log_joint_of(vae, latents["z"], x, y).sum(),
        *(vae.model, vae.guide),
        [(binary(6), y), (binary(4), y[:4])],
        modules=[vae],
    )


class ExposureOfCounts(nn.Module):
    """p(x|z, exposure): Poisson counts."""

    def __init__(self):
        super().__init__()
        self.network = pv.nn.MLP(LATENT, [7], WIDTH)

    def forward(self, z, exposure):
        return dist.Poisson(self.network(z).exp() * exposure[..., None]).to_event(1)


def exposure():
    torch.manual_seed(0)
    encoder = pv.nn.MLP(WIDTH + 1, [7], 2 * LATENT)
    parts = pv.priors.StandardNormal(LATENT), ExposureOfCounts(), pv.posteriors.DiagonalNormal(encoder)
    vae = pv.VAE(*parts, context_shapes=[()]).to(torch.get_default_dtype())
    times = torch.linspace(0.5, 2, 6, dtype=torch.get_default_dtype())
    return case_of(
        lambda latents, x, times: log_joint_of(vae, latents["z"], x, times).sum(),
        *(vae.model, vae.guide),
        [(data(6, WIDTH).abs().round(), times)],
        modules=[vae],
    )


def likelihood_switched_off():
    vae = vae_of()

    def model(x):
        with pyro.plate("data", len(x)):
            z = vae.model(likelihood=False)
            pyro.sample("blurred", dist.Normal(vae.decode(z).mean.mean(-1), 0.1), obs=x.mean(-1))

    def log_joint(latents, x):
        blurred = dist.Normal(vae.likelihood(latents["z"]).mean.mean(-1), 0.1)
        return (vae.prior().log_prob(latents["z"]) + blurred.log_prob(x.mean(-1))).sum()

    return case_of(log_joint, model, vae.guide, [(binary(6),)], modules=[vae])


def sites_of_the_outer_model():
    """The VAE gives distributions alone."""
    vae = vae_of()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.encode(x))

    return case_of(
        lambda latents, x: log_joint_of(vae, latents["z"], x).sum(), model, guide, [(binary(6),)], modules=[vae]
    )


def a_prior_of_the_outer_model():
    vae = vae_of()
    loc = nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.get_default_dtype()))

    def model(x):
        own = pyro.param("loc", loc)
        with pyro.plate("data", len(x)):
            vae.model(x, z=pyro.sample("z", dist.Normal(own, 0.7).to_event(1)))

    def log_joint(latents, x):
        prior = dist.Normal(loc, 0.7).to_event(1).log_prob(latents["z"])
        return (prior + vae.likelihood(latents["z"]).log_prob(x)).sum()

    return case_of(log_joint, model, vae.guide, [(binary(6),)], modules=[vae])


def a_part_of_the_data():
    vae = vae_of()

    def program(role):
        def run(x):
            with pyro.plate("data", 20, subsample=x):
                getattr(vae, role)(x)

        return run

    def log_joint(latents, x):
        return 20 / len(x) * log_joint_of(vae, latents["z"], x).sum()

    return case_of(log_joint, program("model"), program("guide"), [(binary(6),), (binary(4),)], modules=[vae])


class Weights(PyroModule):
    """p(W) of a last layer."""

    def __init__(self):
        super().__init__("head")
        zero = torch.zeros(3, LATENT, dtype=torch.get_default_dtype())
        self.weight = PyroSample(dist.Normal(zero, 1.0).to_event(2))

    def forward(self):
        return self.weight


def a_bayesian_last_layer():
    vae, head = vae_of(), Weights()

    def model(x, y):
        weight = head()
        with pyro.plate("data", 20, subsample=x):
            z = vae.model(x)
            pyro.sample("y", dist.Categorical(logits=(weight @ z[..., None])[..., 0]), obs=y)

    def guide(x, y):
        scale = pyro.param("scale", lambda: torch.full((3, LATENT), 0.5), constraint=dist.constraints.positive)
        pyro.sample("head.weight", dist.Normal(torch.zeros_like(scale), scale).to_event(2))
        with pyro.plate("data", 20, subsample=x):
            vae.guide(x)

    def log_joint(latents, x, y):
        z, weight = latents["z"], latents["head.weight"]
        label = dist.Categorical(logits=z @ weight.T).log_prob(y)
        return dist.Normal(0.0, 1.0).log_prob(weight).sum() + 4 * (log_joint_of(vae, z, x) + label).sum()

    return case_of(log_joint, model, guide, [(binary(5), torch.arange(5) % 3)], modules=[vae])


def inside_of_a_module_that_is_registered():
    vae, outer = vae_of(), nn.Module()
    outer.vae = vae

    def model(x):
        pyro.module("outer", outer)
        vae.model(x)

    return case_of(
        lambda latents, x: log_joint_of(vae, latents["z"], x).sum(), model, vae.guide, [(binary(6),)], modules=[vae]
    )


def one_call_for_each_group():
    vae = vae_of()

    def program(role):
        def run(x):
            for i in pyro.plate("groups", 3):
                with scope(prefix=f"group_{i}"), pyro.plate(f"data_{i}", x.shape[1]):
                    getattr(vae, role)(x[i])

        return run

    def log_joint(latents, x):
        return sum(log_joint_of(vae, latents[f"group_{i}/z"], x[i]).sum() for i in range(3))

    x = binary(12).reshape(3, 4, WIDTH)
    return case_of(log_joint, program("model"), program("guide"), [(x,)], modules=[vae])


def scaled_and_masked():
    vae, mask = vae_of(), torch.arange(6) < 4

    def program(role):
        def run(x):
            with poutine.scale(scale=0.3), poutine.mask(mask=mask):
                getattr(vae, role)(x)

        return run

    def log_joint(latents, x):
        return 0.3 * log_joint_of(vae, latents["z"], x)[mask].sum()

    return case_of(log_joint, program("model"), program("guide"), [(binary(6),)], modules=[vae])


def several_particles():
    case = a_chain_over_time()
    case.options = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2}
    return case


COMPOSITIONS = {
    "two in one plate": two_in_one_plate,
    "two with their own plates": two_with_their_own_plates,
    "one in two scopes": one_in_two_scopes,
    "groups": groups,
    "one x for all groups": one_x_for_all_groups,
    "groups of images": groups_of_images,
    "a chain over time": a_chain_over_time,
    "labels": labels,
    "exposure": exposure,
    "likelihood switched off": likelihood_switched_off,
    "sites of the outer model": sites_of_the_outer_model,
    "a prior of the outer model": a_prior_of_the_outer_model,
    "a part of the data": a_part_of_the_data,
    "a Bayesian last layer": a_bayesian_last_layer,
    "inside of a module that is registered": inside_of_a_module_that_is_registered,
    "one call for each group": one_call_for_each_group,
    "scaled and masked": scaled_and_masked,
    "several particles": several_particles,
}
