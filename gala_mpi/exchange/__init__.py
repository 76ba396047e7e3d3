"""How agents share what they learn: one base class, a few members, one table.

Everything outside this folder is the same for all of them, so that a comparison between them compares the communication and
nothing else. A new member is one file with the methods of `base.Exchange` that differ, and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gala_mpi.lazy import Member


@dataclass(frozen=True)
class ExchangeMember(Member):
    """One line of EXCHANGES.

    Attributes:
        method: what papers and figures call it.
        graph: whether agents read each other over the graph that --topology names, which then is part of what a run is called.
    """

    method: str
    graph: bool = False


EXCHANGES = {
    "gossip": ExchangeMember(
        "gala_mpi.exchange.gossip:Gossip", "GALA: average parameters with neighbours, never wait", "GALA", graph=True
    ),
    "allreduce": ExchangeMember(
        "gala_mpi.exchange.allreduce:AllReduce", "A2C: average gradients over all ranks, in step", "A2C"
    ),
    "periodic": ExchangeMember(
        "gala_mpi.exchange.periodic:Periodic",
        "local SGD: average parameters over all ranks every --sync-updates updates",
        "local SGD",
    ),
    "server": ExchangeMember("gala_mpi.exchange.server:Server", "A3C: a shared vector in rank 0's window", "A3C"),
    "none": ExchangeMember("gala_mpi.exchange.independent:Independent", "independent agents", "independent"),
}
