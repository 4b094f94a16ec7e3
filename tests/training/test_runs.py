"""Runs on disk: what is stopped goes on as if it never had, and what is damaged is refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from truths import needs_compiler, small_vae

import pyro_vae as pv
from pyro_vae.training import Callback, EarlyStopping


@pytest.fixture(autouse=True)
def _empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def digits(num_data=46):
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (num_data, 6), dtype=torch.uint8, generator=generator)
    return pv.data.from_tensor(grey, binarization="dynamic")


class StopAfter(Callback):
    """Ask to stop as a signal does, after so many steps."""

    def __init__(self, num_steps, number=signal.SIGTERM):
        self.num_steps, self.number = num_steps, number

    def on_step(self, progress, loss):
        if progress.num_steps == self.num_steps:
            os.kill(os.getpid(), self.number)


def vae_with(hidden=(8,), **options):
    pyro.clear_param_store()
    return small_vae(hidden=hidden, **options)


def fitted(program, data, **options):
    options = {"num_epochs": 4, "batch_size": 10, "progress": False} | options
    history = pv.fit(program, data, **options)
    return [tensor.detach().clone() for tensor in tensors_of(program)], history


def tensors_of(program):
    if isinstance(program, pv.VAE):
        return list(program.state_dict().values())
    return [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]


def assert_goes_on(tmp_path, make, data, num_steps, **options):
    """Stopped after so many steps and resumed, training ends where it ends in one go, to the bit."""
    whole, expected = fitted(make(), data, **options)
    with pytest.raises(SystemExit) as stopped:
        fitted(make(), data, run=tmp_path / "run", callbacks=[StopAfter(num_steps)], **options)
    assert stopped.value.code == 143
    resumed, history = fitted(make(), data, run=tmp_path / "run", resume=True, **options)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    columns = history.as_dict(), expected.as_dict()
    assert all(columns[0][name] == columns[1][name] for name in columns[0] if name != "seconds")


OPTIONS = {
    "as it is": {},
    "with validation": {"validation": digits(20)},
    "torch's optimizer": {"optim": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)},
    "a schedule of Pyro's": {
        "optim": lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.5}
        )
    },
    "a schedule by step": {"schedule": lambda step: min(1.0, (step + 1) / 12)},
    "a schedule of FusedAdam's": {
        "optim": lambda: pv.FusedAdam({"lr": 0.01}, partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1))
    },
    "clipped": {"clip_grad_norm": 0.1},
    "with a KL warm-up": {"kl_warmup": 2.5},
    "Trace_ELBO": {"objective": Trace_ELBO(num_particles=2)},
    "the last batch dropped": {"drop_last": True},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("num_steps", [3, 10, 15])
@pytest.mark.parametrize("case", OPTIONS)
def test_it_goes_on_as_if_it_had_never_stopped(tmp_path, case, num_steps):
    def made():
        return {
            key: value() if key == "optim" and not isinstance(value, partial) else value
            for key, value in OPTIONS[case].items()
        }

    whole, expected = fitted(vae_with(), digits(), **made())
    with pytest.raises(SystemExit):
        fitted(vae_with(), digits(), run=tmp_path / "run", callbacks=[StopAfter(num_steps)], **made())
    resumed, history = fitted(vae_with(), digits(), run=tmp_path / "run", resume="auto", **made())
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert history.train_elbo == expected.train_elbo and history.rate == expected.rate
    assert history.validation_elbo == expected.validation_elbo


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [8, 3])
def test_as_graphs_too(tmp_path, num_steps, interpreted):
    assert_goes_on(tmp_path, vae_with, digits(), num_steps, compile=True)
    assert interpreted


@pytest.mark.slow
@needs_compiler
def test_compiled_too(tmp_path):
    assert_goes_on(tmp_path, vae_with, digits(), 8, compile=True)


def with_dropout():
    pyro.clear_param_store()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    return pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(nn.Linear(2, 6)), pv.posteriors.DiagonalNormal(encoder)
    )


def test_buffers_and_dropout(tmp_path):
    assert_goes_on(tmp_path, with_dropout, digits(), 8)


def conditional():
    pyro.clear_param_store()
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.nn.MLP(2 + 3, [8], 6)),
        pv.posteriors.DiagonalNormal(pv.nn.MLP(6 + 3, [8], 4)),
        context_shapes=[(3,)],
    )


def test_a_conditional_vae(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(46, 6, generator=generator), torch.eye(3)[torch.arange(46) % 3]
    assert_goes_on(tmp_path, conditional, data, 8)


def regression():
    """y ~ N(w x, s), with global parameters in Pyro's store, and a guide of Pyro's."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)

    def model(x, y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, scale), obs=y)

    return model, AutoNormal(model)


