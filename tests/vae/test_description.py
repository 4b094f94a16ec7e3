"""Modules as JSON: a description makes the same module again, or says why there is none."""

import copy
import json
import pickle

import pytest
import torch
from laws import LATENT_DIM, LIKELIHOODS, NUM_PIXELS, POSTERIORS, PRIORS, built
from torch import nn

import pyro_vae as pv
from pyro_vae.vae.description import Undescribable, build, describe

DECODERS = {
    "no hidden layer": lambda out: pv.nn.MLP(LATENT_DIM, [], out),
    "leaky": lambda out: pv.nn.MLP(LATENT_DIM, [4, 5], out, activation=lambda: nn.LeakyReLU(0.3)),
    "learned": lambda out: pv.nn.MLP(LATENT_DIM, (4,), (out,), activation=nn.PReLU, output_bias=torch.ones(out)),
}

NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 8),
        nn.LayerNorm(8),
        nn.Dropout(0.1),
        nn.Unflatten(-1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 1, kernel_size=(4, 3), output_padding=1, stride=2),
        nn.GroupNorm(1, 1),
        nn.Upsample(scale_factor=2),
        nn.ELU(alpha=0.5),
    ),
    "batched": lambda: pv.nn.Batched(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), event_dim=3),
    "named children": lambda: nn.Sequential(
        nn.Sequential(nn.Flatten()).extend([nn.Linear(64, 3)]), nn.Hardtanh(-0.5, 0.7), nn.Softplus(2)
    ),
    "an MLP of images": lambda: pv.nn.MLP((1, 8, 8), [5], (2, 3), nn.ReLU, input_mean=0.5),
    "a residual MLP": lambda: pv.nn.MLP((1, 8, 8), [5, 5], 3, nn.PReLU, residual=True, normalize=True),
    "encoder and decoder": lambda: nn.Sequential(
        pv.nn.ConvEncoder((1, 8, 8), [4, 6], 3, [5], nn.ELU, gated=True, normalize=True),
        pv.nn.ConvDecoder(3, [6, 4], (1, 8, 8), [5], nn.PReLU, num_residual_blocks=1, output_bias=0.3),
    ),
    "with the mask beside": lambda: pv.nn.WithMask(nn.Flatten(), torch.full((1, 8, 8), 0.5), event_dim=3),
    "standardized": lambda: pv.nn.Standardized(nn.Flatten(), torch.full((1, 8, 8), 0.5), 0.3),
}

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def again(module):
    """Make it again from JSON, with its tensors."""
    made = build(json.loads(json.dumps(describe(module))))
    made.load_state_dict(module.state_dict())
    return made.train(module.training)


def assert_same_distribution(part, *args):
    """Also of the part that is made again."""
    value = part(*args).sample()
    assert torch.equal(part(*args).log_prob(value), again(part)(*args).log_prob(value))


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_priors(make):
    assert_same_distribution(built(make))


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_likelihoods(make, decoder):
    likelihood = built(lambda: make(lambda factor: decoder(factor * NUM_PIXELS)))
    assert_same_distribution(likelihood, torch.randn(7, LATENT_DIM))


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
def test_posteriors(make):
    assert_same_distribution(built(make), torch.randn(7, NUM_PIXELS))


def test_other_options_of_parts():
    """Each with the arguments of its constructor that are not those by default."""
    network = pv.nn.MLP(LATENT_DIM, [], 2 * NUM_PIXELS)
    for part in (
        pv.likelihoods.Gaussian(network, "per-pixel", min_scale=0.3),
        pv.posteriors.DiagonalNormal(network, max_log_scale=0.2),
    ):
        assert_same_distribution(part, torch.randn(7, LATENT_DIM))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks(make):
    network = built(make).eval()
    network(IMAGES)
    other = again(network)
    assert str(other) == str(network) and torch.equal(other(IMAGES), network(IMAGES))


