"""A3C's one vector: it is what checkpoints hold, a resume starts from and an evaluation plays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from commandline import SMALL, STEPS_PER_UPDATE, parameters, start, states, table, train
from gala_mpi.run import checkpoints, layout
from launch import ROOT, environment, mpirun

SERVER = (*SMALL, "--exchange", "server")
STILL = ("--resume", "--slow-rank", "None", "--lr", 1e-30)  # nothing is learnt: the vector stays what it is


def more(n: int, done: int, updates: int = 5) -> tuple[object, ...]:
    return ("--total-steps", done + n * updates * STEPS_PER_UPDATE)


def steps(run: Path, n: int) -> int:
    return sum(int(state.learner["steps"]) for state in states(run, n))


def alone(*arguments: object) -> str:
    """What `python arguments...` prints."""
    words = [sys.executable, *map(str, arguments)]
    result = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_as_good_as_equal(one: np.ndarray, other: np.ndarray) -> None:
    assert np.abs(one - other).max() < 1e-20


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def ended(request, tmp_path_factory) -> tuple[int, Path]:
    """The number of ranks, and a run with a straggler that has ended."""
    n, run = request.param, tmp_path_factory.mktemp("server") / "run"
    train(n, run, *SERVER, "--total-steps", n * 60 * STEPS_PER_UPDATE, "--slow-rank", f"{n - 1}:20ms")
    return n, run


def test_all_ranks_save_the_shared_vector(ended):
    n, run = ended
    first, *others = parameters(run, n)
    assert all(np.array_equal(first, other) for other in others)
    done = sum(int(state.learner["updates"]) for state in states(run, n))
    assert [state.pushes for state in states(run, n)] == [done] * n


def test_the_shared_vector_is_evaluated(ended):
    _, run = ended
    said = mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 3)
    assert said.returncode == 0, said.stderr
    assert "shared vector" in said.stdout and "agent 0" not in said.stdout and "mean of all" not in said.stdout
    with h5py.File(layout.run_file(run), locking=False) as file:
        assert set(file["evaluations/0"]["policy"]) == {-1}


def test_the_lag_of_pulls_is_shown(ended, tmp_path):
    n, run = ended
    lags = np.concatenate([table(run, rank, "updates")["age"] for rank in range(n)])
    assert np.isfinite(lags).all() and lags.min() >= 0
    slow = table(run, n - 1, "updates")["age"]
    assert slow.max() > 0  # the others have gone on meanwhile
    assert re.search(r"lag +[\d.]+ updates, at most \d+", alone("-m", "gala_mpi.watch", run, "--once"))
    picture = tmp_path / "lags.png"
    alone("analysis/staleness.py", run, "--out", picture)
    rows = picture.with_suffix(".csv").read_text().splitlines()
    assert len(rows) > 1


def test_a_resume_starts_from_the_shared_vector(ended):
    n, run = ended
    (then, *_), done = parameters(run, n), steps(run, n)
    for ranks in (n, n + 1, 1):  # others too, who all begin with it
        train(ranks, run, *STILL, *more(ranks, done))
        done = steps(run, ranks)
        for now in parameters(run, ranks):
            assert_as_good_as_equal(now, then)


def test_a_resume_after_a_kill_starts_from_the_file_with_the_newest(tmp_path):
    """Ranks read the vector at different times; here rank 0 before all others."""
    n, run = 3, tmp_path / "run"
    with start(n, run, *SERVER, "--total-steps", 10**6, "--checkpoint-minutes", 0.02, "--slow-rank", "2:20ms") as job:
        job.wait_until(lambda: checkpoints.newest(run))
        os.kill(job.ranks()[1], signal.SIGKILL)
        job.wait()
    number, saved = checkpoints.newest(run), states(run, n)
    for rank in (1, 2):  # as if they had been later to save, each by a little
        with h5py.File(layout.checkpoint_file(run, number, rank), "r+") as file:
            file.attrs["pushes"] = saved[0].pushes + 3 - rank
            file["learner/parameters"][...] = saved[0].learner["parameters"] + np.float32(3 - rank)
    done = steps(run, n)
    train(n, run, *STILL, *more(n, done))
    for now in parameters(run, n):
        assert_as_good_as_equal(now, saved[0].learner["parameters"] + np.float32(2))


def test_a_run_that_never_saved_the_shared_vector_goes_on(tmp_path):
    """One of an older version, whose files hold what each rank saw last: from rank 0's."""
    run = tmp_path / "run"
    train(2, run, *SERVER, "--total-steps", 800)
    number = checkpoints.newest(run)
    for rank in range(2):
        with h5py.File(layout.checkpoint_file(run, number, rank), "r+") as file:
            del file.attrs["pushes"]
            file["learner/parameters"][...] += np.float32(rank)
    said = mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 2).stdout
    assert all(policy in said for policy in ("agent 0", "agent 1", "mean of all agents"))
    (then, _), done = parameters(run, 2), steps(run, 2)
    train(2, run, *STILL, *more(2, done))
    for now in parameters(run, 2):
        assert_as_good_as_equal(now, then)
