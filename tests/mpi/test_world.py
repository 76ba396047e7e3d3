"""Waiting together."""

from __future__ import annotations

import time

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