def test_every_public_class_of_networks_keeps_its_arguments():
    """One that is added comes into `NETWORKS` or `DECODERS`."""
    makers = [*NETWORKS.values(), lambda: DECODERS["leaky"](3)]
    tested = {type(module) for make in makers for module in make().modules()}
    public = {getattr(pv.nn, name) for name in pv.nn.__all__}
    assert {kind for kind in public if isinstance(kind, type)} <= tested


def test_modules_that_are_shared_stay_shared():
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.Tanh(), nn.Sequential(shared, nn.ReLU()), shared)
    description = describe(network)
    assert description["arguments"]["2"]["arguments"]["0"] == {"shared": "0"}
    other = again(network)
    assert other[0] is other[2][0] is other[3] and len(list(other.parameters())) == 2


def test_making_draws_no_numbers_and_needs_no_device():
    network = NETWORKS["convolutions"]()
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert again(network.cpu())[0].weight.device.type == "cpu"
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_can_still_be_pickled_and_copied():
    network = DECODERS["leaky"](3)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert describe(other) == describe(network)


class Shifted(nn.Module):
    """Takes a tensor that it keeps, and any number of networks."""

    def __init__(self, *networks, shift, bias=False):
        super().__init__()
        self.networks, self.shift, self.bias = nn.ModuleList(networks), nn.Parameter(shift), bias

    def forward(self, x):
        return sum(network(x) for network in self.networks) + self.shift


def test_tensors_that_are_kept_and_starred_arguments(monkeypatch):
    monkeypatch.setattr(pv.nn, "Shifted", Shifted, raising=False)
    monkeypatch.setattr(pv.nn, "__all__", [*pv.nn.__all__, "Shifted"])
    network = Shifted(nn.Linear(3, 2), nn.Linear(3, 2), shift=torch.tensor([1.0, 2.0]))
    assert describe(network)["arguments"]["shift"] == {"tensor": [2]}
    x = torch.randn(4, 3)
    assert torch.equal(network(x), again(network)(x))
    del network.shift
    network.register_buffer("shift", torch.ones(2), persistent=False)
    with pytest.raises(Undescribable, match="shift is a Tensor, neither JSON nor a module"):
        describe(network)


class Own(nn.Linear):
    """A class of a user's."""


def with_a_hook():
    network = nn.Sequential(nn.Linear(3, 3))
    network[0].register_forward_hook(lambda module, args, out: 2 * out)
    return network


def with_a_forward_of_its_own():
    network = nn.Linear(3, 3)
    network.forward = lambda x: 2 * x
    return network


def with_tied_weights():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    return network


def with_another_layer():
    network = pv.nn.MLP(3, [4], 3)
    network.layers[2] = nn.Sequential(nn.Dropout(), network.layers[2])
    return network


def with_another_width():
    network = nn.Sequential(pv.nn.Batched(nn.Linear(3, 3), 1))
    network[0].network.out_features = 4
    return network


def with_layers_that_differ():
    activations = iter([nn.ReLU(), nn.Tanh()])
    return pv.nn.MLP(3, [4, 4], 3, activation=lambda: next(activations))


UNDESCRIBABLE = {
    "a class of one's own": (
        lambda: nn.Sequential(nn.ReLU(), Own(3, 3)),
        r"1 is a \S*Own, no class of pyro_vae's or torch",
    ),
    "inside a part": (
        lambda: pv.posteriors.DiagonalNormal(pv.nn.Batched(Own(3, 2), 1)),
        r"network.network is a \S*Own",
    ),
    "an activation": (lambda: pv.nn.MLP(3, [4], 3, lambda: Own(4, 4)), r"activation makes .* a \S*Own, no class"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "ParametrizedLinear, no class"),
    "a hook": (with_a_hook, "0 has a hook, or a forward of its own"),
    "a forward of its own": (with_a_forward_of_its_own, "the module has a hook, or a forward of its own"),
    "tied weights": (with_tied_weights, "the module differs from .*shares tensors with another"),
    "another layer": (with_another_layer, "layers.2 differs from what"),
    "another width": (with_another_width, "0.network differs from what its constructor makes"),
    "layers that differ": (with_layers_that_differ, "layers.* differs from"),
    "arguments that are not kept": (lambda: nn.TransformerEncoderLayer(4, 2), "does not keep 'd_model'"),
    "a recurrent network": (lambda: nn.GRU(3, 3), "its description does not make it again"),
}


