"""Kill processes that train together at random moments, and look at what is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import processes
import torch

from pyro_vae.training.run import last_checkpoint

VICTIMS = ("one process", "all processes", "the launcher")
TIME_LIMIT = 120.0
"""Seconds after which what still runs counts as hanging."""


def launched(folder, num_processes, *options):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", *options,
        processes.__file__, "saves_often", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def workers_of(folder):
    """Find the processes that train in a folder, wherever they were started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if str(folder).encode() in words and b"torch.distributed.run" not in words:
            found.append(int(path.parent.name))
    return found


def num_steps(folder):
    """Say how many steps are saved: by the name of the checkpoint alone, which may be replaced meanwhile."""
    path = folder / "last.json"
    name = json.loads(path.read_text())["checkpoint"] if path.exists() else None
    return 0 if name is None else int(name.split("-")[1])


def until(is_so, seconds):
    """Wait for something; tell whether it came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return is_so()


def disturbed(folder, num_processes, victim, seconds, rng):
    """Start processes and kill some of them after so many seconds of saves; return what went wrong, if anything did."""
    launcher = launched(folder, num_processes)
    before = num_steps(folder)
    if not until(lambda: num_steps(folder) > before or launcher.poll() is not None, TIME_LIMIT):
        return "HANGS at the start"
    time.sleep(rng.uniform(0, seconds))
    workers, saved = workers_of(folder), num_steps(folder)
    if launcher.poll() is not None or len(workers) < num_processes:
        launcher.wait()
        return "finished before"
    killed = {"one process": [rng.choice(workers)], "all processes": workers, "the launcher": [launcher.pid]}[victim]
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not until(lambda: launcher.poll() is not None, TIME_LIMIT):
        return "HANGS"
    if not until(lambda: not workers_of(folder), 30.0):
        return "ORPHANS"
    return "LOST" if last_checkpoint(folder).training["num_steps"] < saved else "nothing lost"


def killed(folder, num_kills, seed=0):
    """Kill so many times; yield each victim with what was left."""
    rng = random.Random(seed)
    processes.saves_often(folder / "undisturbed")
    expected = last_checkpoint(folder / "undisturbed")
    run, number, found = folder / "run 0", 0, Counter()
    while sum(found.values()) < num_kills:
        victim, num_processes = rng.choice(VICTIMS), rng.choice((2, 2, 3))
        outcome = disturbed(run, num_processes, victim, 4.0, rng)
        if outcome != "finished before":
            found[victim] += 1
            yield victim, outcome
        if outcome == "finished before" or num_steps(run) == expected.training["num_steps"]:
            yield "runs that were finished all the same", finished(run, expected)
            number += 1
            run = folder / f"run {number}"
    launched(run, 2).wait(TIME_LIMIT)
    yield "runs that were finished all the same", finished(run, expected)


def finished(run, expected):
    """Compare a run that was killed and went on with one that nobody disturbed."""
    found = last_checkpoint(run)
    if found.training["place"] != expected.training["place"]:
        return "NOT FINISHED"
    is_close = [
        torch.allclose(weights, expected.weights[name], rtol=1e-3, atol=1e-5) for name, weights in found.weights.items()
    ]
    return "equal to float32 rounding" if all(is_close) else "OTHER"
