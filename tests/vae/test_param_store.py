"""Parameters from a saved store of Pyro's."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from truths import small_vae

import pyro_vae as pv


@pytest.fixture(autouse=True)
def _empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def trained(**options):
    """A VAE after a step, beside a constrained parameter of a bigger program."""
    vae = small_vae(**options)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(torch.ones(3, 6))
    pyro.param("rate", torch.ones(2, 2), constraint=dist.constraints.independent(dist.constraints.positive, 2))
    return vae


def as_file(tmp_path):
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    return tmp_path / "store"


def as_state(tmp_path):
    state = pyro.get_param_store().get_state()
    pyro.clear_param_store()
    return state


def are_equal(one, other):
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("saved", [as_file, as_state])
@pytest.mark.parametrize("names", [(None, None), ("a", "a")], ids=["unnamed", "named"])
def test_trained_parameters_are_taken_over_and_train_on(saved, names, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    one, vae = trained(name=names[0]), small_vae(name=names[1])
    assert not are_equal(one, vae)
    vae.load_param_store(saved(tmp_path))
    assert are_equal(one, vae) and set(torch.serialization.get_safe_globals()) == before
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(torch.ones(3, 6))
    assert not any(torch.equal(*pair) for pair in zip(one.parameters(), vae.parameters(), strict=True))


def test_of_another_name(tmp_path):
    one, vae = trained(name="other"), small_vae(name="mine")
    path = as_file(tmp_path)
    with pytest.raises(ValueError, match=r"no 'mine.guide\$\$\$.*pass the name that they lie under"):
        vae.load_param_store(path)
    vae.load_param_store(path, name="other")
    assert are_equal(one, vae)


def test_beside_the_loaded_store_no_warning_is_left(tmp_path, recwarn):
    """The store's parameters are not this VAE's, but their values are."""
    one, vae = trained(), small_vae()
    pyro.get_param_store().load(as_file(tmp_path))
    vae.load_param_store(pyro.get_param_store().get_state())
    vae.model(torch.ones(3, 6))
    assert are_equal(one, vae) and not len(recwarn)


def test_the_second_of_a_process():
    first, second = trained(), trained()
    SVI(second.model, second.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(torch.ones(3, 6))
    vae = small_vae()
    vae.load_param_store(pyro.get_param_store().get_state(), name="vae_1")
    assert are_equal(second, vae) and not are_equal(first, vae)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ((9,), r"of shape \(9,\) for \(8,\)"),
        ((), r"of shape \(4,\) for \(8,\)"),
        ((8, 8), "which this VAE has not"),
    ],
)
def test_other_parts_change_nothing(hidden, message, tmp_path):
    trained(hidden=hidden)
    path, vae = as_file(tmp_path), small_vae()
    with pytest.raises(ValueError, match=f"saved: expected the parameters of this VAE; got .*{message}"):
        vae.load_param_store(path)
    assert are_equal(vae, small_vae())


def test_buffers_are_not_in_it(tmp_path):
    def with_norm():
        torch.manual_seed(0)
        return pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Bernoulli(nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))),
            pv.posteriors.DiagonalNormal(nn.Linear(6, 4)),
        )

    vae = with_norm()
    vae.model(torch.ones(3, 6))
    vae.guide(torch.ones(3, 6))
    with pytest.warns(UserWarning, match="saved: .*got no buffers, such as 'likelihood.network.1.running_mean'"):
        with_norm().load_param_store(as_file(tmp_path))


class Trap:
    """Runs code where a pickle is read."""

    def __reduce__(self):
        return exec, ("raise SystemError('code was run')",)


WRONG = {
    "code": (
        lambda path: torch.save({"params": {}, "constraints": {"a": Trap()}}, path),
        "store.pt: expected a file of .* alone; got",
    ),
    "a state_dict": (
        lambda path: torch.save(small_vae().state_dict(), path),
        "saved: expected a saved parameter store",
    ),
    "text": (lambda path: path.write_text("text"), "store.pt: expected a file of"),
    "nothing": (lambda path: path.write_bytes(b""), "store.pt: expected a file of"),
}


@pytest.mark.parametrize(("write", "message"), WRONG.values(), ids=WRONG)
def test_other_files(write, message, tmp_path):
    write(tmp_path / "store.pt")
    with pytest.raises(ValueError, match=message):
        small_vae().load_param_store(tmp_path / "store.pt")


def test_no_path():
    with pytest.raises(TypeError, match="saved: expected a path, or get_state"):
        small_vae().load_param_store(3)
