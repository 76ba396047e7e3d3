"""Graphs in which some agents are read more than others: to what do agents come, and what corrects it? One process, a table.

    python benchmarks/push_sum.py

Agents descend as in graphs.py, each towards a minimum of its own, on a graph in which all read agent 0 and the one before them.
Where an agent averages what it reads with weights that sum to 1 (rows), all come near a mean with the weights π of the graph,
not to the least loss of all. What corrects it, in lock-step:

* steps: agent i scales its steps by 1 / (n π_i). An optimiser like Adam would have to scale its learning rate.
* weights: agent i goes π_i / max π of the way to what it reads, by which columns sum to 1 as well.
* push-sum (Assran et al. 2019, SGP): the weights of an agent's readers sum to 1 (columns), and a number is sent along with each
  vector, by which it is divided.

*Bias* is how far the mean of the agents is from where the loss is least, without noise; *loss* how far an agent is above the
least one, with noise, as a multiple of what it is on the complete graph. Means over the last third of the updates, and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tyro

from graphs import CURVATURE, LENGTH, NOISE, STEP

WAYS = ("rows", "steps", "weights", "push-sum", "complete")


@dataclass(frozen=True)
class Options:
    """To what do agents come on a skewed graph?"""

    agents: tuple[int, ...] = (4, 6)
    """How many agents."""
    seeds: int = 3
    """How many seeds."""
    updates: int = 600
    """Updates of an agent."""


def skewed(agents: int) -> np.ndarray:
    """Return the weights of a graph in which all read agent 0 and the one before them, equally; rows sum to 1."""
    reads = np.eye(agents) + np.roll(np.eye(agents), 1, axis=0)
    reads[:, 0] = 1
    return reads / reads.sum(axis=1, keepdims=True)


def shares(rows: np.ndarray) -> np.ndarray:
    """Return π, how much each agent counts in what all come to."""
    values, vectors = np.linalg.eig(rows.T)
    largest = vectors[:, np.argmax(values.real)].real
    return largest / largest.sum()


def descent(way: str, agents: int, seed: int, updates: int, noise: float) -> tuple[float, float]:
    """Return the bias and the loss."""
    random, rows = np.random.default_rng(seed), skewed(agents)
    goals = random.standard_normal((agents, LENGTH))
    best, scale = goals.mean(axis=0), np.ones((agents, 1))
    mixing = rows
    if way == "steps":
        scale = 1 / (agents * shares(rows)[:, None])
    elif way == "weights":
        mixing = np.eye(agents) - (shares(rows) / shares(rows).max())[:, None] * (np.eye(agents) - rows)
    elif way == "push-sum":
        mixing = rows / rows.sum(axis=0)
    elif way == "complete":
        mixing = np.full((agents, agents), 1 / agents)
    x, sent = np.zeros((agents, LENGTH)), np.ones((agents, 1))
    places = []
    for update in range(updates):
        gradient = CURVATURE * (x / sent - goals) + noise * random.standard_normal(x.shape)
        x, sent = mixing @ (x - STEP * scale * gradient), mixing @ sent  # where rows sum to 1, so do the numbers
        if update >= updates * 2 // 3:
            places.append(x / sent)
    away = np.array(places) - best
    return float(np.linalg.norm(away.mean(axis=(0, 1)))), float((0.5 * CURVATURE * away**2).sum(axis=-1).mean())


def main(options: Options) -> None:
    print("| agents | | π, least and most | bias | loss, complete = 1 |\n|---|---|---|---|---|")
    for agents in options.agents:
        pi = shares(skewed(agents))
        seeds = range(options.seeds)
        complete = np.array([descent("complete", agents, seed, options.updates, NOISE)[1] for seed in seeds])
        for way in WAYS:
            bias = np.mean([descent(way, agents, seed, options.updates, 0.0)[0] for seed in seeds])
            losses = np.array([descent(way, agents, seed, options.updates, NOISE)[1] for seed in seeds]) / complete
            error = losses.std(ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else np.nan
            print(f"| {agents} | {way} | {pi.min():.3f}, {pi.max():.3f} | {bias:.2f} | {losses.mean():.2f} ± {error:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
