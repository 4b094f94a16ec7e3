"""A compiled run gives the numbers of the plain one, or says why there is none."""

from collections import OrderedDict
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from truths import LIKELIHOODS, draws_of, needs_compiler, small_vae

import pyro_vae as pv
from pyro_vae.compile import graph as graphs
from pyro_vae.compile.capture import can_be_captured
from pyro_vae.compile.graph import compiled, recorded
from pyro_vae.compile.rewrites import (
    bernoulli_log_prob_sum,
    exp_of_negative,
    linear,
    rewrite,
    sigmoid,
    tanh,
    with_channels_last,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Can't initialize NVML")


@pytest.mark.parametrize("likelihood", ["Bernoulli", pytest.param("Gaussian, learned scale", marks=pytest.mark.slow)])
def test_same_numbers(likelihood):
    assert likelihood in LIKELIHOODS
    vae = small_vae(likelihood)
    x = draws_of(vae, 6)
    options = {"num_samples": 3000, "seed": 1}
    plain, graph = (pv.importance_sampling(vae.model, vae.guide, x, compile=c, **options) for c in (False, True))
    assert torch.allclose(plain.log_evidence, graph.log_evidence, atol=1e-4)
    assert torch.allclose(plain.elbo, graph.elbo, atol=1e-4)
    with torch.no_grad():
        vae.likelihood.network.layers[-1].bias.add_(1.0)
    changed, graph = (pv.importance_sampling(vae.model, vae.guide, x, compile=c, **options) for c in (False, True))
    assert torch.allclose(changed.log_evidence, graph.log_evidence, atol=1e-4)  # and no stale parameter
    assert not torch.allclose(changed.log_evidence, plain.log_evidence, atol=1e-2)


@pytest.mark.parametrize("shape", [(16,), (100,), (784,), (28, 28), (3, 64, 64), (1, 13, 6)])
def test_the_sum_over_bernoulli_pixels(shape):
    torch.manual_seed(0)
    logits, x = 10 * torch.randn(5, 3, *shape), torch.bernoulli(torch.full((3, *shape), 0.3))
    exact = dist.Bernoulli(logits=logits.double()).to_event(len(shape)).log_prob(x.double())
    assert torch.allclose(bernoulli_log_prob_sum(logits, x, len(shape)).double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (3, 16, 16), (1, 67)])
def test_where_that_sum_takes_its_place(shape):
    def log_prob(logits, x):
        return (dist.Bernoulli(logits=logits, validate_args=False).to_event(len(shape)).log_prob(x),)

    logits, x = torch.randn(2, *shape), torch.ones(2, *shape)
    module = recorded(log_prob, logits, x).module
    rewrite(module)
    targets = {node.target for node in module.graph.nodes}
    assert (bernoulli_log_prob_sum in targets) == (shape != (1, 67))
    assert torch.allclose(module(logits, x)[0], log_prob(logits, x)[0], rtol=1e-5)


def test_the_gradient_of_bernoulli_pixels():
    def run(logits, x):
        value = dist.Bernoulli(logits=logits, validate_args=False).to_event(1).log_prob(x).sum()
        return (value.detach(), *torch.autograd.grad(value, logits))

    torch.manual_seed(0)
    logits, x = 10 * torch.randn(20, 784, requires_grad=True), torch.bernoulli(torch.full((20, 784), 0.3))
    module = recorded(run, logits, x).module
    rewrite(module)
    assert sigmoid in {node.target for node in module.graph.nodes}
    assert torch.allclose(module(logits, x)[1], run(logits, x)[1], atol=1e-6)


def test_a_difference_of_sigmoids_keeps_its_relative_precision():
    """As of the two edges of a bin, whose logarithm is then taken."""

    def run(logits, x, lower):
        at_logits = torch.sigmoid(logits)
        of_pixels = dist.Bernoulli(logits=logits, validate_args=False).to_event(1).log_prob(x)
        return of_pixels, (at_logits - torch.sigmoid(lower)).log(), at_logits - x

    logits, x = torch.full((2, 784), -30.0), torch.zeros(2, 784)
    module = recorded(run, logits, x, logits - 1).module
    rewrite(module)
    targets = {node.target for node in module.graph.nodes}
    assert bernoulli_log_prob_sum in targets and sigmoid not in targets
    assert torch.allclose(module(logits, x, logits - 1)[1], torch.tensor(-30.4587), atol=1e-3)


