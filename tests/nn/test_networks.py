"""Networks: any leading dimensions, any size; each form against the same formula written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import pyro_vae as pv
from pyro_vae.nn import MLP, Batched, ConvDecoder, ConvEncoder, Standardized, WithMask

pytestmark = pytest.mark.usefixtures("float64")

SIZES = [(1, 28, 28), (1, 28, 20), (3, 48, 36), (3, 64, 64), (2, 7, 5), (4, 4, 9)]
FORMS = {
    "plain": {},
    "residual": {"num_residual_blocks": 2},
    "gated": {"gated": True},
    "normalized": {"normalize": True},
    "all": {"num_residual_blocks": 1, "gated": True, "normalize": True, "hidden_dims": [5], "activation": nn.Tanh},
}
NETWORKS = {
    "MLP": (lambda: MLP((2, 3), [5, 5], 4), (2, 3)),
    "MLP, residual": (lambda: MLP(6, [5, 5, 5], (2, 2), residual=True), (6,)),
    "MLP, normalized": (lambda: MLP(6, [5, 4], 3, normalize=True), (6,)),
    "MLP, both": (lambda: MLP(6, [5, 5], 3, nn.SiLU, residual=True, normalize=True), (6,)),
    "Standardized": (lambda: Standardized(MLP(6, [5], 3), torch.arange(6.0), 2.0), (6,)),
    "WithMask": (lambda: WithMask(MLP(12, [5], 3)), (6,)),
    "Batched": (lambda: Batched(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(15, 4)), 2), (2, 6)),
    **{
        f"ConvEncoder, {name}": (lambda form=form: ConvEncoder((2, 9, 6), [3, 4], 5, **form), (2, 9, 6))
        for name, form in FORMS.items()
    },
    **{
        f"ConvDecoder, {name}": (lambda form=form: ConvDecoder(6, [4, 3], (2, 9, 6), **form), (6,))
        for name, form in FORMS.items()
    },
}
every_network = pytest.mark.parametrize(("make", "event"), NETWORKS.values(), ids=NETWORKS)


@every_network
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_leading_dimensions(make, event, batch):
    network, x = make(), torch.randn(*batch, *event)
    flat = network(x.reshape(-1, *event))
    assert torch.allclose(network(x), flat.reshape(*batch, *flat.shape[1:]))


@every_network
def test_rows_are_apart(make, event):
    assert is_apart(make(), torch.randn(4, *event))


def test_rows_are_not_apart_with_batch_normalization():
    """The twin: in training mode; in evaluation mode they are."""
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    assert not is_apart(network, torch.randn(4, 6))
    assert is_apart(network.eval(), torch.randn(4, 6))


def is_apart(network, x):
    return torch.allclose(network(x)[:2], network(x[:2]))


@every_network
def test_gradients_reach_all_parameters(make, event):
    network = make()
    network(torch.randn(3, *event)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_any_size_of_images(shape, form):
    encoder, decoder = ConvEncoder(shape, [2, 3], 4, **form), ConvDecoder(4, [3, 2], shape, **form)
    assert decoder(encoder(torch.randn(2, *shape))).shape == (2, *shape)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_pixel_is_seen_and_drawn(shape):
    """An encoder's output depends on each pixel, and each pixel on z."""
    x = torch.randn(1, *shape, requires_grad=True)
    ConvEncoder(shape, [2, 3], 4)(x).square().sum().backward()
    assert (x.grad != 0).all()
    decoder = ConvDecoder(4, [3, 2], shape)
    assert (decoder(torch.randn(4)) != decoder(torch.randn(4))).all()


def parts(network):
    """Weights and biases in the order in which they are used."""
    return list(network.parameters())


