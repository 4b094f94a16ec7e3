"""The bar: what it says, and where it is shown."""

import io
import sys

import pytest
import torch
from truths import small_vae

import pyro_vae as pv
from pyro_vae.training import Callback


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def shown(monkeypatch, is_terminal, **options):
    """What a bar writes to a terminal, or to a file."""
    screen = Screen(is_terminal)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", screen)
        pv.fit(small_vae(), torch.ones(40, 6), num_epochs=3, batch_size=10, **options)
    return screen.getvalue()


def test_it_says_that_it_compiles_until_the_step_is_done(monkeypatch, interpreted):
    states = shown(monkeypatch, True, compile=True).split("\r")
    compiling = [place for place, state in enumerate(states) if "compiling, once, for 5 to 60 s" in state]
    assert compiling and "ELBO: train" not in "".join(states[: compiling[0]])
    assert "compiling" not in states[compiling[-1] + 1] and "3/3" in states[-1] + states[-2] and "nats" in states[-2]


def test_it_does_not_say_so_where_nothing_is_compiled(monkeypatch):
    found = shown(monkeypatch, True)
    assert "compiling" not in found and "3/3" in found


@pytest.mark.parametrize("compile", [False, True])
def test_off_a_terminal_it_is_silent(monkeypatch, compile, interpreted):
    """As tqdm is with disable=None: a log file gets no bars."""
    assert shown(monkeypatch, False, compile=compile) == ""


def test_tqdm_s_own_switch(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert shown(monkeypatch, True) == ""


@pytest.mark.parametrize("is_resumed", [False, True])
def test_callbacks_are_told_before_a_graph_is_made(tmp_path, interpreted, is_resumed):
    """After the start, before the step, also where a resumed run makes its graphs anew."""
    told = []

    class Spy(Callback):
        def on_start(self, progress):
            told.append("start")

        def on_compile(self, progress):
            told.append(f"compile {len(interpreted)}")

        def on_step(self, progress, loss):
            told.append("step")

    def fit(num_epochs):
        told.clear(), interpreted.clear()
        options = {"compile": True, "batch_size": 20, "progress": False, "callbacks": [Spy()]}
        pv.fit(vae, torch.ones(40, 6), num_epochs=num_epochs, run=tmp_path / "run", resume="auto", **options)

    vae = small_vae()
    fit(2)
    expected = ["start", "step", "compile 0", "step", "step", "step"]
    if is_resumed:
        fit(4)
        expected = ["start", "compile 0", "step", "step", "step", "step"]
    assert told == expected and len(interpreted) == 1
