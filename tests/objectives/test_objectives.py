"""Laws of objectives, and objectives that are added."""

import math

import pyro
import pytest
import torch
from laws import OBJECTIVES
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from truths import GaussianPosterior, LinearGaussian, small_vae

import pyro_vae as pv

pytestmark = [pytest.mark.usefixtures("float64", "interpreted")]


class ImportanceWeighted(pv.objectives.Objective):
    """The bound of Burda, Grosse and Salakhutdinov (2016)."""

    def value_and_surrogate(self, model, guide, *args, **kwargs):
        weights = self.log_weights(model, guide, args, kwargs)
        bound = weights.value.logsumexp(0) - math.log(len(weights.value))
        loss = -(weights.scale * bound).sum()
        return loss, loss


class TwiceTheGradient(pv.objectives.CompiledTrace_ELBO):
    """Another surrogate than its value."""

    def value_and_surrogate(self, model, guide, *args, **kwargs):
        value, surrogate = super().value_and_surrogate(model, guide, *args, **kwargs)
        return value, 2 * surrogate


class Halved(Trace_ELBO):
    """A subclass of Pyro's."""

    def _differentiable_loss_particle(self, model_trace, guide_trace):
        return tuple(each / 2 for each in super()._differentiable_loss_particle(model_trace, guide_trace))


def exact_vae():
    truth = LinearGaussian(latent_dim=2, data_dim=4)
    vae = truth.vae(GaussianPosterior(truth))
    for parameter in vae.parameters():
        parameter.requires_grad_(True)
    return vae, truth.draw(6), truth


@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_the_posterior_each_is_minus_log_evidence_on_average(name):
    """Without an analytic term every draw gives log p(x) exactly; with one, the mean of 200 draws does."""
    vae, x, truth = exact_vae()
    objective = OBJECTIVES[name](num_particles=200, vectorize_particles=True)
    losses = [objective.loss(vae.model, vae.guide, x) for _ in range(4)]
    assert sum(losses) / 4 == pytest.approx(-truth.log_evidence(x).sum().item(), abs=0.5)
    assert sum(losses) / 4 != pytest.approx(-truth.log_evidence(x).sum().item() + 2, abs=0.5)  # the twin


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_surrogate_goes_where_the_value_goes(name):
    """Steps along its gradient lower the value: over 60 steps by more than the noise of 200 particles."""
    vae = small_vae("Gaussian, learned scale")
    x = vae.sample(20).detach() + 1
    objective = OBJECTIVES[name](num_particles=200, vectorize_particles=True)
    before = objective.loss(vae.model, vae.guide, x)
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), OBJECTIVES[name]())
    for _ in range(60):
        svi.step(x)
    assert objective.loss(vae.model, vae.guide, x) < before - 20


@pytest.mark.parametrize("name", OBJECTIVES)
def test_num_data_multiplies_the_loss(name):
    vae, x, _ = exact_vae()
    losses = []
    for num_data in (6, 60):
        torch.manual_seed(0)
        losses.append(OBJECTIVES[name](num_particles=50).loss(vae.model, vae.guide, x, num_data=num_data))
    assert losses[1] == pytest.approx(10 * losses[0], rel=0.2)


@pytest.mark.parametrize("vectorize", [False, True])
def test_importance_weighting_by_hand(vectorize):
    """The graph, the call as it is, and the mean of weights that `log_weights` gives."""
    vae, x, _ = exact_vae()
    vae.posterior.inflation = 1.5
    objective = ImportanceWeighted(num_particles=5, vectorize_particles=vectorize)
    objective.loss(vae.model, vae.guide, x)  # a first look at the plates draws numbers
    values = []
    for _ in range(3):  # as it is, recorded, a graph
        torch.manual_seed(0)
        values.append(objective.loss(vae.model, vae.guide, x))
    torch.manual_seed(0)
    weights = objective.log_weights(vae.model, vae.guide, (x,)).value
    assert weights.shape == (5, 6)
    by_hand = -(weights.logsumexp(0) - math.log(5)).sum().item()
    assert values == pytest.approx([by_hand] * 3)
    assert by_hand < -weights.mean(0).sum().item()  # tighter than the ELBO of the same draws


