"""`--actors K`: ranks that play for those that learn. Agents are counted by these, and nobody waits for who stands still."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from test_cartpole import POLE, VTRACE, scores
from test_survive import sparing  # noqa: F401  (a fixture)

from commandline import TRAIN, assert_complete, complaints, flushed, start, states, table, train
from gala_mpi import evaluate, watch
from gala_mpi.run import checkpoints, layout, reader
from launch import Job

QUICK = (*POLE, *VTRACE)
STEPS_PER_UPDATE = 8 * 20
FROZEN, LOST = 2, 10.0  # a rank: the second actor of the first agent; seconds
UPDATES = 60


def assert_nothing_was_lost(run, n: int, actors: int) -> None:
    """Every rollout is learnt from once, whoever has played it: episodes of an environment follow each other without a gap."""
    for rank in range(n):
        rows, episodes = table(run, rank, "updates"), table(run, rank, "episodes")
        assert rows["steps"].tolist() == [STEPS_PER_UPDATE * k for k in range(1, len(rows) + 1)]
        assert (rows["rollouts_torn"] == 0).all()
        assert (rows["rollout_wait"] >= 0).all() and (rows["actor_wait"] >= 0).all()
        assert (rows["policy_lag"] >= 0).all() and rows["policy_lag"].max() > 0
        players = episodes["simulator"] // 8
        assert set(players.tolist()) == set(range(actors))
        for environment in np.unique(episodes["simulator"]):
            # An actor's rollouts are so many steps of each of its environments; what is not in an episode is in its last one.
            played = episodes["length"][episodes["simulator"] == environment].sum()
            assert 0 < played <= 20 * len(rows)
        assert episodes["length"].sum() <= rows["steps"][-1] < episodes["length"].sum() + 8 * actors * 500  # the longest


@pytest.mark.parametrize(
    "n, actors, flags",
    [
        (1, 1, ()),
        (2, 1, ("--exchange", "gossip", "--staleness", 5)),
        pytest.param(2, 2, ("--exchange", "allreduce", "--memory", "lstm", "--memory-size", 16), marks=pytest.mark.long),
        pytest.param(1, 3, ("--checksum",), marks=pytest.mark.long),
    ],
)
def test_agents_are_those_that_learn(tmp_path, n, actors, flags):
    run = tmp_path / "run"
    train(n * (1 + actors), run, *QUICK, "--actors", actors, *flags, "--total-steps", n * UPDATES * STEPS_PER_UPDATE)
    assert_complete(run, n, updates=UPDATES)
    assert_nothing_was_lost(run, n, actors)
    assert reader.read_config(run).actors == actors
    assert [path.name for path in (run / "metrics").iterdir() if "00000" not in path.name] == [
        f"rank{k:05}.h5" for k in range(1, n)
    ]
    assert watch.read_status(run).agents == n


@pytest.mark.parametrize("n, actors", [(1, 2), pytest.param(1, 0, marks=pytest.mark.long)])
def test_what_is_stopped_goes_on_with_new_episodes_and_other_actors_or_none(tmp_path, n, actors):
    """By a signal, to the launcher."""
    run = tmp_path / "run"
    with start(4, run, *QUICK, "--actors", 1) as job:
        job.wait_until(lambda: min(flushed(run, 0), flushed(run, 1)) > 20)
        os.kill(job.launcher.pid, signal.SIGTERM)
        result = job.wait()
    assert result.returncode == 128 + signal.SIGTERM
    assert f"mpirun -n 4 python -m gala_mpi.train --resume --run-dir {run}" in result.stdout
    before = [int(state.learner["updates"]) for state in states(run, 2)]
    steps = sum(before) * STEPS_PER_UPDATE
    train(n * (1 + actors), run, "--resume", "--actors", actors, "--total-steps", steps + 50 * STEPS_PER_UPDATE)
    (state,) = states(run, n)
    assert int(state.learner["steps"]) >= steps + 50 * STEPS_PER_UPDATE
    rows = table(run, 0, "updates")
    rows = rows[rows["update"] > max(before)]
    assert rows["policy_lag"].max() < 20  # it goes by updates of the whole run
    assert np.isnan(rows["rollout_wait"]).all() == (actors == 0)


def test_an_error_of_an_actor_ends_the_job_and_names_it(tmp_path):
    """BrokenPole breaks on the second rank of the job."""
    flags = ("--env", "broken_pole:BrokenPole-v0", "--learner", "vtrace", "--actors", 1)
    with Job(2, *TRAIN, "--run-dir", tmp_path / "run", *flags, cwd=Path(__file__).parent) as job:
        result = job.wait()
    assert result.returncode == 1
    assert any(re.match(r"gala_mpi: actor 1 of rank 0 on \S+ failed; the job ends", line) for line in complaints(result))
    assert "the pole has broken" in result.stderr


@pytest.mark.long
def test_a_frozen_actor_stalls_nobody(tmp_path):
    """Its agent goes on with the rollouts of the others; when it wakes up, it plays on."""
    run = tmp_path / "run"
    with start(4, run, *QUICK, "--actors", 3, "--total-steps", 4000 * STEPS_PER_UPDATE) as job:
        job.wait_until(lambda: flushed(run, 0) > 50)
        os.kill(job.ranks()[FROZEN], signal.SIGSTOP)
        frozen = flushed(run, 0)
        job.wait_until(lambda: flushed(run, 0) > frozen + 500)
        os.kill(job.ranks()[FROZEN], signal.SIGCONT)
        assert job.wait().returncode == 0
    episodes = table(run, 0, "episodes")
    whose = episodes["simulator"] // 8 + 1
    silent = (episodes["update"] > frozen + 100) & (episodes["update"] < frozen + 400)
    assert set(whose[silent].tolist()) == {1, 3}
    assert set(whose[episodes["update"] > 3000].tolist()) == {1, 2, 3}
    assert (table(run, 0, "updates")["rollouts_torn"] == 0).all()


def killed(job: Job, run) -> None:
    job.wait_until(lambda: min(flushed(run, 0), flushed(run, 1)) > 50)
    os.kill(job.ranks()[FROZEN], signal.SIGKILL)


@pytest.mark.long
def test_an_actor_that_dies_is_named_and_done_without(tmp_path, sparing):  # noqa: F811
    run = tmp_path / "run"
    flags = ("--actors", 2, "--survive", LOST, "--total-steps", 4000 * STEPS_PER_UPDATE, "--checkpoint-minutes", 0.02)
    with start(6, run, *QUICK, *flags) as job:
        killed(job, run)
        result = job.wait()
    said = [line for line in result.stderr.splitlines() if "lost" in line]
    assert len(said) == 1 and re.match(r"gala_mpi: actor 2 of rank 0 on \S+ is lost, last seen at its rollout \d+;", said[0])
    assert f"finished: {run}" in result.stdout and "Traceback" not in result.stderr
    assert layout.lost(run) == set() and checkpoints.agents(run, checkpoints.newest(run)) == 2
    assert sum(int(state.learner["updates"]) for state in states(run, 2)) >= 4000


@pytest.mark.long
def test_an_agent_without_actors_left_ends_the_job(tmp_path, sparing):  # noqa: F811
    run = tmp_path / "run"
    with start(2, run, *QUICK, "--actors", 1, "--survive", LOST) as job:
        job.wait_until(lambda: flushed(run, 0) > 50)
        os.kill(job.ranks()[1], signal.SIGKILL)
        result = job.wait()  # with 0, for Open MPI's launcher, as it is told to tolerate faults
    assert any("all actors of rank 0 on " in line for line in complaints(result)), result.stderr


@pytest.mark.long
@pytest.mark.parametrize("n, actors", [(1, 3), (2, 1)])
def test_cartpole_is_solved(tmp_path, n, actors):
    run = tmp_path / "run"
    train(n * (1 + actors), run, *QUICK, "--actors", actors, "--total-steps", n * 80_000)
    found = scores(run)
    print(n, actors, found, [np.median(table(run, rank, "updates")["policy_lag"]) for rank in range(n)])
    assert found[evaluate.MEAN] >= 475, found
    for rank in range(n):
        assert np.median(table(run, rank, "updates")["policy_lag"]) <= 2
