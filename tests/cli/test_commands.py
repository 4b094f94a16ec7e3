"""Each command does its work, in process, on small files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_files import CHEAP, SMALL, command, table, write_arrays, write_photos, write_table

import pyro_vae as pv
from pyro_vae.cli import train as train_module
from pyro_vae.cli.folder import OpenRun

SOURCES = {
    "a folder of 48x36 RGB images": (write_photos, "photos", "gaussian-learned", [3, 48, 36]),
    "an .npz file of grey images": (write_arrays, "images.npz", "bernoulli", [1, 6, 5]),
    "a table": (write_table, "table.csv", "gaussian-learned", [3]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_train_resume_evaluate(source, tmp_path, run):
    write, name, likelihood, shape = SOURCES[source]
    paths = tmp_path / "run", write(tmp_path / name)
    first = run(f"train @0 --data @1 {SMALL} --json", *paths)
    assert first["settings"]["likelihood"] == likelihood
    assert first["data"]["shape"] == shape
    assert (first["num_epochs"], first["data"]["test"]["num_data"]) == (2, 6)
    more = run(f"train @0 --data @1 {SMALL} --num-epochs 3 --resume --json", *paths)
    assert more["num_epochs"] == 3 and more["data"] == first["data"]
    found = run(f"evaluate @0 {CHEAP} --json", *paths)
    evidence = pv.Evidence.load(paths[0] / "evidence.npz")
    assert found["log_evidence"] == pytest.approx(evidence.mean)
    assert found["num_data"] == 3 and found["data"]["sha256"] != first["data"]["test"]["sha256"]  # the first of them
    assert json.loads((paths[0] / "evaluation.json").read_text())["data_sha256"] == found["data_sha256"]


def test_log_evidence_by_the_command_that_a_user_types(trained, tmp_path, run):
    paths = [shutil.copytree(trained, tmp_path / "run")]
    found = run("evaluate @0 --tolerance 0.2 --num-test 2 --json", *paths)
    assert found["settings"]["tolerance"] == 0.2 and found["reliable_share"] <= 1
    vae = pv.load(paths[0])
    scaling = json.loads((paths[0] / "columns.json").read_text())
    whole = pv.data.load(trained.parent / "table.csv", split="test", missing="drop")
    x = (whole.x[:2] - torch.tensor(scaling["shift"])) / torch.tensor(scaling["scale"])
    same = pv.log_evidence(vae.model, vae.guide, x, tolerance=0.2)
    assert found["log_evidence"] == pytest.approx(same.mean, abs=1e-4)
    in_own_unit = same.mean - sum(map(np.log, scaling["scale"]))
    assert found["log_evidence_in_the_unit_of_the_file"] == pytest.approx(in_own_unit, abs=1e-4)


CHOICES = {
    "counts": ("poisson", "--prior mixture --num-components 3 --posterior full-rank"),
    "larger counts": ("negative-binomial", "--prior vamp --num-components 4 --objective iwelbo --num-particles 2"),
    "shares": ("beta", "--objective beta --beta 0 --free-bits 0.1"),
    "grey levels": ("continuous-bernoulli", "--prior flow --posterior flow"),
    "positive numbers": ("log-normal", "--objective trace"),
    "outliers": ("student-t", "--no-standardize"),
    "many zeros": ("laplace", "--conditional"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", CHOICES)
def test_parts_by_their_names(kind, tmp_path, run):
    """Trained, resumed as if never stopped, rebuilt from the run alone, evaluated and drawn from."""
    likelihood, options = CHOICES[kind]
    generator = np.random.default_rng(0)
    x = generator.poisson(3.0, (40, 4)) if "counts" in kind else generator.uniform(0.1, 0.9, (40, 4))
    np.savez(tmp_path / "data.npz", x=x.astype("float32"), labels=np.arange(40) % 3)
    typed = f"--data @1 {SMALL} --likelihood {likelihood} {options} --json"
    paths = tmp_path / "run", tmp_path / "data.npz"
    trained = run(f"train @0 {typed}", *paths)
    assert trained["settings"]["likelihood"] == likelihood
    at_once = run(f"train @0 {typed} --num-epochs 3", tmp_path / "at once", paths[1])
    resumed = run(f"train @0 {typed} --num-epochs 3 --resume", *paths)
    assert resumed["train_elbo"] == at_once["train_elbo"] != trained["train_elbo"]
    assert np.isfinite(run(f"evaluate @0 {CHEAP} --json", *paths)["log_evidence"])
    run(f"sample @0 --num-samples 5 --output {tmp_path / 'draws.npz'}", *paths)
    assert np.load(tmp_path / "draws.npz")["x"].shape == (5, 4)


@pytest.mark.parametrize("options", ["", "--conditional --posterior flow --likelihood continuous-bernoulli"])
def test_convolutions_of_images(options, tmp_path, run):
    """Of 6 x 5 pixels, which are halved twice; the run is rebuilt by itself."""
    paths = tmp_path / "run", write_arrays(tmp_path / "images.npz")
    run(f"train @0 --data @1 {SMALL} --network convolutional {options} --json", *paths)
    vae = pv.load(paths[0])
    assert isinstance(vae.likelihood.network, pv.nn.ConvDecoder) and vae.event_shape == (1, 6, 5)
    assert np.isfinite(run(f"evaluate @0 {CHEAP} --json", *paths)["log_evidence"])


ESTIMATORS = {
    "ais": "--num-temperatures 3 --num-chains 4 --start-from guide --schedule linear",
    "bdmc": "--num-temperatures 3 --num-chains 4",
    "inference_gap": "--num-samples 20 --num-steps 3",
    "reciprocal_importance_sampling": "--num-samples 8 --num-chains 2",
    "importance_sampling": "--num-samples 30 --proposal inflated --bounds 1 10",
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(estimator, trained, tmp_path, run):
    folder = shutil.copytree(trained, tmp_path / "run")
    found = run(f"evaluate @0 --estimator {estimator} {ESTIMATORS[estimator]} --num-test 2 --json", folder)
    assert found["asked_for"] == estimator and found["num_data"] == 2
    assert (folder / "evidence.npz").exists() == (estimator != "bdmc")
    assert (folder / "bdmc.json").exists() == (estimator == "bdmc")


def test_evaluate_prints_a_table_and_a_line_for_each_warning(trained, tmp_path, run):
    folder = shutil.copytree(trained, tmp_path / "run")
    out = run("evaluate @0 --estimator importance_sampling --num-samples 2 --num-test 2", folder)
    assert all(word in out for word in ("ELBO", "log p(x)", "+-", "certified lower bound", "reliable", "standardized"))
    assert "warning: NOT reliable for 2 of 2 data" in out and "--estimator log_evidence" in out


def test_conditional(tmp_path, run):
    paths = tmp_path / "run", write_arrays(tmp_path / "images.npz"), tmp_path / "drawn.npz"
    found = run(f"train @0 --data @1 {SMALL} --conditional --json", *paths)
    assert found["data"]["num_labels"] == 3
    assert run(f"evaluate @0 {CHEAP} --json", *paths)["num_data"] == 3
    run("evaluate @0 --estimator bdmc --num-temperatures 2 --num-chains 4 --num-test 2", *paths)
    run("sample @0 --num-samples 5 --label 2 --output @2", *paths)
    assert np.load(paths[2])["labels"].tolist() == [2] * 5
    run("sample @0 --num-samples 5 --mean --output @2", *paths)
    assert np.load(paths[2])["labels"].tolist() == [0, 1, 2, 0, 1]
    assert pv.load(paths[0]).model.datum.context_shapes == ((3,),)


def test_labels_are_used(tmp_path):
    """A conditional VAE is called with one-hot labels of the right rows."""
    path = write_arrays(tmp_path / "images.npz")
    assert command(f"train @0 --data @1 {SMALL} --conditional", tmp_path / "run", path) == 0
    vae, test = pv.load(tmp_path / "run"), pv.data.load(path, split="test")
    context = torch.nn.functional.one_hot(test.labels, 3).float()
    assert command(f"evaluate @0 {CHEAP}", tmp_path / "run") == 0
    kept = pv.Evidence.load(tmp_path / "run" / "evidence.npz")
    options = {"num_samples": 30}
    same = pv.importance_sampling(vae.model, vae.guide, test.x[:3], context[:3], **options)
    other = pv.importance_sampling(vae.model, vae.guide, test.x[:3], context[:3].roll(1, 1), **options)
    assert torch.allclose(kept.log_evidence, same.log_evidence, atol=1e-4)
    assert not torch.allclose(kept.log_evidence, other.log_evidence, atol=1e-4)


@pytest.mark.parametrize("signs", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_and_resumed_it_is_the_same(signs, tmp_path, monkeypatch, run):
    number, code = signs
    path = write_arrays(tmp_path / "images.npz")
    whole = run(f"train @0 --data @1 {SMALL} --json", tmp_path / "whole", path)

    class Stop(pv.training.JSONLines):
        def on_epoch(self, progress):
            super().on_epoch(progress)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "JSONLines", Stop)
        assert command(f"train @0 --data @1 {SMALL}", tmp_path / "run", path) == code
    again = run(f"train @0 --data @1 {SMALL} --resume --json", tmp_path / "run", path)
    assert again["train_elbo"] == whole["train_elbo"] and again["validation_elbo"] == whole["validation_elbo"]


def test_resume_needs_no_settings(trained, tmp_path, run):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert run("train @0 --resume --num-epochs 3 --json", folder)["num_epochs"] == 3
    assert run("train @0 --resume auto --num-epochs 4 --json", folder)["num_epochs"] == 4


def test_the_command_in_the_folder_trains_the_same(trained, tmp_path, run):
    kept = json.loads((trained / "settings.json").read_text())["command"]
    assert kept[:2] == ["pyro-vae", "train"]
    again = run(f"train @0 {' '.join(kept[3:])} --json", tmp_path / "again")
    last = json.loads((trained / "history.jsonl").read_text().splitlines()[-1])
    assert again["train_elbo"] == last["train_elbo"]


@pytest.mark.filterwarnings("always")
def test_diverged(tmp_path, capsys):
    """One error, and none of Pyro's warnings of NaN before it."""
    path = write_table(tmp_path / "table.csv")
    line = f"train @0 --data @1 {SMALL} --learning-rate 1e30 --num-epochs 20"
    assert command(line, tmp_path / "run", path) == 3
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_sample_and_reconstruct_in_the_unit_of_the_file(suffix, trained, tmp_path, run):
    out = tmp_path / f"out{suffix}"
    run("sample @0 --num-samples 50 --output @1", trained, out)
    drawn = pv.data.load(out, split="all").x
    assert drawn.shape == (50, 3)
    assert 100 < drawn[:, 1].std() < 10_000 and drawn[:, 2].std() < 0.1
    run("reconstruct @0 --num-test 4 --output @1", trained, out)
    assert pv.data.load(out, split="all").x.shape == (4, 3)
    if suffix == ".csv":
        assert out.read_text().startswith("height,weight,age\n")


