"""How agents are redistributed when a run resumes with another number of them. Pure arithmetic."""

from __future__ import annotations

import numpy as np

from gala_mpi.topology import Topology

ROUNDING = 1e-9


def shares(graph: Topology | None, agents: int, ranks: int) -> np.ndarray:
    """Return the weights of the saved agents in the agents of the new run, float64 [ranks, agents]; each row sums to 1.

    With as many agents as before, each continues as itself. With more, the new ones are copies of the old, dealt in turn. With
    fewer, agents `ranks`, `ranks + 1`, ... leave: the parameters of a leaving agent go to those that read it in the graph, with
    the weights of the graph, and a reader that leaves as well passes them on. An agent that stays becomes the mean of itself
    and of what it received.

    Args:
        graph: who read whom; None: no agent read another, or all agents are the same. Agents that leave are then dropped.
        agents: how many agents were saved.
        ranks: how many agents the new run has.
    """
    if ranks >= agents or graph is None:
        return np.eye(agents)[np.arange(ranks) % agents]
    reads = np.sum([graph.mixing_matrix(round) for round in range(len(graph.rounds))], axis=0)
    np.fill_diagonal(reads, 0)
    flow = reads / np.maximum(reads.sum(axis=0), ROUNDING)  # column a: where the parameters of agent a go
    # Passed on once, twice, ...: the series Σ Q^k = (I - Q)^-1. A pseudo-inverse, because agents may pass on in a circle.
    passed_on = np.linalg.pinv(np.eye(agents - ranks) - flow[ranks:, ranks:])
    received = flow[:ranks, ranks:] @ passed_on
    parts = np.hstack([np.eye(ranks), np.where(received > ROUNDING, received, 0)])
    return parts / parts.sum(axis=1, keepdims=True)
