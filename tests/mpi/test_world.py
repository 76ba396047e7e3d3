"""Waiting together, and having the same environments."""

from __future__ import annotations

import time

import pytest

from gala_mpi.envs.base import Spaces
from gala_mpi.errors import JobError
from gala_mpi.job.build import require_alike
from gala_mpi.mpi.world import rendezvous

LATE = 1.0  # seconds


def test_whoever_waits_for_a_late_rank_leaves_it_the_cores(comm, signs):
    """MPI's own barrier would take the second that it waits from a core."""
    late = comm.size - 1
    comm.Barrier()
    began, computed = time.perf_counter(), time.process_time()
    if comm.rank == late:
        signs.wait("has begun", signs.others())
        time.sleep(LATE)
    signs.give("has begun")
    rendezvous(comm)
    waited, computed = time.perf_counter() - began, time.process_time() - computed
    assert waited >= LATE
    assert computed < 0.3 * LATE


def test_environments_that_are_others_on_some_rank_are_named(comm):
    """As where a host has another version of them. Within a rank, too."""
    same = Spaces((4,), False, 2)
    require_alike("CartPole-v1", comm, [same, same])
    wider = [same, Spaces((5,), False, 2)] if comm.rank else [same, same]
    for mine, what in (
        ([Spaces((4,), False, 2 + comm.rank)], "actions is"),
        (wider, r"observation_shape is \(5,\) here, \(4,\)"),
    ):
        if comm.rank:
            with pytest.raises(JobError, match=f"--env CartPole-v1: its {what}"):
                require_alike("CartPole-v1", comm, mine)
        else:
            require_alike("CartPole-v1", comm, mine)