def test_pictures(tmp_path, run):
    paths = tmp_path / "run", write_photos(tmp_path / "photos", 30), tmp_path / "grid.png"
    run(f"train @0 --data @1 {SMALL}", *paths)
    for line in ("sample @0 --num-samples 9 --output @2", "reconstruct @0 --num-test 2 --output @2"):
        run(line, *paths)
        assert Image.open(paths[2]).size[0] > 100
        paths[2].unlink()


def test_a_seed_gives_the_same_draws(trained, tmp_path, run):
    outs = [tmp_path / f"{place}.csv" for place in range(3)]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        run(f"sample @0 --num-samples 5 --seed {seed} --output @1", trained, out)
    one, other, third = (out.read_text() for out in outs)
    assert one == other != third


def test_impute_fills_in_what_is_missing_and_nothing_else(trained, tmp_path, run):
    out = tmp_path / "completed.csv"
    found = run("impute @0 --output @1 --num-draws 50 --json", trained, out)
    assert (found["num_entries"], found["num_rows"]) == (3, 2)
    completed, before = (
        pv.data.load(path, split="all", missing="keep").x for path in (out, trained.parent / "table.csv")
    )
    absent = before.isnan()
    assert torch.allclose(completed[~absent], before[~absent]) and completed.isfinite().all()
    assert 0 < completed[4, 1].abs() < 10_000
    run("impute @0 --output @1 --num-draws 50", trained, tmp_path / "all.npz")
    arrays = np.load(tmp_path / "all.npz")
    assert np.allclose(arrays["x"], completed, rtol=1e-5)
    assert (arrays["sd"] > 0).sum() == 3 and arrays["sd"][4, 1] > 10  # in the unit of weight
    assert arrays["rows"].tolist() == [4, 9]


