"""Is the moving average of parameters a better policy, and a steadier one from checkpoint to checkpoint?

    python benchmarks/ema.py                  results in ema-results/; what is there is not done again

Two agents train in lock-step, with several seeds. Every checkpoint is then played as the mean of the agents and as the mean of
their moving averages (--ema), the same games. *Score* is the mean over checkpoints; *drift* by how much it changes from one
to the next, in the mean.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gala_mpi import open_run
from gala_mpi.run import checkpoints

TASKS = {
    "CartPole-v1, A2C, --ema 0.99": "--env CartPole-v1 --ema 0.99 --total-steps 160000 --checkpoint-updates 100",
    "Acrobot-v1, PPO, --ema 0.8": "--env Acrobot-v1 --learner ppo --ema 0.8 --total-steps 160000 --checkpoint-updates 6",
}
ALWAYS = "--staleness 0 --exact-resume --keep-checkpoints 100"
POLICIES = {"mean": -1, "ema": -2}  # their numbers in evaluations


@dataclass(frozen=True)
class Options:
    """Is the moving average of parameters a better policy?"""

    seeds: int = 3
    """How many seeds."""
    episodes: int = 20
    """Games of a policy."""
    folder: Path = Path("ema-results")
    """Where the runs are."""


def start(command: str) -> None:
    subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)


def scores(run: Path, flags: str, seed: int, episodes: int) -> dict[str, np.ndarray]:
    """Train, unless it is done, and return the mean scores of all checkpoints but the last, the same as the one before."""
    python = shlex.quote(sys.executable)
    if not run.exists():
        start(f"mpirun -n 2 {python} -m gala_mpi.train {flags} {ALWAYS} --seed {seed} --run-dir {run}")
    numbers = checkpoints.complete(run)[:-1]
    for number, (policies, code) in itertools.product(numbers, POLICIES.items()):
        if (number, code) not in played(run):
            start(f"{python} -m gala_mpi.evaluate {run} --checkpoint {number} --policies {policies} --episodes {episodes}")
    return {policies: np.array([played(run)[number, code] for number in numbers]) for policies, code in POLICIES.items()}


def played(run: Path) -> dict[tuple[int, int], float]:
    """Return the mean scores of a run's evaluations, by checkpoint and policy."""
    return {
        (int(about["checkpoint"]), int(games["policy"][0])): games["score"].mean() for games, about in open_run(run).evaluations
    }


def main(options: Options) -> None:
    print("| | score, mean | score, ema | drift, mean | drift, ema |\n|---|---|---|---|---|")
    for number, (name, flags) in enumerate(TASKS.items()):
        rows = []
        for seed in range(1, options.seeds + 1):
            found = scores(options.folder / f"{number}-{seed}", flags, seed, options.episodes)
            rows.append([measure(found[policies]) for measure in (np.mean, drift) for policies in POLICIES])
        means, errors = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / len(rows) ** 0.5
        print(f"| {name} | " + " | ".join(f"{mean:.0f} ± {error:.0f}" for mean, error in zip(means, errors)) + " |", flush=True)


def drift(means: np.ndarray) -> float:
    return float(np.abs(np.diff(means)).mean())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
