"""Environments of all kinds, each trained and evaluated by one command a piece: do their scores rise?

    python benchmarks/environments.py                    what is not done yet; results in environments-results/
    python benchmarks/environments.py taxi halfcheetah   some of them

A run that is stopped is resumed. Optional packages: pip install minigrid, and -e .[envpool,mujoco].
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from gala_mpi import open_run
from gala_mpi.errors import RESUME

FOLDER = Path("environments-results")
OF_NUMBERS = "--normalise-observations --normalise-rewards --total-steps 1000000"
RUNS = {
    "own": "--env my_poles:MyPole-v0 --total-steps 200000",
    "minigrid": "--env minigrid:MiniGrid-Empty-5x5-v0 --total-steps 400000",
    "masked": "--env my_poles:MaskedPole-v0 --total-steps 200000",
    "taxi": "--env Taxi-v4 --rollout-length 20 --a2c.entropy-coefficient 0.05 --normalise-rewards --total-steps 2000000",
    "frozenlake": "--env FrozenLake-v1 --env-kwargs is_slippery=False --total-steps 200000",
    "blackjack": "--env Blackjack-v1 --total-steps 300000",
    "halfcheetah": f"--env HalfCheetah-v5 {OF_NUMBERS}",
    "envpool": f"--env envpool:HalfCheetah-v4 {OF_NUMBERS}",
    "workers": "--env CartPole-v1 --env-workers 2 --total-steps 300000",
    "breakout": "--env ALE/Breakout-v5 --total-steps 600000",
}
MODULE = """\
import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("MyPole-v0", CartPoleEnv, max_episode_steps=200)


class MaskedPole(gymnasium.Wrapper):  # of 10 actions, half of which push to the left, one of each kind may be taken
    def __init__(self):
        super().__init__(CartPoleEnv())
        self.action_space = gymnasium.spaces.Discrete(10)

    def masked(self, info):
        self.mask = np.zeros(10, np.int8)
        self.mask[2 * self.np_random.integers(0, 5, 2) + [0, 1]] = 1
        return info | {"action_mask": self.mask}

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return observation, self.masked(info)

    def step(self, action):
        assert self.mask[action], "an action that may not be taken"
        *step, info = self.env.step(action % 2)
        return *step, self.masked(info)


gymnasium.register("MaskedPole-v0", MaskedPole, max_episode_steps=200)
"""


@dataclass
class Options:
    """Train and evaluate environments of all kinds."""

    names: tyro.conf.Positional[list[str]] = field(default_factory=lambda: list(RUNS))
    """Which: own, minigrid, masked, taxi, frozenlake, blackjack, halfcheetah, envpool, workers, breakout."""
    ranks: int = 2
    """Agents of each."""


def main(options: Options) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "my_poles.py").write_text(MODULE)
    table = Table("command", "steps", "minutes", "first 100 games", "last 100", "20 games of the averaged policy")
    for name in options.names:
        table.add_row(*trained(name, options.ranks))
    Console(width=180).print(table)


def trained(name: str, ranks: int) -> list[str]:
    """Train and evaluate one of RUNS; return a row of the table."""
    flags = shlex.split(RUNS[name])
    command(["mpirun", "-n", str(ranks), sys.executable, "-m", "gala_mpi.train", *flags], name)
    command([sys.executable, "-m", "gala_mpi.evaluate", name, "--episodes", "20", "--policies", "mean"], "")
    run = open_run(FOLDER / name)
    games, _ = run.evaluations[-1]
    scores = run.scores["score"]
    first, last = (scores[part].mean() for part in (slice(0, 100), slice(-100, None)))
    error = games["score"].std(ddof=1) / np.sqrt(len(games))
    played = f"{games['score'].mean():.1f} ± {error:.1f}"
    return [RUNS[name], f"{run.steps:,}", f"{60 * run.hours:.1f}", f"{first:.1f}", f"{last:.1f}", played]


def command(words: list[str], run: str) -> None:
    """Run a command in FOLDER; with the name of a run, begin that or go on with it."""
    if run:
        words = [*words, "--run-dir", run, *(["--resume"] if (FOLDER / run / "run.h5").exists() else [])]
    print(shlex.join(words), flush=True)
    began = time.monotonic()
    status = subprocess.run(words, cwd=FOLDER, env=os.environ).returncode
    if status:
        again = "; the next call resumes it" if status == RESUME else ""
        raise SystemExit(f"ended with status {status} after {time.monotonic() - began:.0f} s{again}")


if __name__ == "__main__":
    main(tyro.cli(Options))
