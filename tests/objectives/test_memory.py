"""What a step made is gone when it is over."""

import gc
import weakref

import pytest
import torch

import pyro_vae as pv
from pyro_vae.objectives import iwelbo


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_the_draws_of_a_step_are_freed(gradient, monkeypatch):
    """A hook that leads back to its draw is a cycle through autograd's graph, which not even the collector sees."""
    made = []
    copy = iwelbo._Draws._copy

    def recorded(draws, site):
        made.append(copy(draws, site))
        return made[-1]

    monkeypatch.setattr(iwelbo._Draws, "_copy", recorded)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2, [4], 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [4], 4)),
    )
    objective = pv.objectives.IWELBO(3, gradient=gradient)
    loss = objective.differentiable_loss(vae.model, vae.guide, (torch.rand(5, 6) < 0.5).float())
    loss.backward()
    references = [weakref.ref(draw) for draw in made]
    assert references
    del loss
    made.clear()
    gc.collect()
    assert all(reference() is None for reference in references)
