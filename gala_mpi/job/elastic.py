"""What becomes of the agents when a run goes on with another number of them. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from gala_mpi.topology import Topology

ROUNDING = 1e-9


def shares(graph: Topology | None, agents: int, ranks: int) -> np.ndarray:
    """float64 [ranks, agents]: row r holds how much of each saved agent goes into agent r of the new run; its sum is 1.

    As many: everybody goes on. More: the new ones are copies of the old, dealt in turn. Fewer: agents `ranks`, `ranks + 1`,
    ... leave. What a leaving agent has learnt goes to those who read it in the graph, as they weight it; a reader who leaves as
    well hands it on. Whoever stays becomes the mean of itself and what it was given.

    Args:
        graph: who read whom; None: nobody anybody, or all agents are the same. Whoever leaves then leaves nothing behind.
    """
    if ranks >= agents or graph is None:
        return np.eye(agents)[np.arange(ranks) % agents]
    reads = np.sum([graph.mixing_matrix(round) for round in range(len(graph.rounds))], axis=0)
    np.fill_diagonal(reads, 0)
    flow = reads / np.maximum(reads.sum(axis=0), ROUNDING)  # column a: where the parameters of agent a go
    # Handed on once, twice, ...: the series Σ Q^k = (I - Q)^-1. A pseudo-inverse, for some might hand on in circles.
    handed_on = np.linalg.pinv(np.eye(agents - ranks) - flow[ranks:, ranks:])
    given = flow[:ranks, ranks:] @ handed_on
    parts = np.hstack([np.eye(ranks), np.where(given > ROUNDING, given, 0)])
    return parts / parts.sum(axis=1, keepdims=True)
