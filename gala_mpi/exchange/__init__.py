"""TABLE"""

from __future__ import annotations

from mpi4py import MPI

from gala_mpi import topology
from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange
from gala_mpi.run import reader


def build(config: Config, comm: MPI.Intracomm, length: int) -> Exchange:
    """The exchange that the settings name, for vectors of `length` parameters. One rank alone shares with nobody."""
    from gala_mpi.exchange.allreduce import AllReduce
    from gala_mpi.exchange.gossip import Gossip
    from gala_mpi.exchange.independent import Independent
    from gala_mpi.exchange.recorded import Recorded
    from gala_mpi.exchange.server import Server

    if config.replay:
        mixes, updates = (reader.read_rows(config.replay, comm.rank, name) for name in ("mixes", "updates"))
        return Recorded(comm, length, mixes, int(updates["update"].max(initial=0)))
    if comm.size == 1 or config.exchange == "none":
        return Independent(comm)
    if config.exchange == "allreduce":
        return AllReduce(comm, length)
    if config.exchange == "server":
        return Server(comm, length)
    graph = topology.build(config.topology, comm.size)
    return Gossip(comm, length, graph, config.staleness, config.checksum, config.survive)
