"""Rounds of reading and their weights. Pure arithmetic: no files, no MPI, no state.

A graph is a tuple of rounds, used in turn, one an update. In a round, agent r mixes x_r ← Σ_j w_rj x_j over itself and its
in-peers, Σ_j w_rj = 1. A round is given in one of two ways:

* `Shifts`: all agents do the same. They stand on a ring, or on a grid that wraps around, and read those at given offsets
  before them, with the uniform weights 1 / (1 + |in-peers|) of GALA (Assran et al. 2019). Its matrix is doubly stochastic.
* `Table`: anything, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from gala_mpi.topology.base_graph import Links, base_graph


@dataclass(frozen=True)
class Shifts:
    """Agents on a grid of `shape` (row-major) that wraps around; each reads those `offsets` before it."""

    shape: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]

    def in_peers(self, rank: int) -> list[int]:
        return [self._moved(rank, offset, -1) for offset in self.offsets]

    def out_peers(self, rank: int) -> list[int]:
        return [self._moved(rank, offset, +1) for offset in self.offsets]

    def weights(self, rank: int) -> list[float]:
        return [1.0] * (1 + len(self.offsets))

    def _moved(self, rank: int, offset: tuple[int, ...], sign: int) -> int:
        place = 0
        stride = math.prod(self.shape)
        for side, step in zip(self.shape, offset):
            stride //= side
            place += (rank // stride % side + sign * step) % side * stride
        return place


@dataclass(frozen=True)
class Table:
    """Row r: whom agent r reads; `shares` row r: its own weight and theirs, in the same order, up to a common factor."""

    peers: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    def in_peers(self, rank: int) -> list[int]:
        return list(self.peers[rank])

    def out_peers(self, rank: int) -> list[int]:
        return [reader for reader, peers in enumerate(self.peers) if rank in peers]

    def weights(self, rank: int) -> list[float]:
        return list(self.shares[rank])


Round = Shifts | Table


def _powers(n: int) -> list[int]:
    """Return 1, 2, 4, ... below n."""
    return [1 << i for i in range((n - 1).bit_length())]


def _ring(n: int, *rounds: list[int]) -> tuple[Shifts, ...]:
    """Return rounds of offsets on a ring of n: circulant graphs."""
    return tuple(Shifts((n,), tuple((offset,) for offset in offsets)) for offsets in rounds)


def sides(n: int) -> tuple[int, int]:
    """Return the two factors of n that lie nearest to each other, the smaller first: 4 × 8 for 32, 1 × n for a prime."""
    short = max(side for side in range(1, math.isqrt(n) + 1) if n % side == 0)
    return short, n // short


def _torus(n: int) -> tuple[Shifts, ...]:
    """Return up to four neighbours on the grid: on a side of 2 both ways lead to the same agent, on a side of 1 to oneself."""
    rows, columns = sides(n)
    steps = dict.fromkeys([(0, 1 % columns), (0, columns - 1), (1 % rows, 0), (rows - 1, 0)])
    return (Shifts((rows, columns), tuple(step for step in steps if any(step))),)


def base(n: int, k: int = 1) -> tuple[Table, ...]:
    """Return the rounds of the Base-(k+1) graph: at most k peers, and the exact mean after them (Takezawa et al. 2023)."""
    return tuple(_symmetric(n, links) for links in base_graph(range(n), k))


def _symmetric(size: int, links: Links) -> Table:
    """Return the round in which linked agents read each other; an agent's own weight is what is missing of 1."""
    rows: list[dict[int, float]] = [{} for _ in range(size)]
    for (one, other), weight in links.items():
        rows[one][other] = rows[other][one] = weight
    return Table(tuple(map(tuple, rows)), tuple((1 - math.fsum(row.values()), *row.values()) for row in rows))


BUILT_IN: dict[str, Callable[[int], tuple[Round, ...]]] = {
    "ring": lambda n: _ring(n, [1]),
    "exponential": lambda n: _ring(n, _powers(n)),
    # At update k an agent reads the one 2^(k mod ceil(log2 n)) before it: ceil(log2 n) rounds reach everybody, and average
    # exactly when n is a power of two (Assran et al., Stochastic Gradient Push, 2019).
    "one-peer-exponential": lambda n: _ring(n, *([power] for power in _powers(n))),
    "complete": lambda n: _ring(n, list(range(1, n))),
    "torus": _torus,
    "base": base,
}


