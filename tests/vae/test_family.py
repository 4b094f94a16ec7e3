"""Any prior, likelihood, posterior and objective go together: trained for a step, and evaluated beside quadrature."""

import itertools

import pyro
import pytest
import torch
from laws import LATENT_DIM, LIKELIHOODS, NUM_PIXELS, OBJECTIVES, POSTERIORS, PRIORS, built
from truths import draws_of, grid, log_joint_on_grid

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64", "interpreted")


def covering(*families):
    """Yield choices in which every two members of different families meet, the largest two families in full."""
    largest, second, *others = sorted(families, key=len, reverse=True)
    left = set(itertools.product(*others))
    for (i, one), (j, other) in itertools.product(enumerate(largest), enumerate(second)):
        chosen = {id(largest): one, id(second): other}
        for step, family in zip((1, -1), others, strict=True):  # so that for each i, j runs through the family
            chosen[id(family)] = list(family)[(i + step * j) % len(family)]
        left.discard(tuple(chosen[id(family)] for family in others))
        yield tuple(chosen[id(family)] for family in families)
    for pair in sorted(left):  # i + j and i - j are both even or both odd
        chosen = {
            id(largest): next(iter(largest)),
            id(second): next(iter(second)),
            **dict(zip(map(id, others), pair, strict=True)),
        }
        yield tuple(chosen[id(family)] for family in families)


CHOICES = list(covering(PRIORS, LIKELIHOODS, POSTERIORS, OBJECTIVES))


@pytest.mark.parametrize(
    "families", [(PRIORS, LIKELIHOODS, POSTERIORS, OBJECTIVES), ("abcdef", "ABCDEFGHIJ", "01", "+-*/")]
)
def test_every_two_meet(families):
    choices = list(covering(*families))
    for one, other in itertools.combinations(range(len(families)), 2):
        met = {(choice[one], choice[other]) for choice in choices}
        assert met == set(itertools.product(families[one], families[other]))


@pytest.mark.one_in(23)
@pytest.mark.parametrize("choice", CHOICES, ids=" | ".join)
def test_a_step_and_log_evidence(choice):
    """Reliable data are within 4.5 errors and 0.02 nats of quadrature; the twin is 1.5 nats away."""
    prior, likelihood, posterior, objective = choice
    vae = pv.VAE(
        built(PRIORS[prior]),
        built(lambda: LIKELIHOODS[likelihood](lambda factor: pv.nn.MLP(LATENT_DIM, [4], factor * NUM_PIXELS))),
        built(POSTERIORS[posterior]),
    )
    x = draws_of(vae, 12)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    loss = OBJECTIVES[objective](num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    assert torch.tensor(svi.step(x)).isfinite()
    assert all(value.isfinite().all() for value in vae.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())

    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=1000, proposal="defensive")
    z, log_cell = grid(LATENT_DIM, num=121)
    exact = log_joint_on_grid(vae, x, z).logsumexp(0) + log_cell
    error = (evidence.log_evidence - exact)[evidence.reliable].abs()
    margin = 4.5 * evidence.std_error[evidence.reliable] + 0.02
    assert (error < margin).all() and len(error) and not (error + 1.5 < margin).any()
