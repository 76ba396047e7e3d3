"""Whatever happens to one of four ranks, at whatever step: the run ends as it should, says so, and leaves a sound checkpoint.

FAULTS says how many faults are drawn; a test's number is its seed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from commandline import STEPS_PER_UPDATE, flushed, states
from gala_mpi import errors
from gala_mpi.run import checkpoints
from launch import HANGS, Job, mpirun

FAULTY = Path(__file__).with_name("faulty.py")
FEW, MANY = 9, 200  # nine: each kind once
RANKS = 4
TERM = 128 + signal.SIGTERM
POLE = ("--env", "FaultyPole-v0", "--num-envs", 4, "--precision", "fp32", "--checkpoint-minutes", 0.01)
EXCHANGES = {
    "gossip": ("--exchange", "gossip", "--topology", "exponential"),
    "bounded": ("--exchange", "gossip", "--staleness", 3),
    "lockstep": ("--exchange", "gossip", "--staleness", 0),
    "allreduce": ("--exchange", "allreduce"),
    "periodic": ("--exchange", "periodic"),
    "server": ("--exchange", "server"),
    "none": ("--exchange", "none"),
}


class Fault(NamedTuple):
    """How a run ends after it: the exit status (None: the launcher's own, not 0), what is said, whether all ranks save; and
    what is done from outside."""

    status: int | None
    said: str
    saves: bool = False
    outside: Callable[[Job, Path, random.Random], None] = lambda job, run, draw: None
    flags: tuple = ()


def signal_twice(job: Job, run: Path, draw: random.Random) -> None:
    """TERM to all ranks, and another signal before they have ended."""
    for number in (signal.SIGTERM, draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])):
        for rank in job.ranks():
            try:
                os.kill(rank, number)
            except ProcessLookupError:
                pass
        time.sleep(draw.uniform(0, 0.5))


def start_again(job: Job, run: Path, draw: random.Random) -> None:
    second = mpirun(2, FAULTY, "nothing", 0, 0, "--resume", "--run-dir", run)
    assert second.returncode == errors.REFUSED and "trains" in second.stderr, second.stderr
    os.kill(job.ranks()[0], signal.SIGUSR1)


LONG = ("--total-steps", 100_000_000)
SHORT = ("--total-steps", 1000 * RANKS * STEPS_PER_UPDATE)
KINDS = {
    "nan": Fault(errors.FINISHED, "reward", True, flags=SHORT),
    "inf": Fault(errors.FINISHED, "observation", True, flags=SHORT),
    "exception": Fault(errors.FAILED, "the pole has broken", flags=LONG),
    "exit": Fault(errors.FAILED, "sys.exit(3)", flags=LONG),
    "killed": Fault(None, "signal 9", flags=LONG),
    "stopped": Fault(errors.FAILED, "rank {rank}", flags=(*LONG, "--hang-minutes", 0.1)),
    "disk": Fault(errors.FAILED, "cannot be written", flags=LONG),
    "signals": Fault(TERM, "SIGTERM", True, signal_twice, LONG),
    "second job": Fault(errors.RESUME, "SIGUSR1", True, start_again, LONG),
}


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.long] if seed >= FEW else []) for seed in range(MANY)])
def test_a_fault_ends_well(tmp_path, seed):
    draw = random.Random(seed)
    kind, exchange = list(KINDS)[seed % len(KINDS)], draw.choice(list(EXCHANGES))
    rank, step = draw.randrange(RANKS), draw.randrange(20, 600)
    fault, run, happened = KINDS[kind], tmp_path / "run", tmp_path / "happened"
    flags = (*POLE, *EXCHANGES[exchange], *fault.flags, "--run-dir", run)
    with Job(RANKS, FAULTY, kind, rank, step, *flags, env={"FAULT": str(happened)}) as job:
        job.wait_until(happened.exists)
        fault.outside(job, run, draw)
        ended = job.wait(timeout=HANGS)
        seconds = time.time() - happened.stat().st_mtime
    what = f"{kind} on rank {rank} at step {step}, {exchange}: status {ended.returncode} after {seconds:.1f} s\n"
    what += ended.stdout + ended.stderr
    print(what)
    assert ended.returncode == fault.status if fault.status is not None else ended.returncode not in (0, 2), what
    assert fault.said.format(rank=rank) in ended.stdout + ended.stderr, what
    assert_sound(run, what)
    if fault.saves:
        done = [int(state.learner["updates"]) for state in states(run, RANKS)]
        assert done == [flushed(run, rank) for rank in range(RANKS)], what


def assert_sound(run: Path, what: str) -> None:
    """Of the checkpoints, all that are complete are finite, and the newest of them is the one to go on from."""
    complete = checkpoints.complete(run)
    assert checkpoints.newest(run) == (complete[-1] if complete else None), what
    for number in complete:
        for rank in checkpoints.ranks(run, number):
            learner = checkpoints.load(run, number, rank).learner
            assert all(np.isfinite(value).all() for value in learner.values()), what