def test_e_to_a_negative_number():
    x = torch.linspace(0, 200, 100_001)
    assert (exp_of_negative(x).double() - (-x.double()).exp()).abs().max() < 6e-7
    assert exp_of_negative(torch.tensor(0.0)) == 1
    assert torch.equal(1 + exp_of_negative(torch.tensor([18.0, 200.0, torch.inf])), torch.ones(3))
    assert exp_of_negative(torch.tensor(torch.nan)).isnan()
    assert torch.equal(exp_of_negative(x.double()), (-x.double()).exp())


def test_a_sigmoid():
    x = torch.linspace(-100, 100, 100_001)
    assert (sigmoid(x).double() - x.double().sigmoid()).abs().max() < 6e-7
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert torch.allclose(sigmoid(ends), torch.tensor([1.0, 0.0, torch.nan]), atol=1e-7, equal_nan=True)


class InPlace(torch.nn.Module):
    """Writes to an image through a view of it."""

    def forward(self, image):
        image = 1.0 * image
        image.view(len(image), -1).clamp_(min=0)
        return image


class Dropout(torch.nn.Module):
    """Draws a mask in the order of memory."""

    def forward(self, image):
        return image * torch.bernoulli(torch.full_like(image, 0.5))


MIDDLES = [torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.RReLU(), InPlace(), Dropout()]