INCOMPLETE = {
    "a table": "--objective iwelbo --num-particles 3",
    "images": "--network convolutional --likelihood gaussian-learned --conditional",
    "binary images": "--prior vamp --num-components 3 --binarization threshold",
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_incomplete_rows_are_learned_from(kind, tmp_path, run):
    """`--missing keep`: each command counts what was observed, in the unit of the file too."""
    rows = table(80) if kind == "a table" else np.random.default_rng(1).random((80, 1, 6, 5))
    path = tmp_path / ("rows.csv" if kind == "a table" else "rows.npz")
    absent = np.random.default_rng(0).random(rows.shape) < 0.3
    if kind == "a table":
        write_table(path, rows, set(zip(*absent.nonzero(), strict=True)))
    else:
        np.savez(path, x=np.where(absent, np.nan, rows).astype("float32"), labels=np.arange(80) % 3)
    paths = [tmp_path / "run", path, tmp_path / "completed.npz"]
    run(f"train @0 --data @1 --missing keep {SMALL} {INCOMPLETE[kind]}", *paths)
    found = run("evaluate @0 --tolerance 0.3 --num-test 8 --json", *paths)
    evidence = pv.Evidence.load(paths[0] / "evidence.npz")
    assert evidence.log_evidence.isfinite().all()
    test = OpenRun(paths[0], "best").test_data(8, 8)
    assert test.x.isnan().any()
    assert isinstance(pv.load(paths[0]).likelihood, pv.likelihoods.Incomplete)
    in_own_unit = found["log_evidence_in_the_unit_of_the_file"]
    if kind == "a table":
        scale = torch.tensor(json.loads((paths[0] / "columns.json").read_text())["scale"])
        less = torch.where(test.x.isnan(), 0.0, scale.log()).sum(1)
        assert in_own_unit == pytest.approx((evidence.log_evidence - less).mean().item(), abs=1e-3)
    else:
        assert in_own_unit is None
    assert np.isfinite(run("reconstruct @0 --output @2 --json", *paths)["root_mean_squared_error"])
    run("impute @0 --output @2 --num-draws 20 --max-evaluations 400", *paths)
    completed = np.load(paths[2])
    assert np.isfinite(completed["x"]).all() and (completed["missing"].reshape(rows.shape) == absent).all()
    assert "</html>" in Path(run("report @0 --json", *paths)["report"]).read_text()


def test_a_column_that_was_never_observed(tmp_path, run):
    rows = [(place, 1) for place in range(60)]
    path = write_table(tmp_path / "table.csv", missing={*rows})
    run(f"train @0 --data @1 --missing keep {SMALL}", tmp_path / "run", path)
    assert np.isfinite(run(f"evaluate @0 {CHEAP} --json", tmp_path / "run")["log_evidence"])


def test_compare(trained, tmp_path, run, capsys):
    a = shutil.copytree(trained, tmp_path / "a")
    settings = f"--data {trained.parent / 'table.csv'} --missing drop {SMALL} --hidden-dims 4"
    run(f"train @0 {settings}", tmp_path / "b")
    assert command("compare @0 @1", a, tmp_path / "b") == 2
    assert "which was not; pyro-vae evaluate" in capsys.readouterr().err
    for folder in (a, tmp_path / "b"):
        run(f"evaluate @0 {CHEAP}", folder)
    found = run("compare @0 @1 --json", a, tmp_path / "b")
    assert found["difference"] == pytest.approx(found["a"]["log_evidence"] - found["b"]["log_evidence"])
    assert found["verdict"] and found["verdict"][0] in run("compare @0 @1", a, tmp_path / "b")
    run("train @0 --resume --num-epochs 3", a)
    assert command("compare @0 @1", a, tmp_path / "b") == 2
    assert "trained further since" in capsys.readouterr().err


def test_info_and_data(trained, run):
    found = run("info @0 --json", trained)
    assert found["settings"]["latent_dim"] == 2 and found["num_epochs"] == 2
    assert f"{found['data']['train']['sha256'][:12]}" in run("info @0", trained)
    described = run("data @0 --json", trained.parent / "table.csv")["data"][0]
    assert (described["num_data"], described["num_missing"], described["num_incomplete"]) == (60, 3, 2)
    assert "mnist" in run("data --data-dir @0", trained)


def test_report(trained, tmp_path, run):
    folder = shutil.copytree(trained, tmp_path / "run")
    run(f"evaluate @0 {CHEAP}", folder)
    page = Path(run("report @0 --json", folder)["report"])
    assert page == folder / "report.html"
    assert "pyro-vae train" in page.read_text()


def test_data_that_changed_are_refused(tmp_path, run, capsys):
    path = write_table(tmp_path / "table.csv")
    run(f"train @0 --data @1 {SMALL}", tmp_path / "run", path)
    rows = table()
    rows[7, 0] += 1
    write_table(path, rows)
    assert command(f"evaluate @0 {CHEAP}", tmp_path / "run") == 2
    assert "have changed since" in capsys.readouterr().err
    assert command("train @0 --resume --num-epochs 4", tmp_path / "run") == 2


def test_another_file_to_test_on(tmp_path, run):
    paths = tmp_path / "run", write_table(tmp_path / "table.csv"), write_table(tmp_path / "test.csv", table(9))
    found = run(f"train @0 --data @1 --test @2 {SMALL} --json", *paths)
    assert found["data"]["test"]["num_data"] == 9
    assert found["data"]["train"]["num_data"] + found["data"]["validation"]["num_data"] == 60


OWN = """
import pyro_vae as pv

def with_data(data):
    return make(data.x[0].numel())

def make(num=30):
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(pv.nn.MLP(2, [4], num)),
                  pv.posteriors.DiagonalNormal(pv.nn.MLP(num, [4], 4)))
"""


@pytest.mark.parametrize("function", ["with_data", "make"])
def test_a_vae_of_one_s_own(function, tmp_path, run, monkeypatch, capsys):
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_arrays(tmp_path / "images.npz")
    found = run(f"train run --data images.npz --vae own_models:{function} --num-epochs 1 --json")
    assert found["settings"]["vae"] == f"own_models:{function}" and found["settings"]["latent_dim"] is None
    assert run(f"evaluate run {CHEAP} --json")["num_data"] == 3
    run(f"train usual --data images.npz {SMALL} --num-epochs 1")
    page = Path(run("report usual --with run --num-test 3 --json")["report"]).read_text()
    assert "own_models" in page
    run(f"train other --data images.npz {SMALL} --num-epochs 1 --seed 1")
    assert command("report usual --with other") == 2
    assert "--with: expected a run with the test data of 'usual'" in capsys.readouterr().err
    sys.modules.pop("own_models")


def test_a_run_without_reading_its_data(trained, tmp_path, run, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["data"] = str(tmp_path / "moved.csv")
    (folder / "settings.json").write_text(json.dumps(settings))
    run("sample @0 --num-samples 2 --output @1", folder, tmp_path / "out.csv")
    run("info @0", folder)
    capsys.readouterr()
    assert command(f"evaluate @0 {CHEAP}", folder) == 2
    error = capsys.readouterr().err
    assert "moved.csv' is not there" in error or "moved.csv', which is not there" in error
    assert "or write where they lie now as data" in error
    shutil.copy(trained.parent / "table.csv", tmp_path / "moved.csv")
    run(f"evaluate @0 {CHEAP}", folder)


@pytest.mark.parametrize("name", ["settings.json", "columns.json", "evaluation.json"])
def test_files_that_were_changed_by_hand_are_refused(name, trained, tmp_path, run, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    run(f"evaluate @0 {CHEAP}", folder)
    for run_it in ("info @0", "sample @0 --num-samples 2 --output @1"):
        text = (folder / name).read_text()
        (folder / name).write_text(re.sub(r"(\d)\.(\d)", r"\1.9\2", text, count=1))
        code = command(run_it, folder, tmp_path / "out.csv")
        assert code == (0 if name == "evaluation.json" and "sample" in run_it else 2)
        assert code == 0 or name in capsys.readouterr().err


def test_grey_images_of_a_table_of_bytes(tmp_path, run):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype("uint8")
    np.save(tmp_path / "bytes.npy", pixels)
    paths = tmp_path / "run", tmp_path / "bytes.npy"
    found = run(f"train @0 --data @1 {SMALL} --json", *paths)
    assert found["settings"]["binarization"] == "dynamic"
    found = run(f"train @0 --data @1 {SMALL} --likelihood gaussian --json", tmp_path / "other", paths[1])
    assert (found["settings"]["binarization"], found["settings"]["scale"]) == ("none", 0.1)


def test_mnist_by_name(tmp_path, run, mnist_folder):
    line = f"train @0 --data mnist --data-dir @1 --num-train 300 {SMALL} --num-epochs 1 --json"
    found = run(line, tmp_path / "run", mnist_folder)
    assert (found["settings"]["likelihood"], found["data"]["train"]["num_data"]) == ("bernoulli", 270)
    assert found["data"]["test"]["num_data"] == 10_000


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "pyro_vae", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "exit codes:" in done.stdout and "pyro-vae train runs/a --data mnist" in done.stdout