def test_residual_and_normalized_perceptron_by_hand():
    network = MLP(6, [5, 5], 3, nn.SiLU, residual=True, normalize=True, output_bias=0.5)
    w0, b0, g0, s0, w1, b1, g1, s1, w2, b2 = parts(network)
    x = torch.randn(4, 6)

    def normalized(h, gain, shift):
        centred = h - h.mean(-1, keepdim=True)
        return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + shift

    h = functional.silu(normalized(x @ w0.T + b0, g0, s0))
    h = h + functional.silu(normalized(h @ w1.T + b1, g1, s1))
    assert torch.allclose(network(x), h @ w2.T + b2)
    assert (b2 == 0.5).all()


def test_gated_and_residual_encoder_by_hand():
    network = ConvEncoder((2, 9, 6), [3], 4, activation=nn.Tanh, num_residual_blocks=1, gated=True)
    w0, b0, w1, b1, w2, b2, w3, b3 = parts(network)
    x = torch.randn(5, 2, 9, 6)
    h = functional.conv2d(x, w0, b0, stride=2, padding=1)
    h = torch.tanh(h[:, :3]) * torch.sigmoid(h[:, 3:])
    inner = functional.conv2d(h, w1, b1, padding=1)
    inner = torch.tanh(inner[:, :3]) * torch.sigmoid(inner[:, 3:])
    h = h + functional.conv2d(inner, w2, b2, padding=1)
    assert h.shape == (5, 3, 4, 3)
    assert torch.allclose(network(x), h.flatten(1) @ w3.T + b3)


def test_gated_residual_and_normalized_decoder_by_hand():
    network = ConvDecoder(
        4, [3, 2], (2, 9, 6), activation=nn.Identity, num_residual_blocks=1, gated=True, normalize=True
    )
    w, b, wa, ba, ga, sa, wb, bb, w1, b1, g1, s1, wc, bc, gc, sc, wd, bd, w2, b2 = parts(network)

    def gated(h, gain, shift):
        value, gate = (
            functional.layer_norm(h, h.shape[1:]).mul(gain[:, None, None]).add(shift[:, None, None]).chunk(2, 1)
        )
        return value * torch.sigmoid(gate)

    def block(h, wa, ba, gain, shift, wb, bb):
        return h + functional.conv2d(gated(functional.conv2d(h, wa, ba, padding=1), gain, shift), wb, bb, padding=1)

    z = torch.randn(5, 4)
    h = (z @ w.T + b).reshape(5, 3, 2, 1)
    h = block(h, wa, ba, ga, sa, wb, bb)
    h = gated(functional.conv_transpose2d(h, w1, b1, stride=2, padding=1, output_padding=(0, 1)), g1, s1)
    h = block(h, wc, bc, gc, sc, wd, bd)
    assert torch.allclose(
        network(z), functional.conv_transpose2d(h, w2, b2, stride=2, padding=1, output_padding=(1, 0))
    )


def test_context_is_laid_beside():
    encoder, decoder = ConvEncoder((1, 8, 8), [2], 4, context_dim=3), ConvDecoder(2 + 3, [2], (1, 8, 8))
    x, z, label, number = torch.randn(6, 1, 8, 8), torch.randn(6, 2), torch.randn(6, 2), torch.randn(6)
    assert not torch.allclose(encoder(x, label, number), encoder(x, label, number + 1))
    assert torch.equal(decoder(z, label, number), decoder(torch.cat([z, label, number[:, None]], -1)))


def test_the_first_images_lie_around_the_bias():
    decoder = ConvDecoder(2, [4], (2, 8, 8), output_bias=torch.tensor([10.0, -20.0]))
    assert torch.allclose(decoder(torch.zeros(2)).mean((-2, -1)), torch.tensor([10.0, -20.0]))


def test_standardized_numbers():
    x = torch.randn(5, 3, 4)
    network = Standardized(nn.Flatten(), x.mean((0, 2))[:, None], x.std((0, 2))[:, None])
    seen = network(x).reshape(5, 3, 4)
    assert torch.allclose(seen.mean((0, 2)), torch.zeros(3)) and torch.allclose(seen.std((0, 2)), torch.ones(3))
    assert repr(Standardized(nn.Flatten(), 127.5, 127.5)).startswith(
        "Standardized(\n  shift of shape (), scale of shape ()"
    )


