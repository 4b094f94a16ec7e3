"""A VAE in one file: it comes back as it was, and any other file is refused."""

import json
import struct

import pyro
import pytest
import safetensors.torch
import torch
from laws import LIKELIHOODS, POSTERIORS, PRIORS
from torch import nn
from truths import small_vae

import pyro_vae as pv


@pytest.fixture(autouse=True)
def _empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def convolutional():
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 1, 4, stride=4))
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(decoder),
        pv.posteriors.DiagonalNormal(pv.nn.Batched(encoder, event_dim=3)),
    )


def conditional():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2 + 3 + 1, [8], 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6 + 3 + 1, [8], 4)),
        name="conditional",
        context_shapes=[3, ()],
    )


def sharing():
    """Encoder and decoder begin with the same layer."""
    first = nn.Linear(4, 4)
    return pv.VAE(
        pv.priors.StandardNormal(4),
        pv.likelihoods.Bernoulli(nn.Sequential(first, nn.Tanh(), nn.Linear(4, 4))),
        pv.posteriors.DiagonalNormal(nn.Sequential(first, nn.Linear(4, 8))),
    )


VAES = {
    "small": small_vae,
    "named": lambda: small_vae(name="digits"),
    "float64": lambda: small_vae().double(),
    "bfloat16": lambda: small_vae().to(torch.bfloat16),
    "convolutional": convolutional,
    "conditional": conditional,
    "sharing": sharing,
}


@pytest.mark.parametrize("make", VAES.values(), ids=VAES)
def test_it_comes_back_as_it_was(make, tmp_path):
    vae = make()
    context = [torch.ones(3, *shape) for shape in vae.context_shapes]
    x = torch.ones(3, *vae.event_shape)
    vae.train()
    vae.encode(x, *context)  # moves running means
    vae.save(tmp_path / "vae.safetensors")
    again = pv.load(tmp_path / "vae.safetensors")
    vae.eval()
    assert not again.training and (again.name, again.context_shapes) == (vae.name, vae.context_shapes)
    tensors, others = vae.state_dict(), again.state_dict()
    assert tensors.keys() == others.keys() and str(vae) == str(again)
    assert all(
        others[name].dtype == value.dtype and torch.equal(others[name], value) for name, value in tensors.items()
    )
    assert [*dict(vae.named_parameters())] == [*dict(again.named_parameters())]  # what is shared stays shared
    assert torch.equal(vae.encode(x, *context).mean, again.encode(x, *context).mean)
    z = again.encode(x, *context).mean
    assert torch.equal(vae.decode(z, *context).mean, again.decode(z, *context).mean)
    assert again.prior().mean.dtype == vae.prior().mean.dtype


@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_all_parts(prior, likelihood, posterior, tmp_path):
    """A seed gives the same draws and the same log weights."""
    vae = pv.VAE(prior(), likelihood(lambda factor: pv.nn.MLP(2, [4], 3 * factor)), posterior()).eval()
    vae.save(tmp_path / "vae")
    found = []
    for each in (vae, pv.load(tmp_path / "vae")):
        pyro.clear_param_store()
        torch.manual_seed(0)
        x = each.sample(4)
        found.append(pv.evidence.log_weights(each.model, each.guide, x, num_samples=3))
    assert torch.equal(*found)


def test_a_vae_that_was_loaded_trains_on(tmp_path):
    small_vae().save(tmp_path / "vae")
    vae = pv.load(tmp_path / "vae")
    before = [value.detach().clone() for value in vae.parameters()]
    pv.fit(vae, torch.ones(6, 6), num_epochs=1, progress=False)
    assert not any(torch.equal(*pair) for pair in zip(before, vae.parameters(), strict=True))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    first, second = small_vae(), small_vae(hidden=(5,))
    first.save(tmp_path / "vae")
    second.save(str(tmp_path / "vae"))
    assert pv.load(tmp_path / "vae").likelihood.network.hidden_dims == (5,)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        first.save(tmp_path / "vae")
    assert pv.load(tmp_path / "vae").likelihood.network.hidden_dims == (5,)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


class Own(nn.Linear):
    """A class of a user's."""


def with_own():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(Own(2, 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [], 4)),
    )


def test_parts_of_other_classes_are_passed(tmp_path):
    vae = with_own()
    vae.save(tmp_path / "vae")
    with pytest.raises(
        ValueError, match=r"likelihood.network is a \S*Own, no class of pyro_vae's or torch.nn's; pass a VAE"
    ):
        pv.load(tmp_path / "vae")
    again = pv.load(tmp_path / "vae", with_own())
    assert all(torch.equal(*pair) for pair in zip(vae.parameters(), again.parameters(), strict=True))


