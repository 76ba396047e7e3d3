"""Whom to read in place of the lost: those whom they would have read. Pure arithmetic.

So news that went through a lost agent goes past it, and what one agent learns still reaches all that live. In a mutual graph
whom a lost agent reads in a round are its readers themselves. In its place they then read those whom it reads in any round.
"""

from __future__ import annotations

from collections.abc import Collection

from gala_mpi.topology.graphs import Topology


def in_peers_without(graph: Topology, rank: int, round: int, lost: Collection[int]) -> list[int]:
    """Return whom `rank` reads at `round`: its in-peers that live, then those who are read in place of the lost ones."""
    candidates = graph.in_peers(rank, round)
    for peer in candidates:  # which grows: those in place of a lost one may be lost as well
        if peer in lost:
            others = graph.neighbours(peer) if graph.mutual else graph.in_peers(peer, round)
            candidates += [other for other in others if other not in candidates and other != rank]
    return [peer for peer in candidates if peer not in lost]


def weights_without(graph: Topology, rank: int, round: int, lost: Collection[int]) -> list[float]:
    """Return the weights of `rank` itself and of `in_peers_without` in their order; their sum is 1.

    Those in place of lost ones share the weight of these in equal parts; where nobody is, the rank keeps it.
    """
    own, *weights = graph.weights(rank, round)
    of_graph = dict(zip(graph.in_peers(rank, round), weights))
    peers = in_peers_without(graph, rank, round, lost)
    left = sum(weight for peer, weight in of_graph.items() if peer in lost)
    substitutes = sum(peer not in of_graph for peer in peers)
    if not substitutes:
        return [own + left, *(of_graph[peer] for peer in peers)]
    return [own, *(of_graph.get(peer, left / substitutes) for peer in peers)]