def test_scales_multiply_the_bound_of_a_datum():
    vae, x, _ = exact_vae()
    objective = ImportanceWeighted(num_particles=3)
    losses = []
    for num_data in (6, 60):
        torch.manual_seed(0)
        losses.append(objective.loss(vae.model, vae.guide, x, num_data=num_data))
    assert losses[1] == pytest.approx(10 * losses[0], rel=0.3)
    weights = objective.log_weights(vae.model, vae.guide, (x,), {"num_data": 60})
    assert weights.scale == 10


def test_the_surrogate_is_what_is_differentiated():
    grads = {}
    for objective in (pv.objectives.CompiledTrace_ELBO(), TwiceTheGradient()):
        pyro.clear_param_store()
        vae = small_vae("Gaussian, learned scale")
        x = vae.sample(5).detach()
        found = []
        for _ in range(3):
            torch.manual_seed(0)
            vae.zero_grad()
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            loss.backward()
            found.append((loss.item(), [p.grad.clone() for p in vae.parameters()]))
        grads[type(objective).__name__] = found
    plain, twice = grads.values()
    for (value, gradient), (other_value, other) in zip(plain[1:], twice[1:], strict=True):  # by the graph
        assert value == pytest.approx(other_value)
        assert all(torch.allclose(2 * one, another) for one, another in zip(gradient, other, strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("objective", "compile", "how"),
    [
        (ImportanceWeighted(num_particles=3), True, "compiled: ImportanceWeighted, 17 calls by 1 graphs"),
        (ImportanceWeighted(num_particles=3), "auto", "as it is: 18 steps do not repay compiling"),
        (TwiceTheGradient(), "auto", "compiled: TwiceTheGradient"),
        (
            Halved(),
            "auto",
            "as it is: Halved is neither Trace_ELBO nor TraceMeanField_ELBO, nor a pv.objectives.Objective",
        ),
        (RenyiELBO(alpha=0.5, num_particles=3), "auto", "as it is: RenyiELBO is neither"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_trains_in_fit_and_says_how(objective, compile, how):
    vae = small_vae("Gaussian, learned scale")
    x = vae.sample(60).detach() + 1
    history = pv.fit(vae, x, objective=objective, compile=compile, num_epochs=6, batch_size=20, progress=False)
    assert history.train_elbo[-1] > history.train_elbo[0] and history.execution.startswith(how)


def test_svi_of_pyro_and_ours_take_the_same_steps():
    """Ours by one graph, Pyro's by gradients and the optimizer's own step."""
    runs = []
    for kind in (pv.SVI, pyro.infer.SVI):
        pyro.clear_param_store()
        vae = small_vae("Gaussian, learned scale")
        x = vae.sample(8).detach()
        svi = kind(vae.model, vae.guide, pv.FusedAdam({"lr": 0.01}), pv.objectives.CompiledTrace_ELBO())
        torch.manual_seed(1)
        runs.append(([svi.step(x) for _ in range(5)], [p.detach().clone() for p in vae.parameters()]))
    (losses, params), (other_losses, other_params) = runs
    assert losses == pytest.approx(other_losses)
    assert all(torch.allclose(one, other) for one, other in zip(params, other_params, strict=True))


def test_latents_without_a_gradient_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", pyro.distributions.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", pyro.distributions.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", pyro.distributions.Bernoulli(torch.tensor(0.4)))

    with pytest.raises(ValueError, match="guide: expected reparametrized latents.*got site 'k', a Bernoulli"):
        ImportanceWeighted().loss(model, guide, torch.zeros(3))


def test_plates_of_other_names_are_not_shared():
    """z_n belongs to x of another row: there is no bound for each datum, but one for all of them."""
    x = torch.tensor([1.0, 2.0, 3.0])

    def model(x):
        with pyro.plate("parts", 3):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", pyro.distributions.Normal(z.flip(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("parts", 3):
            pyro.sample("z", pyro.distributions.Normal(x.flip(-1), 1.2))

    objective = ImportanceWeighted(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    exact = pyro.distributions.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    assert -objective.loss(model, guide, x) == pytest.approx(exact, abs=0.1)
    assert objective.log_weights(model, guide, (x,)).value.shape == (20_000,)


def test_deterministic_sites_have_no_weight():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)
        pyro.deterministic("mean", z.mean(-1))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(x / 2, 0.8))

    assert ImportanceWeighted(num_particles=2).log_weights(model, guide, (torch.zeros(4),)).value.shape == (2, 4)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5), torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 1.0])], ids=str)
