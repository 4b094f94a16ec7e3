"""`precision="bfloat16"`: networks in training alone."""

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from truths import draws_of, small_vae

import pyro_vae as pv
from pyro_vae.training import Callback
from pyro_vae.training.precision import in_bfloat16

UNIT = 2.0**-8
"""Between 1 and the next number of bfloat16: rounding errs by half of that."""


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(2, 3, 3), lambda: nn.ConvTranspose2d(2, 3, 3)]
)
def test_a_layer_errs_by_the_rounding_of_its_inputs_and_output(make):
    """Products of rounded inputs err by 2 halves of a unit of sum |w| |x|; output and bias add a half each."""
    layer = make()
    x = torch.randn(4, 6) if isinstance(layer, nn.Linear) else torch.randn(4, 2, 5, 5)
    found, exact = in_bfloat16(layer)(x), layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.abs_()
    size = layer(x.abs())
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 2 * UNIT * size).all()
    assert ((found - exact).abs() > 1e-3 * UNIT * size).any()  # and is not float32's


def losses_of(precision, vae=None, **options):
    """Losses at one set of parameters, nats a datum; the VAE; the history."""
    vae, losses = vae or small_vae(hidden=(32, 32)), []

    class Spy(Callback):
        def on_step(self, progress, loss):
            losses.append(float(loss))

    x = draws_of(small_vae(), 200)
    options = {"optim": pv.FusedAdam({"lr": 1e-12}), "num_epochs": 2, "progress": False} | options
    history = pv.fit(vae, x, batch_size=100, precision=precision, validation=x, callbacks=[Spy()], **options)
    return torch.tensor(losses) / 100, vae, history


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_losses_are_close_to_those_of_float32(compile, interpreted):
    """Three layers each way err by some units of numbers of size 1 to 4: by 0.1 nats over six pixels, at the very most.

    d loss / d logit is at most 1, so the six logits err by 6 x 3 layers x UNIT x 2 = 0.14 nats, if all errors add up.
    """
    plain, _, exact = losses_of("float32", compile=compile)
    found, vae, history = losses_of("bfloat16", compile=compile)
    assert (found - plain).abs().max() < 0.14 and not torch.equal(found, plain)
    assert all(parameter.dtype == torch.float32 for parameter in vae.parameters())
    assert history.execution.startswith("compiled") == compile and bool(interpreted) == compile
    assert history.validation_elbo == pytest.approx(exact.validation_elbo, rel=1e-6)  # evaluated in float32


def test_graphs_and_pyros_steps_agree(interpreted):
    plain, graphs = (losses_of("bfloat16", compile=compile)[0] for compile in (False, True))
    assert torch.allclose(plain, graphs, rtol=1e-4)


def test_densities_see_float32_alone():
    """At the densities and in their gradients."""
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(2, 6)

        def forward(self, z):
            logits = self.network(z)
            is_rounded = torch.equal(logits, logits.bfloat16().float())
            seen.append((z.dtype, logits.dtype, self.training, is_rounded))
            return dist.Bernoulli(logits=logits).to_event(1)

    vae = pv.VAE(pv.priors.StandardNormal(2), Spy(), pv.posteriors.DiagonalNormal(nn.Linear(6, 4)))
    losses_of("bfloat16", vae, objective=Trace_ELBO(), num_epochs=1, compile=False)
    assert all(z == logits == torch.float32 for z, logits, *_ in seen)
    fitted = [is_rounded for *_, is_training, is_rounded in seen if is_training][-2:]
    evaluated = [is_rounded for *_, is_training, is_rounded in seen if not is_training]
    assert fitted == [True, True] and evaluated and not any(evaluated)
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in vae.parameters())


def test_training_ends_near_that_of_float32():
    """After 40 steps of a real rate; the twin takes none."""
    ends = []
    for precision, rate in (("float32", 0.01), ("bfloat16", 0.01), ("float32", 1e-12)):
        _, _, history = losses_of(precision, optim=pv.FusedAdam({"lr": rate}), num_epochs=20, compile=False)
        ends.append(history.validation_elbo[-1])
    assert abs(ends[0] - ends[1]) < 0.14 < abs(ends[0] - ends[2])


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="precision: expected one of 'float32', 'bfloat16'; got 'float16'"):
        losses_of("float16")