@pytest.mark.filterwarnings("ignore:program. expected a pair with an ELBO for each datum")
def test_a_pair_without_an_elbo_for_each_datum(tmp_path):
    x = torch.randn(46, generator=torch.Generator().manual_seed(0))
    assert_goes_on(tmp_path, regression, (x, 2 * x), 8, validation=(x, 2 * x))


@pytest.mark.parametrize("make_loader", [False, True])
def test_torch_s_data_sets(tmp_path, make_loader):
    """Whose noise and order come from torch's generator."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 46

        def __getitem__(self, row):
            return torch.full((6,), row / 46) + torch.randn(6) / 10

    def gaussian():
        pyro.clear_param_store()
        torch.manual_seed(0)
        return pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Gaussian(pv.nn.MLP(2, [8], 6)),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [8], 4)),
        )

    data = torch.utils.data.DataLoader(Noisy(), 10, shuffle=True) if make_loader else Noisy()
    assert_goes_on(tmp_path, gaussian, data, 8)


def test_more_epochs_later(tmp_path):
    whole, _ = fitted(vae_with(), digits(), num_epochs=5)
    fitted(vae_with(), digits(), num_epochs=2, run=tmp_path / "run")
    resumed, history = fitted(vae_with(), digits(), num_epochs=5, run=tmp_path / "run", resume=True)
    assert len(history) == 5 and all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_a_run_that_is_finished_is_read_and_no_more(tmp_path):
    trained, history = fitted(vae_with(), digits(), run=tmp_path / "run")
    again, same = fitted(vae_with(), digits(), run=tmp_path / "run", resume="auto")
    assert same.as_dict() == history.as_dict()
    assert all(torch.equal(one, other) for one, other in zip(trained, again, strict=True))


def test_ctrl_c(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fitted(vae_with(), digits(), run=tmp_path / "run", callbacks=[StopAfter(7, signal.SIGINT)])
    assert signal.getsignal(signal.SIGINT) is before
    _, history = fitted(vae_with(), digits(), run=tmp_path / "run", resume=True)
    assert len(history) == 4


KILLED = """
    import os, signal, sys
    import torch, pyro_vae as pv
    from pyro_vae.training import Callback
    sys.path.insert(0, {tests!r})
    from training.test_runs import digits, vae_with

    class Kill(Callback):
        def on_step(self, progress, loss):
            if progress.num_steps == {step}:
                os.kill(os.getpid(), signal.SIGKILL)

    pv.fit(vae_with(), digits(), num_epochs=4, batch_size=10, progress=False, run={run!r}, resume="auto", callbacks=[Kill()])
