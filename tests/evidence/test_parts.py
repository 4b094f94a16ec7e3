"""Evaluations that go on where they were killed."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.evidence.ais import AIS
from pyro_vae.evidence.auto import Auto
from pyro_vae.evidence.importance import ImportanceSampling
from pyro_vae.evidence.parts import Parts, _packed, _unpacked

ESTIMATORS = {
    "importance": (ImportanceSampling, pv.importance_sampling, {"num_samples": 600, "num_posterior_draws": 2}),
    "ais": (AIS, pv.ais, {"num_temperatures": 4, "num_chains": 128}),
    "log_evidence": (Auto, pv.log_evidence, {"max_evaluations": 1200, "tolerance": 0.01}),
}


class Killed(Exception):
    pass


@pytest.fixture
def trained():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2, [8], 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [8], 4)),
    )
    return vae, torch.bernoulli(torch.full((200, 6), 0.4))


def killed_after(monkeypatch, estimator, number):
    """Raise at a block, as a kill would end it, and count the blocks that are measured."""
    measured = []
    measure = estimator.measure

    def counted(self, block, region, task):
        if len(measured) == number:
            raise Killed
        measured.append(block.place)
        return measure(self, block, region, task)

    monkeypatch.setattr(estimator, "measure", counted)
    return measured


def is_equal(one, other):
    tensors = [
        [each.log_evidence, each.std_error, each.khat, each.ess, each.num_evaluations, *each.draws.latents.values()]
        for each in (one, other)
    ]
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*tensors, strict=True))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_was_killed_goes_on_to_the_same_numbers(trained, tmp_path, monkeypatch, name):
    estimator, estimate, options = ESTIMATORS[name]
    vae, x = trained
    whole = estimate(vae.model, vae.guide, x, **options)
    with monkeypatch.context() as patch:
        before = killed_after(patch, estimator, 1)
        with pytest.raises(Killed):
            estimate(vae.model, vae.guide, x, partial=tmp_path, **options)
    with monkeypatch.context() as patch:
        after = killed_after(patch, estimator, None)
        gone_on = estimate(vae.model, vae.guide, x, partial=tmp_path, **options)
        assert after and not set(before) & set(after)
        num_measured = len(after)
        assert is_equal(estimate(vae.model, vae.guide, x, partial=tmp_path, **options), whole)
        assert len(after) == num_measured
    assert is_equal(gone_on, whole)


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: content[::-1], lambda content: b""])
def test_what_is_damaged_is_measured_again(trained, tmp_path, damage):
    _, estimate, options = ESTIMATORS["importance"]
    vae, x = trained
    whole = estimate(vae.model, vae.guide, x, partial=tmp_path, **options)
    path = sorted(tmp_path.glob("block-*"))[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"expected '{path.name}' as it was written"):
        again = estimate(vae.model, vae.guide, x, partial=tmp_path, **options)
    assert is_equal(again, whole)


def test_the_folder_of_another_evaluation_is_refused(trained, tmp_path):
    vae, x = trained
    options = {"num_samples": 50, "partial": tmp_path}
    pv.importance_sampling(vae.model, vae.guide, x, **options)
    with pytest.raises(ValueError, match="partial: expected the folder of this evaluation.*another seed"):
        pv.importance_sampling(vae.model, vae.guide, x, seed=1, **options)
    with pytest.raises(ValueError, match="another settings"):
        pv.importance_sampling(vae.model, vae.guide, x, **{**options, "num_samples": 60})
    with pytest.raises(ValueError, match="another data"):
        pv.importance_sampling(vae.model, vae.guide, torch.cat([x[:-1], 1 - x[-1:]]), **options)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0].add_(1e-6)
    with pytest.raises(ValueError, match="another parameters"):
        pv.importance_sampling(vae.model, vae.guide, x, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    with pytest.raises(ValueError, match="which has other files"):
        pv.importance_sampling(vae.model, vae.guide, x, num_samples=50, partial=tmp_path / "full")


def test_another_program_is_known_by_what_it_says_of_the_same_draws(tmp_path):
    def pair(scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

        return model, guide

    x = torch.randn(20)
    pv.importance_sampling(*pair(1.0), x, num_samples=50, partial=tmp_path)
    with pytest.raises(ValueError, match="another model, guide or parameters"):
        pv.importance_sampling(*pair(1.001), x, num_samples=50, partial=tmp_path)


def test_draws_of_no_weight(tmp_path):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(-torch.ones(len(x)), 1.0))

    x = torch.randn(20)
    with_parts = pv.importance_sampling(model, guide, x, num_samples=200, partial=tmp_path)
    assert torch.equal(with_parts.log_evidence, pv.importance_sampling(model, guide, x, num_samples=200).log_evidence)


def test_a_plan_leaves_the_folder_alone(trained, tmp_path):
    vae, x = trained
    pv.log_evidence(vae.model, vae.guide, x, max_evaluations=400, plan=True, partial=tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_a_file_makes_nothing_but_parts():
    """Neither classes from elsewhere nor functions, whatever a file asks for."""
    for module, name in [("os", "system"), ("pyro_vae.__main__", "main"), ("pyro_vae._files", "replace_file")]:
        with pytest.raises(ValueError, match="an object of"):
            _unpacked({"$object": [module, name, {"$pairs": []}]}, {})


@dataclasses.dataclass
class Foreign:
    number: int = 1


def test_what_parts_hold_comes_back_as_it_was():
    tensors = {}
    value = {1: [None, True, 2, float("nan"), "text", (slice(1, 3), torch.arange(3))], "two": float("-inf")}
    back = _unpacked(_packed(value, tensors), tensors)
    assert repr(back) == repr(value)
    with pytest.raises(TypeError, match="got a Foreign"):
        _packed(Foreign(), {})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="partial: expected a folder that can be written to"):
        Parts(tmp_path / "file" / "parts", {}, torch.zeros(1))
