"""`--replay`: an asynchronous run once more, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from commandline import SMALL, STEPS_PER_UPDATE, assert_complete, flushed, parameters, start, table, train
from gala_mpi.run import files, layout
from launch import mpirun

UPDATES = 60
FREE_RUNNING = (*SMALL, "--total-steps", 4 * UPDATES * STEPS_PER_UPDATE)


def assert_same(one, other, n: int) -> None:
    for a, b in zip(parameters(one, n), parameters(other, n), strict=True):
        assert np.array_equal(a, b)
    for rank in range(n):
        assert np.array_equal(table(one, rank, "mixes"), table(other, rank, "mixes"))


def matters(run, n: int) -> None:
    """The recorded run was no lock-step: of some messages not the reader's own version was mixed, or none came."""
    mixes = [table(run, rank, "mixes") for rank in range(n)]
    assert any((rows["version"] != rows["update"]).any() for rows in mixes) and all(len(rows) > 10 for rows in mixes)


@pytest.mark.parametrize(
    "topology", [*(pytest.param(name, marks=pytest.mark.long) for name in ("ring", "one-peer-exponential")), "my.txt"]
)
def test_an_asynchronous_run_repeats_bit_for_bit(tmp_path, topology):
    (tmp_path / "my.txt").write_text("0 1 0.3\n0 0 0.3\n0 3 0.4\n1 2 0.7\n1 1 0.3\n2 3 0.1\n2 2 0.9\n3 0 1\n")
    graph = tmp_path / topology if topology.endswith(".txt") else topology
    run, again = tmp_path / "run", tmp_path / "again"
    # Without a bound, an agent that the machine favours may do all its updates before a peer has begun.
    train(4, run, *FREE_RUNNING, "--topology", graph, "--slow-rank", "2:5ms", "--staleness", 4, "--a2c.decay-lr")
    matters(run, 4)
    said = train(4, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    assert_complete(again, 4, updates=UPDATES)
    assert_same(run, again, 4)


@pytest.mark.long
def test_pong_repeats_bit_for_bit(tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    train(2, run, "--env", "pong", "--num-envs", 4, "--total-steps", 2 * 30 * STEPS_PER_UPDATE, "--slow-rank", "1:20ms")
    train(2, again, "--replay", run, "--sketch-updates", 1)
    assert_same(run, again, 2)
    assert len(table(again, 0, "sketches")) == 30


def test_a_killed_run_repeats_as_far_as_it_was_recorded(tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    job = start(3, run, *SMALL, "--slow-rank", "1:5ms")
    job.wait_until(lambda: all(flushed(run, rank) > 20 for rank in range(3)))
    job.kill()
    said = train(3, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    for rank in range(3):
        updates, mixes = table(again, rank, "updates"), table(again, rank, "mixes")
        assert len(updates) > 20
        then = table(run, rank, "mixes")
        assert np.array_equal(mixes, then[then["update"] <= updates["update"][-1]])


@pytest.mark.parametrize(
    "n, flags",
    [pytest.param(1, (), marks=pytest.mark.long), (2, ("--staleness", 0, "--exact-resume", "--checkpoint-updates", 50))],
)
def test_a_run_that_was_killed_far_from_its_end(tmp_path, n, flags):
    """One rank, which mixes nothing; and an exact run, which itself stops at a checkpoint alone."""
    run, again = tmp_path / "run", tmp_path / "again"
    job = start(n, run, *SMALL, *flags, "--total-steps", 100_000_000)
    job.wait_until(lambda: all(flushed(run, rank) > 70 for rank in range(n)))
    job.kill()
    said = train(n, again, "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    assert all(70 < len(table(again, rank, "updates")) <= len(table(run, rank, "updates")) for rank in range(n))


def test_a_replay_that_differs_says_from_where(tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    train(2, run, *SMALL, "--total-steps", 2 * 10 * STEPS_PER_UPDATE)
    path = layout.metrics_files(run, 1)[0]
    with files.revised(path) as file:  # as if something else had been computed at update 7
        rows = file["updates"][()]
        rows["grad_norm"][6] += 1
        file["updates"][...] = rows
    result = mpirun(2, "-m", "gala_mpi.train", "--run-dir", again, "--replay", run)
    assert result.returncode == 1 and "rank 1 differs" in result.stderr and "from update 7 on" in result.stderr