"""


def test_killed_it_goes_on_from_the_last_checkpoint(tmp_path):
    tests = os.path.dirname(os.path.dirname(__file__))
    program = textwrap.dedent(KILLED.format(tests=tests, step=12, run=str(tmp_path / "run")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed, _ = fitted(vae_with(), digits(), run=tmp_path / "run", resume=True)
    whole, _ = fitted(vae_with(), digits())
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_load(tmp_path):
    """The best parameters where there was validation, else the last."""
    options = {"optim": pv.FusedAdam({"lr": 0.3}), "num_epochs": 8, "validation": digits(20)}
    last, history = fitted(vae_with(), digits(), run=tmp_path / "run", **options)
    best = max(range(len(history)), key=history.validation_elbo.__getitem__)
    assert best < 7
    vae = pv.load(tmp_path / "run", vae_with())
    found = pv.rate_distortion(vae.model, vae.guide, digits(20).x).elbo.mean().item()
    assert found == pytest.approx(history.validation_elbo[best], abs=1e-5)
    again = pv.load(tmp_path / "run", vae_with(), which="last")
    assert all(torch.equal(one, other) for one, other in zip(last, tensors_of(again), strict=True))


def test_load_makes_the_vae_again(tmp_path):
    """The best and the last parameters, buffers among them, with the same outputs."""
    options = {"optim": pv.FusedAdam({"lr": 0.3}), "num_epochs": 8, "validation": digits(20)}
    vae = with_dropout()
    fitted(vae, digits(), run=tmp_path / "run", **options)
    for which in ("best", "last"):
        again = pv.load(tmp_path / "run", which=which)
        given = pv.load(str(tmp_path / "run"), with_dropout(), which)
        assert not again.training and again.state_dict().keys() == vae.state_dict().keys()
        assert all(torch.equal(*pair) for pair in zip(tensors_of(again), tensors_of(given), strict=True))
        x = digits().x
        assert torch.equal(again.encode(x).mean, given.encode(x).mean)
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)


class Swish(nn.Module):
    """A class of a user's."""

    def forward(self, x):
        return x * x.sigmoid()


def make_vae():
    return vae_with_swish()


def vae_with_swish():
    pyro.clear_param_store()
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.nn.MLP(2, [8], 6, Swish)),
        pv.posteriors.DiagonalNormal(nn.Sequential(nn.Linear(6, 8), Swish(), nn.Linear(8, 4))),
    )


def test_what_has_no_description_is_passed_or_imported(tmp_path):
    """The file says which module that is; it never says what is imported."""
    trained, _ = fitted(vae_with_swish(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(
        ValueError, match=r"likelihood.network.activation makes .* a [\w.]*Swish, no class of pyro_vae's .*pass"
    ):
        pv.load(tmp_path / "run")
    for given in (vae_with_swish(), f"{__name__}:make_vae"):
        again = pv.load(tmp_path / "run", given)
        assert all(torch.equal(*pair) for pair in zip(trained, tensors_of(again), strict=True))


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("json", ValueError, 'vae: expected "package.module:name"; got .json.; write'),
        ("json:", ValueError, 'vae: expected "package.module:name"'),
        (
            "no_such_package:vae",
            ValueError,
            "vae: expected .vae. in a module .no_such_package.; got an error, No module",
        ),
        ("json:no_such_name", ValueError, "expected .no_such_name. in a module .json.; got an error"),
        ("string:ascii_letters", TypeError, "vae: expected a VAE of the parts that were trained; got 'abc"),
        (f"{__name__}:digits", TypeError, "vae: expected a VAE of the parts that were trained; got Dataset"),
    ],
)
def test_import_paths_of_no_vae(tmp_path, where, error, message):
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(error, match=message):
        pv.load(tmp_path / "run", where)


def test_a_run_of_a_pair_has_no_vae(tmp_path):
    vae = vae_with()
    fitted((vae.model, vae.guide), digits().x, run=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match=r"expected a run of a VAE; got that of .*Model.*resume=True"):
        pv.load(tmp_path / "run")


def test_a_configuration_that_is_damaged_is_refused(tmp_path):
    """A VAE with another activation would have parameters of the same names and shapes."""
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("torch.nn.Tanh", "torch.nn.ReLU"))
    with pytest.raises(ValueError, match="config.json: expected sha256 .*; got .*; restore"):
        pv.load(tmp_path / "run")


def test_load_refuses_other_parts_and_empty_folders(tmp_path):
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match="run: expected the parameters of this program; got .* of shape"):
        pv.load(tmp_path / "run", vae_with(hidden=(9,)))
    with pytest.raises(ValueError, match="last.json: expected a file that can be read"):
        pv.load(tmp_path, vae_with())


# What is refused