def test_several_dtypes_are_no_description(tmp_path):
    vae = small_vae()
    vae.posterior.double()
    vae.save(tmp_path / "vae")
    with pytest.raises(ValueError, match="several dtypes, torch.float32 and torch.float64; pass a VAE"):
        pv.load(tmp_path / "vae")


def record_of(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["pyro_vae"])


def rewritten(path, change):
    """Write a file with another record or other tensors, and their digest."""
    from pyro_vae._files import as_safetensors
    from pyro_vae.vae.file import _digest

    record, tensors = record_of(path), safetensors.torch.load_file(path)
    change(record, tensors)
    text = json.dumps(record)
    path.write_bytes(as_safetensors(tensors, {"pyro_vae": text, "sha256": _digest(text, as_safetensors(tensors))}))


BIAS = "model.likelihood.network.layers.0.bias"


def newer(record, tensors):
    record["format"] = 2


def missing(record, tensors):
    del tensors[BIAS]


def added(record, tensors):
    tensors["model.more"] = torch.zeros(3)


def reshaped(record, tensors):
    tensors[BIAS] = torch.zeros(9)


def of_os(record, tensors):
    record["program"]["arguments"]["prior"]["class"] = "os.system"


def of_a_network(record, tensors):
    record["program"] = record["program"]["arguments"]["likelihood"]


def of_nothing(record, tensors):
    del record["program"]


REWRITTEN = {
    "newer": (newer, "expected format 1; got 2; read it with the version"),
    "missing": (missing, f"expected the parameters of this program; got no '{BIAS}'"),
    "added": (added, "got 'model.more', which the program has not"),
    "reshaped": (reshaped, rf"'{BIAS}' of shape \(9,\) for \(8,\)"),
    "another class": (of_os, "prior: expected a public class of .*; got 'os.system'"),
    "no VAE": (of_a_network, "expected the description of a VAE; got that of a Bernoulli"),
    "no description": (of_nothing, "expected a run of a VAE; got that of None"),
}


@pytest.mark.parametrize(("change", "message"), REWRITTEN.values(), ids=REWRITTEN)
def test_other_contents_are_refused(change, message, tmp_path):
    path = tmp_path / "vae"
    small_vae().save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=message):
        pv.load(path)


@pytest.mark.parametrize("change", [missing, added, reshaped])
def test_a_vae_that_is_passed_stays_as_it_is(change, tmp_path):
    path = tmp_path / "vae"
    small_vae(name="other").save(path)
    rewritten(path, change)
    vae = small_vae()
    with torch.no_grad():
        next(vae.parameters()).add_(1)
    before = [value.detach().clone() for value in vae.parameters()]
    with pytest.raises(ValueError, match="expected the parameters of this program"):
        pv.load(path, vae)
    assert all(torch.equal(*pair) for pair in zip(before, vae.parameters(), strict=True))


class Trap:
    """Runs code where a pickle is read."""

    def __reduce__(self):
        return exec, ("raise SystemError('code was run')",)


def pickled(path):
    torch.save({"state": Trap()}, path)


def pickled_as_of_old(path):
    torch.save({"state": Trap()}, path, _use_new_zipfile_serialization=False)


def plain(path):
    safetensors.torch.save_file(small_vae().state_dict(), path)


def of_another_tool(path):
    safetensors.torch.save_file(small_vae().state_dict(), path, {"format": "pt", "pyro_vae": "no JSON"})


def with_a_long_header(path):
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


DAMAGED = {
    "truncated": (lambda content: content[: len(content) // 2], "expected safetensors; got"),
    "without its last bytes": (lambda content: content[:-4], "expected safetensors; got"),
    "grown": (lambda content: content + b"\0" * 8, "expected safetensors; got"),
    "empty": (lambda content: b"", "expected safetensors; got"),
    "a flipped bit": (lambda content: content[:-10] + bytes([content[-10] ^ 1]) + content[-9:], "expected the sha256"),
    "another description": (lambda content: content.replace(b"torch.nn.Tanh", b"torch.nn.ReLU"), "expected the sha256"),
}
FOREIGN = {
    pickled: "expected safetensors; got",
    pickled_as_of_old: "expected safetensors; got",
    plain: "expected a file that vae.save wrote; got safetensors without a VAE; load them with vae.load_state_dict",
    of_another_tool: "expected a file that vae.save wrote",
    with_a_long_header: "expected safetensors; got .*header",
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(damage, message, tmp_path):
    path = tmp_path / "vae"
    small_vae().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"vae: {message}"):
        pv.load(path)


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_files_of_others_are_refused(make, tmp_path):
    make(tmp_path / "file")
    with pytest.raises(ValueError, match=f"file: {FOREIGN[make]}"):
        pv.load(tmp_path / "file")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="nothing: expected a file that can be read; got No such file"):
        pv.load(tmp_path / "nothing")
