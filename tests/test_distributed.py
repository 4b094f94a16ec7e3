"""Several processes under torchrun: the numbers of one, whatever happens to them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import lost_processes
import processes
import pytest
import torch

import pyro_vae as pv
from pyro_vae import distributed

SCRIPT = Path(processes.__file__)
TIME_LIMIT = 240


def launch(task, folder, *options, num_processes=2, environment=None):
    """Run a task in several processes; return the launcher's exit code and what was said."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", *options,
        str(SCRIPT), task, str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=TIME_LIMIT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **(environment or {})},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What two processes found, and what one finds."""
    folder = tmp_path_factory.mktemp("numbers")
    code, said = launch("numbers", folder)
    assert code == 0, said
    processes.numbers(folder)
    return [torch.load(folder / f"{name}.pt") for name in ("alone", "0", "1")]


@pytest.mark.filterwarnings("ignore:program. expected a pair with an ELBO for each datum")
@pytest.mark.parametrize("name", [*processes.TRAININGS, "memory-mapped"])
def test_training_in_two_processes_is_that_in_one(numbers, name):
    alone, first, second = (each["trained"][name] for each in numbers)
    assert torch.equal(first["parameters"], second["parameters"])
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first["elbo"], alone["elbo"], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:program. expected a pair with an ELBO for each datum")
def test_evaluation_in_two_processes_is_that_in_one_to_the_bit(numbers):
    for name, alone in numbers[0]["evaluated"].items():
        for each in numbers[1:]:
            for one, other in zip(alone, each["evaluated"][name], strict=True):
                assert torch.equal(one.nan_to_num(), other.nan_to_num()), name


@pytest.mark.parametrize(
    "name",
    [
        "mean field",
        "dreg",
        "dropout",
        "shared latent",
        "subsampled",
        "coins",
        "plates of a share's size",
        "plates of the last share's size",
        "mixture",
    ],
)
def test_a_batch_in_shares_is_the_whole_batch(name):
    whole, in_shares = processes.trained(name, accumulate=1), processes.trained(name, accumulate=3)
    torch.testing.assert_close(in_shares["parameters"], whole["parameters"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(in_shares["elbo"], whole["elbo"], rtol=1e-5, atol=1e-5)


def test_shares_with_noise_of_their_own_would_be_found_out(monkeypatch):
    """The twin of the test before."""
    monkeypatch.setattr(pv.training.noise, "_axis_of", lambda *_: None)
    with pytest.raises(ValueError, match=r"normal_\.default of shape .* for a share and normal_\.default of shape"):
        processes.trained("mean field", accumulate=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (processes.with_batch_norm(), {}), r"got [\d.]+ of some rows together, and [\d.]+ of their"),
        (lambda: (processes.with_gammas(), {}), "noise that can be drawn for a whole batch.*got standard_gamma"),
        (lambda: (processes.vae(), {"objective": pv.objectives.BetaELBO(1.0, 0.5)}), "BetaELBO, whose value depends"),
        (lambda: (processes.vae(), {"batch_size": 2}), "expected a row for each of 3 shares.*got 2 of 63 data"),
    ],
    ids=["batch norm", "gamma", "free bits", "few rows"],
)
def test_what_cannot_be_taken_in_shares_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        processes.trained(make(), accumulate=3)


@pytest.mark.parametrize(
    ("task", "message", "rank"),
    [
        ("other_data", "ValueError: program: expected the same in each process; got another data in that of rank 1", 0),
        ("evaluates_other_data", "ValueError: program: expected the same in each process; got another data", 0),
        ("other_order", "ValueError: program: expected the same in each process; got another batches", 0),
        ("fails_in_one", "ValueError: x: the fault of one process", 1),
        ("evaluation_fails_in_one", "ValueError: x: the fault of one process", 1),
        pytest.param(
            "other_backend", "ValueError: backend: expected one for tensors on cpu", 0, marks=pytest.mark.slow
        ),
        pytest.param("diverges", "DivergedError: objective: expected finite numbers", 0, marks=pytest.mark.slow),
        pytest.param("too_few_rows", "expected a row for each of 2 shares", 0, marks=pytest.mark.slow),
        pytest.param("batch_norm", "expected a loss that is the sum of its rows", 0, marks=pytest.mark.slow),
        pytest.param("gammas", "expected noise that can be drawn for a whole batch", 0, marks=pytest.mark.slow),
    ],
)
def test_one_process_says_what_is_wrong_and_all_end(tmp_path, task, message, rank):
    code, said = launch(task, tmp_path)
    assert code != 0
    assert f"[rank{rank}]: " in said and message in said
    assert f"[rank{1 - rank}]: " not in said


def test_a_process_that_dies_ends_the_others_and_all_start_again(tmp_path):
    """From the last checkpoint, to the parameters of training that nobody disturbed."""
    started = time.monotonic()
    code, said = launch("dies_once", tmp_path / "once")
    assert code != 0 and "Signal 9 (SIGKILL) received" in said
    assert time.monotonic() - started < 60
    code, said = launch("dies_once", tmp_path / "twice", "--max-restarts=1")
    assert code == 0, said
    for name in ("once", "undisturbed"):  # alone
        processes.dies_once(tmp_path / name)
    once, twice, undisturbed = (
        pv.training.run.last_checkpoint(tmp_path / name) for name in ("once", "twice", "undisturbed")
    )
    for each in (once, twice):
        assert each.training["place"] == undisturbed.training["place"]
        for name, weights in each.weights.items():
            torch.testing.assert_close(weights, undisturbed.weights[name], rtol=1e-4, atol=1e-6)


def test_one_process_is_no_team(monkeypatch):
    assert distributed.team() is None and distributed.is_first()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.team() is None  # started by something else than torchrun
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR: expected where the first process is, beside WORLD_SIZE=2"):
        distributed.team()
    with distributed.alone():
        assert distributed.team() is None


def test_a_first_process_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "MEETING", distributed.timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "end_with_parent", lambda signal: None)
    with pytest.raises(ValueError, match=r"expected a first process that answers at 127\.0\.0\.1:1; got"):
        distributed.team()


@pytest.mark.slow
def test_nothing_is_lost_whoever_is_killed(tmp_path):
    outcomes = {outcome for _, outcome in lost_processes.killed(tmp_path, 4)}
    assert outcomes <= {"nothing lost", "equal to float32 rounding"}