@pytest.mark.parametrize(("make", "message"), UNDESCRIBABLE.values(), ids=UNDESCRIBABLE)
def test_what_has_no_description(make, message):
    with pytest.raises(Undescribable, match=message):
        describe(make())


LINEAR = {"in_features": 2, "out_features": 3}

WRONG = {
    "another package": ({"class": "os.system", "arguments": {"command": "true"}}, "expected a public class of .*; got 'os.system'"),
    "a function": ({"class": "pyro_vae.fit", "arguments": {}}, "expected a public class of"),
    "a private class": ({"class": "torch.nn.modules.linear.Linear", "arguments": LINEAR}, "expected a public class of"),
    "no class": ({"class": "torch.nn.functional", "arguments": {}}, "expected a public class of"),
    "a base": ({"class": "pyro_vae.likelihoods.Likelihood", "arguments": {}}, "expected a public class of"),
    "a dunder": ({"class": "torch.nn.__class__", "arguments": {}}, "expected a public class of"),
    "a device": ({"class": "torch.nn.Linear", "arguments": {**LINEAR, "device": "meta"}}, "expected no .*device.*; got torch.nn.Linear with one"),
    "a tensor of no shape": ({"class": "torch.nn.Sequential", "arguments": {"0": {"tensor": [-1]}}}, "0: expected a description of a module"),
    "no groups": ({"class": "torch.nn.GroupNorm", "arguments": {"num_groups": 0, "num_channels": 4}}, "expected arguments of torch.nn.GroupNorm"),
    "more keys": ({"class": "torch.nn.ReLU", "arguments": {}, "state": {}}, "expected a description of a module"),
    "nothing": (None, "expected a module; got None"),
    "a list": ([{"class": "torch.nn.ReLU", "arguments": {}}], "expected a module; got"),
    "a maker": ({"makes": {"class": "torch.nn.ReLU", "arguments": {}}}, "expected a module; got"),
    "an argument too many": ({"class": "torch.nn.Linear", "arguments": {**LINEAR, "x": 1}}, "expected arguments of torch.nn.Linear; got an error"),
    "an argument of another kind": ({"class": "torch.nn.Linear", "arguments": {**LINEAR, "in_features": "2"}}, "expected arguments of torch.nn.Linear"),
    "too large": ({"class": "torch.nn.Linear", "arguments": {"in_features": 10**13, "out_features": 10**13}}, "expected arguments of torch.nn.Linear"),
    "an unknown module": ({"class": "torch.nn.Sequential", "arguments": {"0": {"shared": "1"}}}, "0: expected a description of a module"),
    "a child that is none": ({"class": "torch.nn.Sequential", "arguments": {"0": 3}}, "expected arguments of torch.nn.Sequential; got an error, expected modules"),
    "a child with a dot": ({"class": "torch.nn.Sequential", "arguments": {"a.b": {"class": "torch.nn.ReLU", "arguments": {}}}}, "expected arguments of torch.nn.Sequential"),
}  # fmt: skip


@pytest.mark.parametrize(("description", "message"), WRONG.values(), ids=WRONG)
def test_descriptions_that_are_none(description, message):
    with pytest.raises(ValueError, match=message):
        build(description)


def test_too_many_levels():
    description = {"class": "torch.nn.ReLU", "arguments": {}}
    for _ in range(5000):
        description = {"class": "torch.nn.Sequential", "arguments": {"0": description}}
    with pytest.raises(ValueError, match="too many levels"):
        build(description)