def conv_vae(shape=(3, 9, 6), **form):
    num_levels, num_components = 16, 2
    encoder = ConvEncoder(shape, [4, 6], 2 * 3, **form)
    decoder = ConvDecoder(3, [6, 4], (3 * num_components * shape[0], *shape[1:]), **form)
    return pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.DiscretizedLogisticMixture(decoder, num_components, num_levels),
        pv.posteriors.DiagonalNormal(Standardized(encoder, 7.5, 7.5)),
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_saved_and_loaded(form, tmp_path):
    vae = conv_vae(**form)
    vae.save(tmp_path / "vae.safetensors")
    again = pv.load(tmp_path / "vae.safetensors")
    assert str(again) == str(vae)
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True))
    x = torch.randint(0, 16, (2, 3, 9, 6))
    assert torch.equal(vae.encode(x).mean, again.encode(x).mean)


def test_bytes_are_trained_on_and_have_evidence():
    vae = conv_vae()
    x = torch.randint(0, 16, (40, 3, 9, 6), dtype=torch.uint8)
    history = pv.fit(vae, x, num_epochs=2, batch_size=10, progress=False)
    assert history.train_elbo[-1] > history.train_elbo[0]
    evidence = pv.importance_sampling(vae.model, vae.guide, x[:3], num_samples=30)
    alone = pv.importance_sampling(vae.model, vae.guide, x[:1], num_samples=30)
    assert torch.allclose(evidence.log_evidence[:1], alone.log_evidence)
    assert (evidence.bits_per_dim() > 0).all() and evidence.settings["amortized"]


BAD = {
    "too many stages": (lambda: ConvEncoder((1, 28, 20), [2] * 5, 4), r"channels: expected at most 4 stages for in_shape \(1, 28, 20\)"),
    "too many stages back": (lambda: ConvDecoder(2, [2] * 3, (1, 7, 5)), r"channels: expected at most 2 stages for out_shape"),
    "no stage": (lambda: ConvEncoder((1, 28, 28), [], 4), "channels: expected one number a stage; got none"),
    "no channel": (lambda: ConvEncoder((1, 28, 28), [0], 4), "channels: expected at least 1; got 0"),
    "flat images": (lambda: ConvEncoder((28, 28), [2], 4), r"in_shape: expected \(channels, height, width\); got \(28, 28\)"),
    "a width": (lambda: ConvDecoder(2, [2], 784), r"out_shape: expected \(channels, height, width\); got 784"),
    "nothing from z": (lambda: ConvDecoder(0, [2], (1, 4, 4)), "in_dim: expected at least 1; got 0"),
    "blocks": (lambda: ConvEncoder((1, 4, 4), [2], 4, num_residual_blocks=-1), "num_residual_blocks: expected at least 0"),
    "context": (lambda: ConvEncoder((1, 4, 4), [2], 4, context_dim=-1), "context_dim: expected at least 0"),
    "another bias": (lambda: ConvDecoder(2, [2], (3, 4, 4), output_bias=torch.zeros(2)), "output_bias: expected 1 or 3 numbers; got 2"),
    "another image": (lambda: ConvEncoder((1, 8, 8), [2], 4)(torch.zeros(2, 1, 8, 9)), r"x: expected images \(..., 1, 8, 8\); got \(2, 1, 8, 9\)"),
    "widths": (lambda: MLP(2, [3, 4], 1, residual=True), r"hidden_dims: expected one width for all residual layers; got \(3, 4\)"),
    "scale": (lambda: Standardized(nn.Flatten(), 0.0, torch.tensor([1.0, 0.0])), "scale: expected positive numbers; got 0"),
    "shift": (lambda: Standardized(nn.Flatten(), torch.tensor([torch.nan])), "shift: expected finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