@pytest.mark.parametrize("middle", MIDDLES, ids=lambda middle: type(middle).__name__)
def test_convolutions_are_laid_out_for_the_cpu(middle):
    """The same numbers, and what is returned laid out as ever: torch's fused optimizers take that for granted."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 4, 3), middle, torch.nn.ConvTranspose2d(4, 2, 3, groups=2), torch.nn.Flatten()),
        *(torch.nn.Linear(2 * 64, 5), torch.nn.Unflatten(1, (5, 1, 1)), torch.nn.Conv2d(5, 2, 1)),
    )

    def run(x):
        value = net(x).square().sum()
        return (value.detach(), *torch.autograd.grad(value, [*net.parameters()]))

    x = torch.randn(6, 3, 8, 8)
    graph = recorded(run, x)
    inputs = [*graph.tensors, x]
    module = with_channels_last(graph.module, inputs)
    assert (module is graph.module) == isinstance(middle, torch.nn.RReLU | InPlace | Dropout)
    if module is not graph.module:
        images = [node.meta["val"] for node in module.graph.nodes if node.target is torch.ops.aten.convolution.default]
        wide = [image for image in images if min(image.shape[1:]) > 1]
        assert wide and all(image.is_contiguous(memory_format=torch.channels_last) for image in wide)
    before, after = (each.graph.output_node().args[0] for each in (graph.module, module))
    assert [node.meta["val"].stride() for node in after] == [node.meta["val"].stride() for node in before]
    torch.manual_seed(1)
    found = module(*inputs)
    torch.manual_seed(1)
    expected = run(x)
    largest = max(gradient.abs().max().item() for gradient in expected[1:])  # some are nothing but rounding
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * largest)


@needs_compiler
def test_a_graph_that_is_wrong_is_not_used(monkeypatch):
    x = torch.randn(5)
    monkeypatch.setattr("pyro_vae.compile.rewrites.tanh", lambda x: 1.01 * x)
    with pytest.warns(UserWarning, match="expected a model that can be compiled; got .*results that differ"):
        fn = compiled(lambda x: (x.sum(), x.tanh()), x)
    assert torch.equal(fn(x)[1], x.tanh())


def test_tanh():
    x = torch.linspace(-100, 100, 100_001)
    assert (tanh(x) - torch.tanh(x)).abs().max() < 5e-7
    small = torch.logspace(-20, 0, 2001)
    assert ((tanh(small) - torch.tanh(small)) / torch.tanh(small)).abs().max() < 2e-6
    assert tanh(x).abs().max() == 1
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert torch.equal(tanh(ends).nan_to_num(2), torch.tensor([1.0, -1.0, 2.0]))


def test_a_layer_adds_its_bias_in_the_loop_that_comes_next():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(30, 40), torch.randn(50, 30)
    graph = recorded(lambda x: (layer(x).exp(),), x)
    rewrite(graph.module)
    assert linear in {node.target for node in graph.module.graph.nodes}
    assert torch.allclose(graph.module(*graph.tensors, x)[0], layer(x).exp(), rtol=1e-5)


def test_a_model_that_looks_at_values_runs_as_it_is():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z if z.abs().max() < 1e6 else 2 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x = torch.randn(4)
    plain = pv.importance_sampling(model, guide, x, num_samples=1024)
    with pytest.warns(UserWarning, match="compile: expected a model that can be compiled; got .*; it runs as it is"):
        graph = pv.importance_sampling(model, guide, x, num_samples=1024, compile=True)
    assert torch.equal(plain.log_evidence, graph.log_evidence)


def test_data_outside_their_support_are_refused_all_the_same():
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", vae.likelihood(z), obs=x)

    with pytest.raises(ValueError, match="support"):
        pv.importance_sampling(model, vae.guide, torch.full((3, 6), 0.5), num_samples=10, compile=True)


def test_compiling_draws_no_number():
    torch.manual_seed(0)
    run = compiled(lambda x: (x + torch.normal(torch.zeros(3), torch.ones(3)),), torch.zeros(3))
    (found,) = run(torch.zeros(3))
    torch.manual_seed(0)
    assert torch.equal(found, torch.normal(torch.zeros(3), torch.ones(3)))


@needs_compiler
def test_graphs_that_do_the_same_share_their_code(monkeypatch):
    monkeypatch.setattr(graphs, "_code", OrderedDict())

    def scaled(factor):
        return lambda x: (x * factor,)

    one, other = torch.tensor(2.0), torch.tensor(3.0)
    runs = [recorded(scaled(factor), torch.ones(4)).compiled(torch.ones(4)) for factor in (one, other)]
    assert len(graphs._code) == 1 and [run(torch.ones(4))[0][0].item() for run in runs] == [2.0, 3.0]
    recorded(scaled(one.double()), torch.ones(4)).compiled(torch.ones(4))
    recorded(lambda x: (x * one + 1,), torch.ones(4)).compiled(torch.ones(4))
    assert len(graphs._code) == 3


@needs_compiler
def test_a_number_in_a_tensor_is_no_constant():
    count, x = torch.tensor(1.0), torch.zeros(2)

    def counting(x):
        count.add_(1)
        return (x + count,)

    graph = recorded(counting, x)
    assert count == 1  # recording changes nothing
    run = graph.compiled(x)
    assert run(x)[0][0] == 2 and run(x)[0][0] == 3 and count == 3
    for look in (lambda x: (x * count.item(),), lambda x: (x * float(count),), lambda x: (x if count > 0 else -x,)):
        with pytest.raises(ValueError, match="a look at a number in a tensor"):
            recorded(look, x)


def test_a_minus_sign_that_is_only_noted_is_another_kind():
    y = torch.randn(4, dtype=torch.complex64)
    assert graphs.kind_of(y.imag) != graphs.kind_of(y.conj().imag)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (lambda x, count: (x * 2,), None),
        (lambda x, count: (x * 2.01,), "results that differ"),
        (lambda x, count: (x * 2 + 0 * torch.rand(4),), "random numbers that differ"),
        (lambda x, count: (count.add_(1), (x * 2,))[1], "results that differ"),
    ],
    ids=["nothing", "a result", "a random number", "a change of a tensor"],
)
@needs_compiler
def test_a_graph_is_checked_against_its_function(planted, found):
    count, x = torch.zeros(()), torch.ones(4)
    graph = recorded(lambda x: (x * 2 + 0 * count,), x)
    run = graph.compiled(x)
    with pytest.raises(ValueError, match=found) if found else nullcontext():
        graph.check(lambda: run(x), lambda: planted(x, count))
    assert count == 0  # what the check does is undone


def test_a_compiler_that_fails_on_its_fusions_is_asked_for_fewer_and_says_so(monkeypatch):
    """The second attempt is what runs; the warning has the reason."""
    asked = []

    def compile_module(module, inputs, options):
        asked.append(options.get("max_fusion_size"))
        if asked[-1] is None:
            raise RuntimeError("a loop too many")
        return module

    monkeypatch.setattr("pyro_vae.compile.graph.compile_module", compile_module)
    x = torch.randn(7, 3)
    with pytest.warns(UserWarning, match="its own settings; got RuntimeError: a loop too many; it fuses at most four"):
        run = recorded(lambda x: (x.sin().sum() + 1234.0,), x).compiled(x)
    assert asked == [None, 4] and torch.equal(run(x)[0], x.sin().sum() + 1234.0)


@pytest.mark.parametrize(
    "fn, tensors, expected",
    [
        (lambda x: (x.exp() @ x,), (), True),
        (lambda x: (x.exp() @ x,), (torch.ones(0),), True),
        (lambda x: (x.exp() @ x,), (torch.ones(1),), False),
        (lambda x: (torch.linalg.cholesky(x @ x.mT + torch.eye(3)),), (), False),
    ],
    ids=["all on the GPU", "an empty tensor of the CPU", "a number of the CPU", "a factor that may fail"],
)
def test_what_can_be_launched_at_once(fn, tensors, expected):
    module = recorded(fn, torch.rand(3, 3)).module
    assert can_be_captured(module, tensors, torch.device("cuda", 0)) is expected
    assert not can_be_captured(module, tensors, torch.device("cpu"))