def test_another_process_is_kept_out(tmp_path):
    class Second(Callback):
        def on_step(self, progress, loss):
            with pytest.raises(ValueError, match="run: expected a folder that no other process trains in"):
                fitted(vae_with(), digits(), run=tmp_path / "run", resume=True)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fitted(vae_with(), digits(), run=tmp_path / "run", callbacks=[Second()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=1 instead of 0"),
        ({"batch_size": 11}, "batch_size=11 instead of 10"),
        ({"optim": pyro.optim.Adam({"lr": 0.1})}, "optim.options.lr=0.1 instead of 0.001"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, message):
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match=f"run: expected the settings that the run .* was started with; got {message}"):
        fitted(vae_with(), digits(), run=tmp_path / "run", resume=True, **change)


def test_other_data_and_another_program_are_refused(tmp_path):
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match="got data"):
        fitted(vae_with(), digits(45), run=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"got parameters\.guide\.posterior\.network"):
        fitted(vae_with(hidden=(9,)), digits(), run=tmp_path / "run", resume=True)


def test_another_activation_is_refused(tmp_path):
    """Whose parameters have the same names and shapes."""

    def vae_of(activation):
        network = pv.nn.MLP(2, [8], 6, activation)
        return pv.VAE(
            pv.priors.StandardNormal(2),
            pv.likelihoods.Bernoulli(network),
            pv.posteriors.DiagonalNormal(pv.nn.MLP(6, [], 4)),
        )

    fitted(vae_of(nn.Tanh), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(
        ValueError, match=r"got program\..*activation\.makes.*torch.nn.ReLU.* instead of .*torch.nn.Tanh"
    ):
        fitted(vae_of(nn.ReLU), digits(), run=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("resume", "message"),
    [(False, "expected a new or an empty folder"), ("yes", "resume: expected True, False or .auto.")],
)
def test_a_run_is_not_written_over(tmp_path, resume, message):
    fitted(vae_with(), digits(), run=tmp_path / "run", num_epochs=1)
    with pytest.raises(ValueError, match=message):
        fitted(vae_with(), digits(), run=tmp_path / "run", resume=resume)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="expected a folder with a run to resume"):
        fitted(vae_with(), digits(), run=tmp_path / "run", resume=True)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="run: expected a folder that can be written to"):
        fitted(vae_with(), digits(), run=tmp_path / "file" / "run", resume="auto")


# Options


def test_early_stopping_goes_back_to_the_best(tmp_path):
    """With a rate that is too high, validation gets worse."""
    options = {"optim": pv.FusedAdam({"lr": 0.3}), "validation": digits(30), "num_epochs": 40}
    vae = vae_with()
    _, history = fitted(vae, digits(), early_stopping=EarlyStopping(patience=3), **options)
    best = max(range(len(history)), key=history.validation_elbo.__getitem__)
    assert len(history) == best + 1 + 3 < 40
    after = pv.rate_distortion(vae.model, vae.guide, digits(30).x).elbo.mean().item()
    assert after == pytest.approx(history.validation_elbo[best], abs=1e-5)


def test_early_stopping_needs_validation():
    with pytest.raises(ValueError, match="early_stopping: expected validation data"):
        fitted(vae_with(), digits(), early_stopping=3)


def test_clipping_is_torch_s():
    """One step by hand."""
    vae, twin = vae_with(), vae_with()
    x = digits().x
    optim = pyro.optim.PyroOptim(torch.optim.SGD, {"lr": 1.0})
    fitted(vae, x, optim=optim, clip_grad_norm=0.5, batch_size=46, num_epochs=1)
    norms = [(one - other).norm() for one, other in zip(vae.parameters(), twin.parameters(), strict=True)]
    assert torch.stack(norms).norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.slow
