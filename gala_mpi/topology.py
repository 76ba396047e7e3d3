"""Who reads whom. Pure arithmetic: no MPI, no state.

Every graph here is circulant: at round k, agent r reads the agents r - d (mod n) for each offset d of that round. A graph
is therefore a table of offsets, one tuple a round, used in turn. Mixing weights are uniform, 1 / (1 + |in-peers|), as in
GALA (Assran et al. 2019); every such matrix is doubly stochastic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Name = Literal["ring", "exponential", "one-peer-exponential", "complete"]
Offsets = tuple[tuple[int, ...], ...]


def _powers(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... below n."""
    return tuple(1 << i for i in range((n - 1).bit_length()))


OFFSETS: dict[str, Callable[[int], Offsets]] = {
    "ring": lambda n: ((1,),),
    "exponential": lambda n: (_powers(n),),
    # At my update k I read the agent 2^(k mod ceil(log2 n)) before me: ceil(log2 n) rounds reach everybody, and average
    # exactly when n is a power of two (Assran et al., Stochastic Gradient Push, 2019).
    "one-peer-exponential": lambda n: tuple((power,) for power in _powers(n)),
    "complete": lambda n: (tuple(range(1, n)),),
}
assert set(OFFSETS) == set(get_args(Name))


@dataclass(frozen=True)
class Topology:
    """A graph over `size` agents: one tuple of offsets for each round of its period."""

    name: str
    size: int
    rounds: Offsets

    @property
    def degree(self) -> int:
        """The largest number of in-peers that an agent has in any round."""
        return max(len(offsets) for offsets in self.rounds)

    def in_peers(self, rank: int, round: int) -> list[int]:
        """Whom `rank` reads at `round`."""
        return [(rank - offset) % self.size for offset in self.rounds[round % len(self.rounds)]]

    def out_peers(self, rank: int, round: int) -> list[int]:
        """Who reads `rank` at `round`."""
        return [(rank + offset) % self.size for offset in self.rounds[round % len(self.rounds)]]

    def neighbours(self, rank: int) -> list[int]:
        """Everybody whom `rank` reads in any round, nearest first."""
        offsets = sorted({offset for offsets in self.rounds for offset in offsets})
        return [(rank - offset) % self.size for offset in offsets]

    def mixing_matrix(self, round: int) -> np.ndarray:
        """P of x_{k+1} = P x_k, float64 [size, size]: row r holds the weights with which r mixes."""
        matrix = np.eye(self.size)
        for rank in range(self.size):
            matrix[rank, self.in_peers(rank, round)] = 1
        return matrix / matrix.sum(axis=1, keepdims=True)


def build(name: str, size: int) -> Topology:
    """The graph `name` over `size` agents. One agent has no peers under any name."""
    return Topology(name, size, OFFSETS[name](size) if size > 1 else ((),))


def second_singular_value(matrix: np.ndarray) -> float:
    """β: how much of a disagreement survives one round of mixing with a doubly stochastic matrix (0 for one agent)."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[1]) if len(values) > 1 else 0.0


def mixing_rate(graph: Topology) -> float:
    """β of one whole period of `graph`: the second singular value of the product of its rounds' matrices."""
    product = np.eye(graph.size)
    for round in range(len(graph.rounds)):
        product = graph.mixing_matrix(round) @ product
    return second_singular_value(product)
