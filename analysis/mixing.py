"""What every agent mixed, as one sparse matrix: each vector that an agent published as a weighted sum of earlier ones.

x_i(k) are the parameters of agent i after update k, y_i(v) = x_i(v-1) + s_i(v) what it publishes after the optimiser's step
s_i(v), and x_i(k) = w_ii y_i(k) + Σ_j w_ij y_j(v_j) for the messages it mixed, by the table `mixes`. The y are called nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from scipy.sparse import csr_array, identity
from scipy.sparse.linalg import SuperLU, splu

import checkout  # noqa: F401
from gala_mpi.run import Run
from gala_mpi.run.files import reading
from gala_mpi.run.parts import UNREADABLE

MOST_BLOCKS = 200  # in which the nodes are gone through


@dataclass(frozen=True)
class Block:
    """Nodes first ≤ p < end, in the order of `Mixing`.

    Attributes:
        solver: of c = b + Mᵀ c, M being the weights of nodes of the block in nodes of the block.
        sources: the earlier nodes of which nodes of the block are made.
        weights: theirs, [nodes, sources].
    """

    first: int
    end: int
    solver: SuperLU
    sources: np.ndarray
    weights: csr_array


class Mixing:
    """The vectors that the agents of a run published in its newest start, in an order in which they can have come to be.

    The order is that of time, but each node comes after those that it is made of. The first node of an agent is what it began
    with. Nodes that rest on rows that cannot be read are left out.

    Args:
        clip: take for a message that is newer than all rows of its agent that can be read (a killed agent's last ones, or those
            that a live one has yet to write) the newest that there is of this agent. Else nothing is made of it.

    Attributes:
        agents: how many there are.
        clipped: how many messages of each agent were taken so, [agents].
        begun: the update counter of every agent at the start, [agents].
        last: its newest one that was read.
        rank: whose a node is, [nodes].
        version: the update counter at which it was published, [nodes].
    """

    def __init__(self, run: Run, clip: bool = False):
        self.agents, self._clip = run.agents, clip
        self.clipped = np.zeros(run.agents, int)
        self.begun = np.array([beginning(run, rank) for rank in range(run.agents)])
        tables = [_after(run.updates(rank), begun) for rank, begun in enumerate(self.begun)]
        counts = np.array([np.cumprod(t["update"] == b + 1 + np.arange(len(t))).sum() for t, b in zip(tables, self.begun)], int)
        self.last = self.begun + counts
        self._offset = np.concatenate([[0], np.cumsum(counts + 1)])
        self._read(run)
        hours = np.concatenate([np.append([-np.inf, 0], t["hours"])[: n + 1] for t, n in zip(tables, counts)])
        self._sort(hours)  # before a node
        self.rank = np.repeat(np.arange(self.agents), counts + 1)[self._order]
        self.version = self._order - self._offset[self.rank] + self.begun[self.rank]
        self._matrix = self._weights()
        self._size = self.agents * -(-len(self._order) // (self.agents * MOST_BLOCKS))  # whole rounds, where agents are in step
        self._blocks: dict[int, Block] = {}

    def _read(self, run: Run) -> None:
        """Read the messages: of output x_i(k), which has the number of node y_i(k), those from `_starts[n]` on."""
        peers, weights, numbers = [], [], []
        for rank in range(self.agents):
            rows = _after(run.mixes(rank), self.begun[rank])
            rows = rows[rows["update"] <= self.last[rank]]
            sender = np.minimum(rows["peer"], self.agents - 1)
            version = np.maximum(rows["version"], self.begun[sender])
            if self._clip:
                self.clipped += np.bincount(sender[version > self.last[sender]], minlength=self.agents)
                version = np.minimum(version, self.last[sender])
            known = (version <= self.last[sender]) & (rows["peer"] < self.agents)
            peers.append(np.where(known, self._offset[sender] + version - self.begun[sender], -1))
            weights.append(rows["weight"])
            numbers.append(self._offset[rank] + rows["update"] - self.begun[rank])
        self._messages, self._shares = np.concatenate(peers), np.concatenate(weights)
        number = np.concatenate(numbers)
        nodes = int(self._offset[-1])
        self._starts = np.searchsorted(number, np.arange(nodes + 1))
        self._own = 1 - np.bincount(number, self._shares, nodes)

    def _sort(self, hours: np.ndarray) -> None:
        starts, messages, times = self._starts.tolist(), self._messages.tolist(), hours.tolist()
        following, ends = self._offset[:-1].tolist(), self._offset[1:].tolist()
        firsts = set(following)
        place, order = [-1] * len(times), []
        waiting: dict[int, list[int]] = defaultdict(list)
        ready = [(times[node], rank) for rank, node in enumerate(following)]
        heapify(ready)
        while ready:
            _, rank = heappop(ready)
            node = following[rank]
            needed = () if node in firsts else messages[starts[node - 1] : starts[node]]
            absent = next((source for source in needed if source < 0 or place[source] < 0), None)
            if absent is not None:
                waiting[absent].append(rank)
                continue
            place[node] = len(order)
            order.append(node)
            following[rank] = node + 1
            if node + 1 < ends[rank]:
                heappush(ready, (times[node + 1], rank))
            for other in waiting.pop(node, ()):
                heappush(ready, (times[following[other]], other))
        self._place, self._order = np.array(place), np.array(order, int)

    def _weights(self) -> csr_array:
        """Return of each node its weights in earlier ones, [nodes, nodes]: y_i(v) is made of what x_i(v-1) is made of."""
        made = np.setdiff1d(self._order, self._offset[:-1])  # all but what agents began with
        output = made - 1
        counts = self._starts[made] - self._starts[output]
        flat = np.repeat(self._starts[output] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        rows = self._place[np.concatenate([made, np.repeat(made, counts)])]
        columns = self._place[np.concatenate([output, self._messages[flat]])]
        values = np.concatenate([self._own[output], self._shares[flat]])
        return csr_array((values, (rows, columns)), shape=(len(self._order),) * 2)

    def output(self, rank: int, update: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the nodes of which x_rank(update) is made, and their weights; None where some is not known."""
        if not self.begun[rank] <= update <= self.last[rank]:
            return None
        number = self._offset[rank] + update - self.begun[rank]
        messages = slice(self._starts[number], self._starts[number + 1])
        numbers = np.append(self._messages[messages], number)
        if (numbers < 0).any() or (self._place[numbers] < 0).any():
            return None
        return self._place[numbers], np.append(self._shares[messages], self._own[number])

    def newest(self, rank: int) -> int:
        """Return the newest update of an agent of which `output` is known."""
        return next(u for u in range(self.last[rank], self.begun[rank] - 1, -1) if self.output(rank, u))

    def back(self, nodes: np.ndarray, coefficients: np.ndarray) -> Iterator[tuple[Block, np.ndarray, np.ndarray, np.ndarray]]:
        """Go back from sums of nodes through all they are made of, in blocks, the newest first.

        Args:
            nodes: [m]; may name a node twice.
            coefficients: theirs in each of r sums, [m, r].

        Yields:
            A block; the coefficients of its steps s_j(v) in the sums, [nodes of the block, r]; the earlier nodes of which the
            sums are made but for later steps; and the coefficients of these, [earlier nodes, r].
        """
        pending = np.zeros((len(self._order), coefficients.shape[1]))
        np.add.at(pending, nodes, coefficients)
        open_nodes = np.unique(nodes)
        for number in range(open_nodes[-1] // self._size, -1, -1):
            block = self._block(number)
            share = block.solver.solve(pending[block.first : block.end])
            pending[block.sources] += block.weights.T @ share
            open_nodes = np.union1d(open_nodes[open_nodes < block.first], block.sources)
            yield block, share, open_nodes, pending[open_nodes]

    def _block(self, number: int) -> Block:
        if number not in self._blocks:
            first, end = number * self._size, min((number + 1) * self._size, len(self._order))
            rows = self._matrix[first:end]
            within = identity(end - first, format="csc") - rows[:, first:end].T
            # Triangular already: pivoting could only fill it.
            solver = splu(within.tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0)
            sources = np.unique(rows.indices[rows.indices < first])
            self._blocks[number] = Block(first, end, solver, sources, rows[:, sources])
        return self._blocks[number]


def beginning(run: Run, rank: int) -> int:
    """Return the update counter of an agent at the newest start of its run."""
    newest = run.starts[-1].get("resumed_from", 0) if run.starts else 0
    counters = []
    for part in run.parts[rank]:
        try:
            with reading(part.path) as file:
                if part.agents in (0, run.agents) and file.attrs.get("resumed_from", newest) == newest:
                    counters.append(part.after_update)
        except UNREADABLE:  # told when its rows are read
            continue
    others = [part.after_update for part in run.leading_parts]
    return min(counters, default=others[-1] if others else 0)


def _after(rows: np.ndarray, update: int) -> np.ndarray:
    return rows[rows["update"] > update]
