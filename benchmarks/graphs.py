"""How well do graphs average, and what do they cost? Agents in lock-step on two tasks, a table of all graphs.

    mpirun -n 4 python benchmarks/graphs.py           by gala_mpi.Gossip, an agent a rank
    python benchmarks/graphs.py --agents 16           in one process, by the graphs' matrices: the same numbers

* Averaging: agents begin with normal random vectors and mix. How many mixes until they are 10⁶ times nearer to each other
  than at the beginning; of random peers, the mean over seeds.
* Noisy descent: agent i follows the gradient of ½ (x − c_i)ᵀ A (x − c_i), with c_i of its own, plus noise, and mixes after
  each step. Over the last third of the updates: how far the agents are from their mean (root mean square), and how far above
  the least one the loss of an agent is, as a multiple of what it is on the complete graph with the same seed.
* Digits: a small network learns those of scikit-learn, of which each agent has some kinds only, by SGD, and mixes after each
  step: accuracy in % of an agent on digits of all kinds that nobody has learnt from. Its error is that of the difference to
  the complete graph with the same seed.

MB a mix are what an agent reads in the mean over rounds and agents, of the network gala on Pong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from mpi4py import MPI

import gala_mpi
from gala_mpi import topology
from gala_mpi.topology import Graph, Shifts, Topology
from gala_mpi.topology.__main__ import GraphView

LENGTH = 1000  # of an agent's vector
NEARER, MOST_MIXES = 1e-6, 2000
STEP, NOISE = 0.1, 1.0
HIDDEN, KINDS = 32, 10  # units of the network for digits
BATCH, RATE = 16, 0.3  # of SGD
CURVATURE = np.geomspace(0.1, 1, LENGTH)  # the diagonal of A


@dataclass(frozen=True)
class Options:
    """How well do graphs average?"""

    agents: int = 0
    """How many agents, in one process. 0: one a rank."""
    graphs: tuple[str, ...] = ("ring", "exponential", "one-peer-exponential", "base", "base:2", "base:3", "equidyn", "complete")
    """Graphs of the table; equidyn is random peers, drawn by each seed."""
    seeds: int = 3
    """How many seeds."""
    updates: int = 300
    """Updates of the noisy descent, and on digits."""


def built(name: str, size: int, seed: int) -> Topology:
    """Return a graph by its name, or OD-EquiDyn (Song et al., NeurIPS 2022): at an update all agents read who stands by one
    offset before them, which is drawn from all offsets with a seed that they share."""
    if name != "equidyn":
        return topology.build(Graph(name), size)
    offsets = np.random.default_rng(seed).integers(1, size, MOST_MIXES).tolist()
    return Topology(name, size, tuple(Shifts((size,), ((offset,),)) for offset in offsets))


class Matrices:
    """All agents in one process. An agent's vector is a row of x, [agents, length]."""

    def __init__(self, graph: Topology, length: int):
        self.agents, self.mine, self._graph, self._update = graph.size, range(graph.size), graph, 0

    def mix(self, x: np.ndarray) -> np.ndarray:
        self._update += 1
        return self._graph.mixing_matrix(self._update) @ x

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return the mean over all agents, [length]."""
        return x.mean(axis=0)

    def close(self) -> None:
        """Nothing is open."""


class Ranks:
    """One agent a rank: x is [1, length]."""

    def __init__(self, graph: Topology, length: int):
        self.agents, self.mine = graph.size, [MPI.COMM_WORLD.rank]
        self._vector = torch.zeros(length, dtype=torch.float64)
        self._gossip = gala_mpi.Gossip([self._vector], graph, staleness=0, state={"calls": 0, "version": 0})

    def mix(self, x: np.ndarray) -> np.ndarray:
        self._vector.copy_(torch.from_numpy(x[0]))
        self._gossip.mix()
        return self._vector.numpy()[None].copy()

    def mean(self, x: np.ndarray) -> np.ndarray:
        return MPI.COMM_WORLD.allreduce(x[0]) / self.agents

    def close(self) -> None:
        self._gossip.close()


def spread(agents: Matrices | Ranks, x: np.ndarray) -> float:
    """Return the root mean square distance of the agents to their mean."""
    squares = ((x - agents.mean(x)) ** 2).sum(axis=1, keepdims=True)
    return float(agents.mean(squares)[0] ** 0.5)


def averaging(agents: Matrices | Ranks, seed: int) -> int:
    """Return after how many mixes the agents are nearer."""
    x = np.stack([np.random.default_rng((seed, agent)).standard_normal(LENGTH) for agent in agents.mine])
    begin = spread(agents, x)
    for mixes in range(1, MOST_MIXES):
        x = agents.mix(x)
        if spread(agents, x) <= NEARER * begin:
            return mixes
    return MOST_MIXES


def descent(agents: Matrices | Ranks, seed: int, updates: int) -> tuple[float, float]:
    """Return the agents' distance to their mean and their loss above the least, means over the last third of the updates."""
    streams = [np.random.default_rng((seed, agent)) for agent in agents.mine]
    goals = np.stack([stream.standard_normal(LENGTH) for stream in streams])
    goal, x = agents.mean(goals), np.zeros_like(goals)
    distances, losses = [], []
    for update in range(updates):
        noise = NOISE * np.stack([stream.standard_normal(LENGTH) for stream in streams])
        x = agents.mix(x - STEP * (CURVATURE * (x - goals) + noise))
        if update >= updates * 2 // 3:
            distances.append(spread(agents, x))
            losses.append(agents.mean(0.5 * (CURVATURE * (x - goal) ** 2).sum(axis=1, keepdims=True))[0])
    return float(np.mean(distances)), float(np.mean(losses))


