"""How far a run is, by the steps of all agents."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from recorded import begin, update_rows, write

from gala_mpi.config import Config
from gala_mpi.job.steps import Steps


def world_of(comm) -> SimpleNamespace:
    return SimpleNamespace(rank=comm.rank, size=comm.size, sum=comm.allreduce, all=lambda holds: all(comm.allgather(holds)))


@pytest.mark.parametrize("exchange", ["gossip", "server", "none"])
def test_agents_that_do_not_wait_go_by_the_sum(comm, exchange):
    learner, heard = SimpleNamespace(updates=3, steps=240), [0]
    steps = Steps(Config(exchange=exchange, total_steps=1000), world_of(comm), learner, heard=lambda: heard[0])
    for heard[0], progress in ((0, 0.0), (240, 0.24), (999, 0.999), (1000, 1.0), (1500, 1.0)):
        assert (steps.progress(), steps.done()) == (progress, heard[0] >= 1000)
    assert steps.all_done() == (240 * comm.size >= 1000)
    assert steps.last == 3 + max(0, -(-(1000 - 240 * comm.size) // 80))  # if the others do nothing more


@pytest.mark.parametrize("settings", [{"exchange": "allreduce"}, {"exchange": "periodic"}, {"staleness": 0}])
def test_agents_in_step_do_equal_shares(comm, settings):
    """Whatever they hear: nothing must depend on when messages come."""
    learner = SimpleNamespace(updates=0, steps=0)
    steps = Steps(Config(total_steps=1000, **settings), world_of(comm), learner, heard=lambda: 10**9)
    while not steps.done():
        assert steps.progress() == min(1.0, learner.steps * comm.size / 1000)
        learner.updates, learner.steps = learner.updates + 1, learner.steps + 80
    assert learner.updates == steps.last == -(-1000 // (80 * comm.size)) and steps.all_done()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_replay_goes_by_what_was_heard_then(comm, tmp_path, recorded):
    """A run of an older version has not recorded it, and took its own steps for everybody's."""
    run = begin(tmp_path / "run", agents=1)
    rows = update_rows(1, 10)
    if recorded:
        rows["run_steps"] = np.arange(1, 11) ** 2
    for rank in range(comm.size):
        write(run, rank, 0, updates=rows)
    learner = SimpleNamespace(updates=0, steps=0)
    steps = Steps(Config(total_steps=1000, replay=run), world_of(comm), learner, heard=lambda: 10**9)
    for update in range(10):
        learner.updates, learner.steps = update, 80 * update
        expected = update**2 if recorded else 80 * update * comm.size
        assert steps.progress() == min(1.0, expected / 1000) and not steps.done()
    learner.updates = 10
    assert steps.done()
