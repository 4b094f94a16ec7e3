"""VAEs on the Hugging Face Hub: a stand-in for its network keeps commits in memory."""

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from truths import draws_of, small_vae

import pyro_vae as pv


class Hub:
    """What `huggingface_hub` offers, by its names, without a network."""

    def __init__(self, folder):
        self.folder, self.commits, self.asked = folder, {}, []

    def CommitOperationAdd(self, *, path_in_repo, path_or_fileobj):
        assert isinstance(path_or_fileobj, bytes)
        return path_in_repo, path_or_fileobj

    def HfApi(self):
        return self

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        assert exist_ok
        self.private = private
        self.commits.setdefault(repo_id, [])

    def create_commit(self, repo_id, operations, *, commit_message):
        self.commits[repo_id].append(dict(operations))
        return SimpleNamespace(oid=str(len(self.commits[repo_id]) - 1))

    def hf_hub_download(self, repo_id, filename, *, revision=None):
        self.asked.append(filename)
        path = self.folder / filename
        path.write_bytes(self.commits[repo_id][-1 if revision is None else int(revision)][filename])
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def test_it_comes_back_from_any_commit(hub):
    first, second = small_vae(), small_vae(hidden=(5,), name="second")
    revision = pv.hub.push(first, "user/digits", private=True)
    assert hub.private is True
    pv.hub.push(second, "user/digits")
    newest, before = pv.hub.load("user/digits"), pv.hub.load("user/digits", revision)
    for vae, again in ((first, before), (second, newest)):
        assert str(vae) == str(again) and vae.name == again.name and not again.training
        assert all(torch.equal(*pair) for pair in zip(vae.parameters(), again.parameters(), strict=True))
    assert hub.asked == ["vae.safetensors"] * 2
    assert [sorted(commit) for commit in hub.commits["user/digits"]] == [["README.md", "vae.safetensors"]] * 2


def test_the_card_says_how_good_it_is(hub):
    vae = small_vae()
    x = draws_of(vae, 5)
    evidence = pv.importance_sampling(vae.model, vae.guide, x, num_samples=200)
    pv.hub.push(vae, "user/digits", evidence)
    card = hub.commits["user/digits"][-1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: pyro_vae\n") and evidence.summary() in card
    assert 'pv.hub.load("user/digits")' in card and str(vae) in card
    pv.hub.push(vae, "user/digits")
    assert "Not measured." in hub.commits["user/digits"][-1]["README.md"].decode()


class Own(nn.Linear):
    """A class of a user's."""


def with_own():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(Own(2, 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [], 4)),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pv.hub.push(nn.Linear(2, 2), "a/b"), TypeError, "vae: expected a VAE; got Linear"),
        (
            lambda: pv.hub.push(small_vae(), "a/b", evidence=-87.3),
            TypeError,
            "evidence: expected Evidence, .*got -87.3",
        ),
        (
            lambda: pv.hub.push(with_own(), "a/b"),
            ValueError,
            r"likelihood.network is a \S*Own, no class of .*; push the file",
        ),
    ],
)
def test_nothing_is_sent_of_what_is_refused(hub, call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert hub.commits == {}


@pytest.mark.parametrize("content", [b"", b"\x80\x04text", b"PK\x03\x04text"], ids=["empty", "a pickle", "a zip"])
def test_other_files_are_refused(hub, content):
    hub.commits["user/other"] = [{"vae.safetensors": content}]
    with pytest.raises(ValueError, match="vae.safetensors: expected safetensors; got"):
        pv.hub.load("user/other")


def test_without_the_package(monkeypatch):
    found = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name == "huggingface_hub":
            raise ImportError("none")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    for call in (lambda: pv.hub.load("user/digits"), lambda: pv.hub.push(small_vae(), "user/digits")):
        with pytest.raises(
            ImportError, match=r"hub: expected the package huggingface_hub; got an error, none; pip install"
        ):
            call()


def test_the_stand_in_has_the_names_and_arguments_of_the_package():
    """Where it is installed, without a call of its network."""
    import inspect

    real = pytest.importorskip("huggingface_hub")
    for stand_in, function in (
        (Hub.create_repo, real.HfApi.create_repo),
        (Hub.create_commit, real.HfApi.create_commit),
        (Hub.hf_hub_download, real.hf_hub_download),
        (Hub.CommitOperationAdd, real.CommitOperationAdd),
    ):
        needed = inspect.signature(stand_in).parameters.keys() - {"self"}
        assert needed <= inspect.signature(function).parameters.keys()
    operation = real.CommitOperationAdd(path_in_repo="a", path_or_fileobj=b"b")
    assert operation.path_in_repo == "a" and "oid" in real.CommitInfo.__dataclass_fields__
