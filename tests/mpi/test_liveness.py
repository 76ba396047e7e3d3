"""Who is silent is lost, and is back when it moves."""

import time
from contextlib import closing

import numpy as np
import pytest
import torch

from gala_mpi import topology
from gala_mpi.exchange.gossip import Gossip
from gala_mpi.mpi.liveness import Liveness
from gala_mpi.mpi.mailbox import Mailbox
from gala_mpi.topology import Graph

SECONDS = 5.0  # a rank that waits for a core is silent as well
SILENT = 1  # this rank


@pytest.fixture(autouse=True)
def somebody_to_read(comm):
    if comm.size == 1:
        pytest.skip("needs 2 ranks or more")


def test_a_silent_rank_is_lost_until_it_moves(comm, signs):
    with closing(Mailbox(comm, 3, survive=True)) as mailbox:
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        mailbox.meet(others)
        mailbox.publish(np.zeros(3, np.float32), 7 + comm.rank)
        comm.Barrier()
        liveness = Liveness(mailbox, SECONDS)
        liveness.follow(others)

        def watch_until(condition, seconds: float = 300) -> None:
            deadline = time.monotonic() + seconds
            while not condition():
                mailbox.progress()
                liveness.update()
                time.sleep(0.002)
                assert time.monotonic() < deadline, f"rank {comm.rank} sees lost: {liveness.lost}"

        until = time.monotonic() + 1
        watch_until(lambda: time.monotonic() > until)
        assert liveness.lost == {}
        comm.Barrier()
        if comm.rank == SILENT:
            signs.wait("misses it", others)
        else:
            watch_until(lambda: liveness.lost)
            assert liveness.lost == {SILENT: 7 + SILENT}
            signs.give("misses it")
        watch_until(lambda: not liveness.lost)
        everybody = comm.Ibarrier()
        watch_until(everybody.Test)


def test_others_are_read_in_place_of_the_lost(comm, signs):
    """On a ring: who read the silent one reads the one before it, and mixes its messages."""
    gossip = Gossip(comm, 4, topology.build(Graph("ring"), comm.size), None, survive=SECONDS)
    parameters = torch.full((4,), float(comm.rank))
    gossip.start(0, parameters)
    comm.Barrier()
    deadline = time.monotonic() + 300
    mixed: set[int] = set()
    heir, source = (SILENT + 1) % comm.size, (SILENT - 1) % comm.size
    everybody = None
    if comm.rank == SILENT:
        signs.wait("has mixed the heirloom", [heir])
    while everybody is None or not everybody.Test():
        gossip.progress()
        gossip.room().copy_(parameters)
        gossip.parameters(parameters)
        counters = gossip.counters()
        mixed |= {mix.peer for mix in counters.mixes}
        time.sleep(0.005)
        done = comm.rank != heir or (counters.lost if comm.size == 2 else source in mixed)
        if everybody is None and done:
            signs.give("has mixed the heirloom")
            everybody = comm.Ibarrier()
        assert time.monotonic() < deadline
    gossip.close()
    if comm.size > 2:
        assert mixed <= ({SILENT, source} if comm.rank == heir else {(comm.rank - 1) % comm.size})