def test_clipped_steps_are_graphs_too(float64, interpreted):
    """The same parameters as by Pyro's steps; those of the twin are not clipped."""

    def ends(**options):
        optim = pv.FusedAdam({"lr": 0.01})
        found, history = fitted(vae_with(), digits(), optim=optim, **options)
        assert optim.clip_grad_norm is None  # as it was given
        return torch.cat([tensor.flatten() for tensor in found]), history.execution

    (plain, _), (graphs, execution), (twin, _) = (
        ends(compile=compile, clip_grad_norm=largest) for compile, largest in ((False, 0.1), (True, 0.1), (True, None))
    )
    assert execution.startswith("compiled") and torch.allclose(plain, graphs, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(twin, graphs, rtol=1e-2) and interpreted


def test_one_norm_to_clip_to():
    optim = pv.FusedAdam({"lr": 0.01, "clip_grad_norm": 1.0})
    with pytest.raises(ValueError, match="clip_grad_norm: expected one norm; got 2.0 beside the optimizer's own, 1.0"):
        fitted(vae_with(), digits(), optim=optim, clip_grad_norm=2.0)
    assert optim.clip_grad_norm == 1.0


def test_a_resumed_run_has_the_rates_of_one_in_one_go(tmp_path):
    """Those of a schedule by step, and of one by epoch."""
    for name, options in {"by step": {"schedule": lambda step: 1 / (step + 1)}, "by epoch": {}}.items():
        rates, optims = {}, []

        class Spy(Callback):
            def on_step(self, progress, loss, rates=rates, optims=optims):
                rates.setdefault(progress.num_steps, []).append(optims[-1].optimizers[0].param_groups[0]["lr"])

        def made(optims=optims, name=name):
            by_epoch = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5) if name == "by epoch" else None
            optims.append(pv.FusedAdam({"lr": 0.1}, by_epoch))
            return optims[-1]

        fitted(vae_with(), digits(), optim=made(), callbacks=[Spy()], **options)
        run = tmp_path / name
        with pytest.raises(SystemExit):
            fitted(vae_with(), digits(), optim=made(), run=run, callbacks=[Spy(), StopAfter(8)], **options)
        fitted(vae_with(), digits(), optim=made(), run=run, resume=True, callbacks=[Spy()], **options)
        assert len(rates) == 20 and all(len(pair) == 2 and pair[0] == pair[1] for pair in rates.values())
        assert rates[1] != rates[20]


def test_a_schedule_by_step():
    rates = []

    class Spy(Callback):
        def on_step(self, progress, loss):
            rates.append(optim.optimizers[0].param_groups[0]["lr"])

    optim = pv.FusedAdam({"lr": 0.1})
    fitted(vae_with(), digits(), optim=optim, schedule=lambda step: 1 / (step + 1), callbacks=[Spy()], num_epochs=2)
    assert rates == pytest.approx([0.1 / (step + 1) for step in range(10)])
    assert optim.pt_optim_args["lr"] == optim.optimizers[0].param_groups[0]["lr"] == 0.1  # as it was given


@pytest.mark.parametrize("kl_warmup", [None, 1.0])
def test_the_reported_elbo_is_that_of_weight_one(kl_warmup):
    """At a rate of almost nothing, all epochs have the same ELBO, whatever the weight that trains."""
    options = {"optim": pv.FusedAdam({"lr": 1e-12}), "num_epochs": 2, "objective": Trace_ELBO()}
    _, history = fitted(vae_with(), digits(1000), kl_warmup=kl_warmup, **options)
    assert history.train_elbo == pytest.approx([-history.rate[0] - history.distortion[0]] * 2, abs=0.3)


def test_a_warm_up_lowers_the_weight_of_the_first_steps():
    losses = {}

    class Spy(Callback):
        def __init__(self, name):
            losses[name] = self.found = []

        def on_step(self, progress, loss):
            self.found.append(float(loss))

    options = {"optim": pv.FusedAdam({"lr": 1e-12}), "num_epochs": 5, "batch_size": 46, "compile": False}
    for warmup in (None, 5):
        fitted(vae_with(), digits().x, kl_warmup=warmup, callbacks=[Spy(warmup)], **options)
    gaps = [plain - weighted for plain, weighted in zip(losses[None], losses[5], strict=True)]
    assert gaps == pytest.approx([gaps[0] * share / 4 for share in (4, 3, 2, 1, 0)], rel=1e-3, abs=1e-3) and gaps[0] > 1


def test_logs_hold_each_epoch_once(tmp_path):
    logs = [pv.training.JSONLines(tmp_path / "log.jsonl"), pv.training.CSV(tmp_path / "log.csv")]
    with pytest.raises(SystemExit):
        fitted(vae_with(), digits(), run=tmp_path / "run", callbacks=[*logs, StopAfter(13)])
    _, history = fitted(vae_with(), digits(), run=tmp_path / "run", resume=True, callbacks=logs)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["train_elbo"] for row in rows] == history.train_elbo
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("epoch,train_elbo")
