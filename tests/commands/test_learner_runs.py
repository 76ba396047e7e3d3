"""Every learner's runs: on other numbers of ranks, killed, examined, watched and drawn."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from test_cartpole import EXCHANGES, POLE, PPO, VTRACE
from test_doctor import examine

from commandline import flushed, start, states, table, train
from gala_mpi import watch
from gala_mpi.run import checkpoints
from launch import HANGS, ROOT

LEARNERS = {  # flags, and steps of an update
    "ppo": ((*PPO, "--ppo.epochs", 2), 8 * 64),
    "vtrace": (VTRACE, 8 * 20),
    "vtrace with a lag": ((*VTRACE, "--lag", 1), 8 * 20),
}
usually = ["vtrace with a lag", *(pytest.param(each, marks=pytest.mark.long) for each in ("ppo", "vtrace"))]
learners = pytest.mark.parametrize("learner", usually)


@learners
def test_on_other_numbers_of_ranks(tmp_path, learner):
    """In lock-step, which would hang or refuse if the agents did not stand at the same update."""
    run = tmp_path / "run"
    flags, each = LEARNERS[learner]
    done = 0
    for n, told in ((3, (*POLE, *flags, "--staleness", 0)), (2, ("--resume",)), (5, ("--resume",))):
        before = done
        done += 4 * n * each
        train(n, run, *told, "--total-steps", done)
        found = states(run, n)
        assert sum(int(state.learner["steps"]) for state in found) == done
        assert all(np.isfinite(vector).all() for state in found for vector in state.learner.values())
        rows = table(run, 0, "updates")
        last = rows[rows["run_steps"] > before]
        assert len(last) == 4 and np.isfinite(last["kl"]).all()
        assert last["policy_lag"].tolist() == [0, *[1] * 3] if "lag" in learner else not last["policy_lag"].any()
    counted = [state.learner.get("optimiser_steps") for state in found]
    assert counted == [12 * 2 * 4] * 5 or learner != "ppo"  # twelve rollouts, two epochs, four minibatches


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("learner", ["ppo", pytest.param("vtrace", marks=pytest.mark.long)])
def test_checkpoints_come_while_it_trains(tmp_path, learner, exchange):
    run = tmp_path / "run"
    flags = (*LEARNERS[learner][0], *EXCHANGES[exchange], "--checkpoint-minutes", 0.01, "--total-steps", 10_000_000)
    with start(2, run, *POLE, *flags) as job:
        job.wait_until(lambda: len(checkpoints.complete(run)) > 1)
        job.kill()


@learners
@pytest.mark.long
def test_killed_watched_drawn_and_resumed(tmp_path, learner):
    """What concerns a learner alone is drawn, too."""
    run = tmp_path / "run"
    flags, each = LEARNERS[learner]
    with start(2, run, *POLE, *flags, "--checkpoint-minutes", 0.02, "--total-steps", 10_000_000) as job:
        job.wait_until(lambda: checkpoints.complete(run) and min(flushed(run, 0), flushed(run, 1)) > 20)
        job.kill()
    for path in run.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    seen = watch.read_status(run)
    assert seen.state in ("stale", "stopped")  # by whether rows came after the last checkpoint
    assert seen.steps == each * (flushed(run, 0) + flushed(run, 1))
    drawn = [sys.executable, ROOT / "analysis" / "health.py", run, "--out", tmp_path / "health.png"]
    said = subprocess.run(drawn, capture_output=True, text=True, timeout=HANGS)
    assert said.returncode == 0, said.stderr
    with open(tmp_path / "health.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(np.isfinite([float(row[name]) for name in ("kl", "clip_share")]).all() for row in rows) and len(rows) > 2
    total = sum(int(state.learner["steps"]) for state in states(run, 2)) + 40 * each
    train(2, run, "--resume", "--total-steps", total)
    assert sum(int(state.learner["steps"]) for state in states(run, 2)) >= total
    assert watch.read_status(run).state == "finished"


@pytest.mark.long
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_doctor_plans_for_it(tmp_path, learner):
    flags, _ = LEARNERS[learner]
    found = examine(2, *POLE[:-2], *flags, "--num-envs", 8, "--run-dir", tmp_path / "run", status=0)
    assert found["memory"]["state"] == found["/dev/shm"]["state"] == "ok"