def test_a_scale_around_model_and_guide(scale):
    vae, x, _ = exact_vae()
    model, guide = pyro.poutine.scale(vae.model, scale), pyro.poutine.scale(vae.guide, scale)
    weights = ImportanceWeighted(num_particles=3).log_weights(model, guide, (x,))
    assert torch.equal(torch.as_tensor(weights.scale), torch.as_tensor(scale))
    with pytest.raises(ValueError, match="model, guide: expected one scale of all sites"):
        ImportanceWeighted(num_particles=3).log_weights(model, vae.guide, (x,))


def test_what_is_no_pair_of_losses_is_refused():
    class OneLoss(pv.objectives.Objective):
        def value_and_surrogate(self, model, guide, *args, **kwargs):
            return -self.log_weights(model, guide, args, kwargs).value.sum()

    class PerDatum(pv.objectives.Objective):
        def value_and_surrogate(self, model, guide, *args, **kwargs):
            loss = -self.log_weights(model, guide, args, kwargs).value.mean(0)
            return loss, loss

    vae, x, _ = exact_vae()
    for objective, found in ((OneLoss(), "got Tensor"), (PerDatum(), r"got \[\(6,\), \(6,\)\]")):
        with pytest.raises(TypeError, match=f"value_and_surrogate: expected two tensors of one number each.*{found}"):
            objective.loss_and_grads(vae.model, vae.guide, x)


def test_what_is_not_compiled_is_not_called_compiled():
    class Branching(pv.likelihoods.Gaussian):
        def forward(self, z, *context):
            return super().forward(z * (1 if z.mean() < 1e9 else 2), *context)

    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        Branching(pv.nn.MLP(2, [], 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [], 4)),
    )
    x = torch.randn(20, 6)
    with pytest.warns(UserWarning, match="expected a program that can be compiled"):
        history = pv.fit(vae, x, num_epochs=3, batch_size=5, compile=True, progress=False)
    assert history.execution.startswith("as it is: ") and "a number in a tensor" in history.execution


def test_compile_false_compiles_nothing(interpreted):
    vae = small_vae("Gaussian, learned scale")
    objective = ImportanceWeighted(num_particles=2)
    history = pv.fit(vae, vae.sample(20).detach(), objective=objective, compile=False, num_epochs=3, progress=False)
    assert history.execution == "as it is: compile=False" and not interpreted
    assert objective.compile


@pytest.mark.parametrize("kind", [ImportanceWeighted, pv.objectives.CompiledTrace_ELBO])
def test_without_parameters_of_the_store_nothing_is_differentiated(kind):
    """Eagerly as by the graph, and as by Pyro: a tensor that asks for a gradient of its own is left alone."""
    loc = torch.zeros((), requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(loc, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    def guide(x, scale=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(x / 2, 0.8 if scale is None else scale))

    def trained(x):
        guide(x, pyro.param("scale", torch.tensor(0.8)))

    objective = kind()
    for _ in range(4):
        objective.loss_and_grads(model, guide, torch.zeros(3))
        assert loc.grad is None
    for calls in range(1, 4):
        objective.loss_and_grads(model, trained, torch.zeros(3))
        assert loc.grad.abs() > 0, calls


def test_reweighted_wake_sleep_trains_a_vae():
    """Pyro's, whose guide minimizes KL(p(z|x) || q(z|x)): from a poor guide it makes the bound tight."""
    truth = LinearGaussian(latent_dim=1, data_dim=3)
    torch.manual_seed(0)
    vae, x = truth.vae(pv.posteriors.DiagonalNormal(pv.nn.MLP(3, [], 2))), truth.draw(50)
    vae.likelihood.requires_grad_(False)
    objective = ReweightedWakeSleep(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), objective)
    gaps = []
    for num_steps in (0, 150):
        for _ in range(num_steps):
            svi.step(x)
        gaps.append(
            (truth.log_evidence(x) - pv.importance_sampling(vae.model, vae.guide, x, num_samples=200).elbo).mean()
        )
    assert gaps[1] < 0.1 * gaps[0]
    with pytest.raises(TypeError, match="objective: expected an ELBO with one loss; got ReweightedWakeSleep"):
        pv.fit(vae, x, objective=objective, num_epochs=1, progress=False)
