"""How fast a graph averages.

One period of rounds multiplies the agents' vectors by P = P_T ... P_1. What is left of a disagreement is at most β of it,
β = ‖(I − 11ᵀ/n) P‖₂: the second singular value of P, since the largest one, 1, belongs to the mean (Assran et al. 2019, in
whose bound agents stay within a ball of radius ~ β/(1−β)). An update's share is β^(1/T). In the long run the second largest
eigenvalue rules, |λ₂| ≤ β; for shifts, which are normal matrices, |λ₂| = β.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gala_mpi.topology.graphs import Round, Shifts, Topology

ZERO = 1e-12  # below it a factor is what rounding has left of 0
BYTES = 4  # of a parameter: messages are float32

Edges = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Properties:
    """The figures of a graph.

    Attributes:
        period: T, the number of rounds that follow each other.
        degree: the most in-peers of an agent in a round.
        out_degree: the most readers of an agent in a round.
        diameter: the most updates that news takes from one agent to another, if nobody is late.
        beta: β of one period; 1 or more: a period need not bring agents together.
        ratio: β / (1 − β), None where β ≥ 1.
        beta_per_update, ratio_per_update: the same of β^(1/T).
        long_run_rate: |λ₂| of one period.
        updates_to_halve: a disagreement, in the long run; a period if one removes it, None if it never goes.
        bytes_per_update: that an agent reads.
        least_share, largest_share: how much an agent counts in what all come to (see `shares`); 1/n both where all count alike.
    """

    period: int
    degree: int
    out_degree: int
    diameter: int
    beta: float
    ratio: float | None
    beta_per_update: float
    ratio_per_update: float | None
    long_run_rate: float
    updates_to_halve: float | None
    bytes_per_update: int
    least_share: float
    largest_share: float


def properties(graph: Topology, parameters: int) -> Properties:
    """Return all figures of `graph`, for messages of so many parameters."""
    beta, rate, counts = mixing_rate(graph), long_run_rate(graph), shares(graph)
    per_update = beta ** (1 / graph.period)
    return Properties(
        period=graph.period,
        degree=graph.degree,
        out_degree=max(_out_degree(round, graph.size) for round in graph.rounds),
        diameter=diameter(graph),
        beta=beta,
        ratio=_ratio(beta),
        beta_per_update=per_update,
        ratio_per_update=_ratio(per_update),
        long_run_rate=rate,
        updates_to_halve=_updates_to_halve(rate, graph.period),
        bytes_per_update=BYTES * parameters * graph.degree,
        least_share=float(counts.min()),
        largest_share=float(counts.max()),
    )


def _ratio(beta: float) -> float | None:
    return beta / (1 - beta) if beta < 1 - ZERO else None


def _updates_to_halve(rate: float, period: int) -> float | None:
    if rate >= 1 - ZERO:
        return None
    return float(period) if rate == 0 else period * math.log(2) / -math.log(rate)


def _out_degree(round: Round, size: int) -> int:
    if isinstance(round, Shifts):
        return len(round.offsets)
    readers = np.bincount([peer for peers in round.peers for peer in peers], minlength=size)
    return int(readers.max(initial=0))


def second_singular_value(matrix: np.ndarray) -> float:
    """Return β, how much of a disagreement survives one round of mixing with a matrix whose rows sum to 1 (0 for one agent).

    The means over agents are taken away first. This leaves the second singular value of a doubly stochastic matrix as the
    largest one, and is right for others too.
    """
    return float(np.linalg.norm(matrix - matrix.mean(axis=0), 2))


def mixing_rate(graph: Topology) -> float:
    """Return β of one whole period of `graph`."""
    spectrum = _spectrum(graph)
    return _clean(second_singular_value(_product(graph)) if spectrum is None else _second(np.abs(spectrum)))


def long_run_rate(graph: Topology) -> float:
    """Return |λ₂| of one whole period of `graph`."""
    spectrum = _spectrum(graph)
    if spectrum is None:
        product = _product(graph)
        return _clean(float(np.abs(np.linalg.eigvals(product - product.mean(axis=0))).max()))
    return _clean(_second(np.abs(spectrum)))


def shares(graph: Topology) -> np.ndarray:
    """Return how much each agent counts in what all come to, if they only mix, float64 [n], of sum 1.

    It is the left eigenvector of a period's matrix for the eigenvalue 1. Where columns sum to 1 as rows do, all count alike.
    """
    if all(isinstance(round, Shifts) for round in graph.rounds):
        return np.full(graph.size, 1 / graph.size)
    values, vectors = np.linalg.eig(_product(graph).T)
    largest = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return largest / largest.sum()


def _clean(factor: float) -> float:
    return 0.0 if factor < ZERO else factor


def _second(values: np.ndarray) -> float:
    """Return the largest but that of the mean, which comes first."""
    return float(values.ravel()[1:].max(initial=0.0))


def _spectrum(graph: Topology) -> np.ndarray | None:
    """Return the eigenvalues of a period of shifts on one grid: the Fourier transform of one row; None for other graphs.

    Shifts commute, so that the eigenvalues of the product are the products of the eigenvalues.
    """
    shifts = [round for round in graph.rounds if isinstance(round, Shifts)]
    shapes = {round.shape for round in shifts}
    if len(shifts) < graph.period or len(shapes) > 1:
        return None
    spectrum = np.ones(*shapes, dtype=complex)
    for round in shifts:
        row = np.zeros(round.shape)
        row[(0,) * row.ndim] = 1
        for offset in round.offsets:
            row[offset] = 1
        spectrum *= np.fft.fftn(row / row.sum())
    return spectrum


def _product(graph: Topology) -> np.ndarray:
    product = np.eye(graph.size)
    for round in range(graph.period):
        product = graph.mixing_matrix(round) @ product
    return product


def diameter(graph: Topology) -> int:
    """Return the fewest updates after which everybody has heard of everybody, from the worst round to begin with."""
    news = _news(graph)
    return max(_updates_until_all_heard(graph, news, start) for start in range(graph.period))


def propagation_delay(graph: Topology) -> int:
    """Return after how many updates everybody has heard what one agent says now, whatever round it is; n on a ring."""
    return _updates_until_all_heard(graph, _news(graph), 0) + graph.period


def _updates_until_all_heard(graph: Topology, news: list[tuple[Edges, int]], start: int) -> int:
    same = all(isinstance(round, Shifts) for round in graph.rounds)
    # heard[r, j]: r has heard of j. Where all agents do the same it is enough to follow the news of one.
    heard = np.eye(graph.size, 1 if same else graph.size, dtype=bool)
    updates = 0
    while not heard.all():
        before, (edges, repeats) = heard.copy(), news[(start + updates) % graph.period]
        for readers, read in edges:
            heard[readers] |= before[read]
        # A round that brings no news brings none when it is repeated either.
        updates += 1 if (heard != before).any() else repeats
    return updates


def _news(graph: Topology) -> list[tuple[Edges, int]]:
    """Return each round's edges, and how many rounds from it on are the same, itself included, to the end of the period."""
    repeats = [1] * graph.period
    for at in reversed(range(graph.period - 1)):
        if graph.rounds[at] == graph.rounds[at + 1]:
            repeats[at] += repeats[at + 1]
    return list(zip([_gather(round, graph.size) for round in graph.rounds], repeats))


def _gather(round: Round, size: int) -> Edges:
    """Return the edges of a round as pairs of index arrays (readers, whom they read), each with a reader once at most."""
    if isinstance(round, Shifts):
        ranks = np.arange(size).reshape(round.shape)
        axes = tuple(range(ranks.ndim))
        return [(ranks.ravel(), np.roll(ranks, offset, axes).ravel()) for offset in round.offsets]
    most = max(map(len, round.peers), default=0)
    edges = [[(reader, peers[i]) for reader, peers in enumerate(round.peers) if i < len(peers)] for i in range(most)]
    return [(np.array([reader for reader, _ in part]), np.array([peer for _, peer in part])) for part in edges]