SHAPES = ((64, HIDDEN), (1, HIDDEN), (HIDDEN, KINDS), (1, KINDS))  # weights and biases of the network for digits
NETWORK = sum(a * b for a, b in SHAPES)


def outputs(x: np.ndarray, images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return the parts of a network's vector, the hidden units [N, HIDDEN], and the probabilities of the kinds [N, KINDS]."""
    ends = np.cumsum([a * b for a, b in SHAPES])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(x, ends), SHAPES)]
    hidden = np.tanh(images @ parts[0] + parts[1])
    logits = hidden @ parts[2] + parts[3]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return parts, hidden, odds / odds.sum(axis=1, keepdims=True)


def slope(x: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the gradient of the cross-entropy, [NETWORK]."""
    parts, hidden, probabilities = outputs(x, images)
    error = (probabilities - np.eye(KINDS)[labels]) / len(images)
    below = (error @ parts[2].T) * (1 - hidden**2)
    return np.concatenate([each.ravel() for each in (images.T @ below, below.sum(0), hidden.T @ error, error.sum(0))])


def digits(agents: Matrices | Ranks, seed: int, updates: int) -> float:
    """Return the accuracy of an agent in %, the mean over agents and the last tenth of the updates."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, order = images / 16, np.random.default_rng(seed).permutation(len(labels))
    tested, learnt = np.split(order, [len(order) // 5])
    own = np.array_split(learnt[np.argsort(labels[learnt], kind="stable")], agents.agents)
    streams = {agent: np.random.default_rng((seed, agent)) for agent in agents.mine}
    weights = np.random.default_rng(seed).standard_normal(NETWORK) / 8
    x, found = np.stack([weights for _ in agents.mine]), []
    for update in range(updates):
        chosen = [streams[agent].choice(own[agent], BATCH) for agent in agents.mine]
        x = agents.mix(x - RATE * np.stack([slope(mine, images[few], labels[few]) for mine, few in zip(x, chosen)]))
        if update >= updates * 9 // 10:
            right = [(outputs(mine, images[tested])[2].argmax(axis=1) == labels[tested]).mean() for mine in x]
            found.append(agents.mean(np.array(right)[:, None])[0])
    return 100 * float(np.mean(found))


def measured(name: str, options: Options) -> tuple[float, np.ndarray]:
    """Return how many peers an agent reads in an update, and for each seed mixes, distance, loss and accuracy."""
    rows = []
    for seed in range(options.seeds):
        size = options.agents or MPI.COMM_WORLD.size
        graph = built(name, size, seed)
        found = []
        for task, length in (
            (averaging, LENGTH),
            (lambda agents, seed: descent(agents, seed, options.updates), LENGTH),
            (lambda agents, seed: digits(agents, seed, options.updates), NETWORK),
        ):
            agents = Matrices(graph, length) if options.agents else Ranks(graph, length)
            found.append(task(agents, seed))
            agents.close()
        rows.append([found[0], *found[1], found[2]])
    reads = np.mean([len(graph.in_peers(rank, k)) for k in range(graph.period) for rank in range(size)])
    return float(reads), np.array(rows)


def main(options: Options) -> None:
    every = {name: measured(name, options) for name in dict.fromkeys([*options.graphs, "complete"])}
    if MPI.COMM_WORLD.rank:
        return
    agents = options.agents or MPI.COMM_WORLD.size
    columns = ["MB a mix", "mixes until 10⁶ times nearer", "noisy descent: distance", "loss, complete = 1", "digits, %"]
    print(f"| {agents} agents | {' | '.join(columns)} |\n|---|---|---|---|---|---|")
    best = every["complete"][1]
    for name in options.graphs:
        reads, rows = every[name]
        mixes, distance, _, accuracy = rows.mean(axis=0)
        losses, below = rows[:, 2] / best[:, 2], rows[:, 3] - best[:, 3]
        cells = [name, f"{reads * 4 * GraphView.parameters / 1e6:.2f}", f"{mixes:.3g}", f"{distance:.2f}"]
        cells += [f"{losses.mean():.3f} ± {error(losses):.3f}", f"{accuracy:.1f} ± {error(below):.1f}"]
        print(f"| {' | '.join(cells)} |")


def error(values: np.ndarray) -> float:
    """Return the standard error of the mean."""
    return values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
