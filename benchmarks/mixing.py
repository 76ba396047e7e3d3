"""What do ways to mix bring, through the training program, and what do they cost? Scores at equal steps, a table.

    python benchmarks/mixing.py                       4 agents; results in mixing-results/; what is there is not done again
    python benchmarks/mixing.py --agents 6 --ways "topology ring" "exchange periodic, sync-updates 10"

Each way trains each task with several seeds. Scores are those of training, by the second and by the last quarter of its steps,
and that of the mean of the agents at the end, which takes the most probable actions; ± standard errors over seeds. MB an update
are what an agent reads in the mean, of the network gala on Pong; an all-reduce counts as its ring algorithm, which reads
2 (n − 1) / n vectors.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gala_mpi import open_run, topology
from gala_mpi.exchange import EXCHANGES
from gala_mpi.topology import Graph
from gala_mpi.topology.__main__ import GraphView

TASKS = {
    "CartPole-v1, A2C": "--env CartPole-v1 --total-steps 120000",
    "Acrobot-v1, PPO": "--env Acrobot-v1 --learner ppo --rollout-length 16 --ppo.epochs 4 --total-steps 80000",
}
GRAPHS = ("ring", "exponential", "one-peer-exponential", "base", "base:2", "base:3", "complete")
MEANS = ("exchange periodic, sync-updates 10", "exchange periodic, sync-updates 50")
OUTER = ("outer-momentum 0.9, outer-lr 0.7", "outer-momentum 0.9, outer-lr 0.1", "outer-momentum 0.5, outer-lr 0.5")
WAYS = (
    *(f"topology {graph}" for graph in GRAPHS),
    "exchange allreduce",
    *MEANS,
    *(f"{MEANS[0]}, {outer}" for outer in OUTER),
    "exchange none",
)


@dataclass(frozen=True)
class Options:
    """What do ways to mix bring, and what do they cost?"""

    agents: int = 4
    """How many agents, a rank each."""
    ways: tuple[str, ...] = WAYS
    """Flags of training, without their dashes and with commas between them."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Environments, by their names in TASKS."""
    seeds: int = 3
    """How many seeds."""
    episodes: int = 20
    """Games of a policy."""
    folder: Path = Path("mixing-results")
    """Where the runs are."""


def flags_of(way: str) -> str:
    return " ".join(f"--{flag}" for flag in way.split(", "))


def start(command: str) -> None:
    subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)


def scores(run: Path, flags: str, options: Options) -> list[float]:
    """Train and play, unless it is done; return the mean scores of two quarters of training and of the mean of all agents."""
    python = shlex.quote(sys.executable)
    if not (run.exists() and open_run(run).evaluations):
        shutil.rmtree(run, ignore_errors=True)
        start(f"mpirun -n {options.agents} {python} -m gala_mpi.train {flags} --run-dir {run}")
        start(f"{python} -m gala_mpi.evaluate {run} --policies mean --episodes {options.episodes}")
    found = open_run(run)
    games, _ = found.evaluations[-1]
    episodes = np.concatenate([found.episodes(rank) for rank in range(found.agents)])
    quarter = 4 * episodes["run_steps"] // (episodes["run_steps"].max() + 1)
    return [float(each.mean()) for each in (*(episodes["score"][quarter == number] for number in (1, 3)), games["score"])]


def reads(way: str, agents: int) -> float:
    """Return how many vectors an agent reads in an update, in the mean."""
    words = flags_of(way).split()
    if "--topology" in words:
        graph = topology.build(Graph(words[-1]), agents)
        return float(np.mean([len(graph.in_peers(rank, k)) for k in range(graph.period) for rank in range(agents)]))
    every = int(words[words.index("--sync-updates") + 1]) if "--sync-updates" in words else 1
    shares = EXCHANGES[words[1]].load().shares
    return 2 * (agents - 1) / agents / every if shares else 0.0


def main(options: Options) -> None:
    columns = [f"{task}: second quarter | last | mean of agents" for task in options.tasks]
    print(f"| {options.agents} agents | MB an update | {' | '.join(columns)} |\n|---|---|{3 * '---|' * len(columns)}")
    for way in options.ways:
        cells = [f"`{way}`", f"{reads(way, options.agents) * 4 * GraphView.parameters / 1e6:.2f}"]
        for task in options.tasks:
            names = [f"{options.agents} {task} {way} {seed}" for seed in range(options.seeds)]
            runs = [options.folder / name.replace(",", "").replace(" ", "_") for name in names]
            flags = f"{TASKS[task]} {flags_of(way)}"
            rows = np.array([scores(run, f"{flags} --seed {seed}", options) for seed, run in enumerate(runs)])
            errors = rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.full(3, np.nan)
            cells += [f"{mean:.0f} ± {error:.0f}" for mean, error in zip(rows.mean(axis=0), errors)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