def hierarchical(nodes: Sequence[int], every: int) -> tuple[Table, ...]:
    """Return a ring inside each node at every update; at every `every`-th one beside it a ring over the nodes' first agents.

    Both matrices are doubly stochastic, and so is their mean, with which agents mix when both are there.

    Args:
        nodes: where each agent is.
    """
    members: dict[int, list[int]] = {}
    for agent, node in enumerate(nodes):
        members.setdefault(node, []).append(agent)
    inside = {agent: agents[i - 1] for agents in members.values() for i, agent in enumerate(agents)}
    first = [agents[0] for agents in members.values()]
    between = {agent: first[i - 1] for i, agent in enumerate(first)}
    return (*[_mean_of_rings(len(nodes), inside)] * (every - 1), _mean_of_rings(len(nodes), inside, between))


def _mean_of_rings(size: int, *rings: dict[int, int]) -> Table:
    """Average rings (reader → peer). An agent that is not in one, or alone in it, has only itself there."""
    rows = []
    for agent in range(size):
        shares = {agent: 0}
        for ring in rings:
            for other in (agent, ring.get(agent, agent)):
                shares[other] = shares.get(other, 0) + 1
        rows.append(shares)
    return Table(tuple(tuple(row)[1:] for row in rows), tuple(tuple(map(float, row.values())) for row in rows))


@dataclass(frozen=True)
class Topology:
    """A graph over `size` agents: the rounds of its period.

    Args:
        name: what messages call it.
        size: how many agents it has.
        rounds: of each a `Shifts` or a `Table` of gala_mpi.topology, used in turn, one a mix (docs/graphs.md has an example).

    Attributes:
        mutual: whether whom an agent reads reads it too and, in a round, nobody further: a lost agent then cuts a round in two.
    """

    name: str
    size: int
    rounds: tuple[Round, ...]
    mutual: bool = False

    @property
    def period(self) -> int:
        """How many rounds there are until they repeat."""
        return len(self.rounds)

    @property
    def commutes(self) -> bool:
        """Whether the rounds' matrices have the same product in any order: they are shifts on one grid."""
        return len({round.shape if isinstance(round, Shifts) else round for round in self.rounds}) == 1

    @property
    def degree(self) -> int:
        """The largest number of in-peers that an agent has in any round."""
        return max(
            len(round.offsets) if isinstance(round, Shifts) else max(map(len, round.peers), default=0) for round in self.rounds
        )

    def in_peers(self, rank: int, round: int) -> list[int]:
        """Return whom `rank` reads at `round`."""
        return self.rounds[round % self.period].in_peers(rank)

    def out_peers(self, rank: int, round: int) -> list[int]:
        """Return who reads `rank` at `round`."""
        return self.rounds[round % self.period].out_peers(rank)

    def weights(self, rank: int, round: int) -> list[float]:
        """Return the weights of `rank` itself and of its in-peers in their order; their sum is 1."""
        weights = self.rounds[round % self.period].weights(rank)
        return [weight / math.fsum(weights) for weight in weights]

    def neighbours(self, rank: int) -> list[int]:
        """Return everybody whom `rank` reads in any round, nearest before it on the ring of ranks first."""
        peers = set(chain.from_iterable(round.in_peers(rank) for round in self.rounds))
        return sorted(peers, key=lambda peer: (rank - peer) % self.size)

    def mixing_matrix(self, round: int) -> np.ndarray:
        """Return P of x_{k+1} = P x_k, float64 [size, size]: row r holds the weights with which r mixes."""
        matrix = np.zeros((self.size, self.size))
        for rank in range(self.size):
            matrix[rank, [rank, *self.in_peers(rank, round)]] = self.rounds[round % self.period].weights(rank)
        return matrix / matrix.sum(axis=1, keepdims=True)
