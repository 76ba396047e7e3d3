"""Runs of gossip: real mixing of real vectors, written as a run writes them; and what was mixed, computed forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from pathlib import Path

import h5py
import numpy as np
from recorded import STEPS, begin, update_rows, write

from gala_mpi import topology
from gala_mpi.run import Run
from gala_mpi.run.tables import TABLES
from gala_mpi.topology import Graph

STEP, SIZE = 0.01, 4096


def gossip_run(path: Path, graph: topology.Topology, updates: int, late: float = 0.0, seed: int = 0) -> Path:
    """Agents that walk at random and mix; sketches are the vectors themselves.

    Args:
        late: how often a message does not come (then nothing is mixed), and how often it is an older or newer one.
    """
    n, random = graph.size, np.random.default_rng(seed)
    run_dir = begin(path, agents=n, total_steps=updates * STEPS * n, topology=Graph(graph.name))
    with h5py.File(run_dir / "run.h5", "r+") as file:
        file["starts/0"].attrs["beta"] = topology.mixing_rate(graph)
        file["starts/0"].attrs["period"] = graph.period
    x = {(rank, 0): np.zeros(SIZE) for rank in range(n)}
    y: dict[tuple[int, int], np.ndarray] = {}
    blank = np.zeros(updates, TABLES["sketches"])
    tables = [{"updates": update_rows(1, updates), "mixes": [], "sketches": blank.copy()} for _ in range(n)]
    at = [0] * n
    while min(at) < updates:
        rank = int(random.choice([r for r in range(n) if at[r] < updates])) if late else min(range(n), key=lambda r: at[r])
        k = at[rank] = at[rank] + 1
        step = random.normal(size=SIZE)
        step *= STEP * random.uniform(0.2, 1) / np.linalg.norm(step)
        y[rank, k] = x[rank, k - 1] + step
        tables[rank]["updates"]["step_norm"][k - 1] = np.linalg.norm(step)
        tables[rank]["sketches"][k - 1] = (k, np.zeros(SIZE), step)
        if late:
            mix(rank, k, graph, x, y, tables, {peer: at[peer] for peer in range(n)}, random.random() < late)
        elif rank == n - 1:
            for other in range(n):
                mix(other, k, graph, x, y, tables, dict.fromkeys(range(n), k), False)
    for rank, table in enumerate(tables):
        for k in range(1, updates + 1):
            table["sketches"]["parameters"][k - 1] = x[rank, k]
        table["mixes"] = np.array(table["mixes"], TABLES["mixes"])
        write(run_dir, rank, 0, **table)
    return run_dir


def mix(rank, k, graph, x, y, tables, versions, missed) -> None:
    peers = graph.in_peers(rank, k)
    x[rank, k] = y[rank, k].copy()
    if missed or any(versions[peer] == 0 for peer in peers):
        return
    own, *weights = graph.weights(rank, k)
    x[rank, k] = own * y[rank, k] + sum(weight * y[peer, versions[peer]] for peer, weight in zip(peers, weights))
    tables[rank]["mixes"] += [(k, peer, versions[peer], weight) for peer, weight in zip(peers, weights)]


def forwards(
    run: Run, steps: dict[tuple[int, int], np.ndarray], begun: np.ndarray, fixed: Set[tuple[int, int]] = frozenset()
) -> Callable[[int, int], np.ndarray]:
    """Return x(rank, update) as the definition has it: from the beginning on, an agent's step, then what it mixed.

    Args:
        steps: of (rank, version).
        begun: what each agent begins with, [agents, ...].
        fixed: (rank, version) of what is published as the agent's `begun`, whatever went before.
    """

    @functools.cache
    def messages(rank: int) -> dict[int, list[tuple]]:
        return {k: [row for row in run.mixes(rank).tolist() if row[0] == k] for k in set(run.mixes(rank)["update"].tolist())}

    @functools.cache
    def published(rank: int, version: int) -> np.ndarray:
        if not version or (rank, version) in fixed:
            return begun[rank]
        return x(rank, version - 1) + steps[rank, version]

    @functools.cache
    def x(rank: int, update: int) -> np.ndarray:
        mixed = messages(rank).get(update, [])
        mine = 1 - sum(weight for *_, weight in mixed)
        return mine * published(rank, update) + sum(weight * published(j, v) for _, j, v, weight in mixed)

    return x
