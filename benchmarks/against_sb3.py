"""gala_mpi beside Stable-Baselines3: the speed of A2C, or scores and times of PPO.

    python benchmarks/against_sb3.py                       A2C on Pong, network nature
    python benchmarks/against_sb3.py --env CartPole-v1     where environments and networks take microseconds; EnvPool's
                                                           CartPole too, where EnvPool is installed
    python benchmarks/against_sb3.py --learner ppo --env HalfCheetah-v5     whole training runs of several seeds

PPO: see ppo_scores.py; settings are in ppo_tasks.py. A2C: the same game, network, environments a process and rollout length,
in turn. gala_mpi has a rank for each core. SB3 trains in one process, whose torch then has a thread for each core; as many
separate SB3 runs as cores, of one thread each, are timed as well, which is the most that it gets out of the machine, though for
as many policies. SB3 is installed into an environment of its own, .venv-sb3, at the first call. Rates are steps/s (a step of
Pong is 4 frames) summed over the processes; ratios are medians over rounds, in each of which every program has its turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Optional

import tyro
from rich.console import Console
from rich.table import Table

from ppo_scores import EXCHANGES, Comparison, compare
from ppo_tasks import TASKS

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-sb3"
SB3 = ("stable-baselines3>=2.7,<3", "ale-py>=0.11", "opencv-python-headless", "gymnasium[box2d,mujoco]")
ONE_RUN, MANY_RUNS = "SB3", "SB3, a run a core"
PROGRAMS = {  # what is trained, and in which precision
    "pong": (("pong", "fp32"), ("pong", "bf16")),
    "CartPole-v1": (("CartPole-v1", "fp32"), ("envpool:CartPole-v1", "fp32")),
}
NETWORKS = {"pong": "nature", "CartPole-v1": "mlp"}  # those of SB3


@dataclass
class Options:
    """Compare gala_mpi with Stable-Baselines3."""

    learner: Literal["a2c", "ppo"] = "a2c"
    """a2c: how fast both are; ppo: what both have learnt after so many steps, and how long that took."""
    env: Literal["pong", "breakout", "CartPole-v1", "LunarLander-v3", "HalfCheetah-v5"] = "pong"
    """What is trained; by a2c pong or CartPole-v1. LunarLander-v3 and HalfCheetah-v5 need the extras box2d and mujoco."""
    cores: int = len(os.sched_getaffinity(0))
    """Ranks of gala_mpi; threads of one SB3 run (ppo: where it sees images), or (a2c) SB3 runs of one thread."""
    num_envs: int = 16
    """a2c: environments a process."""
    updates: int = 60
    """a2c: updates (of 5 steps in every environment) that each process does in a turn, after 10 to warm up."""
    rounds: int = 3
    """a2c: how often each program has its turn."""
    exchanges: tuple[Literal["allreduce", "gossip"], ...] = tuple(EXCHANGES)
    """ppo: of gala_mpi, each a program of its own."""
    steps: Optional[int] = None
    """ppo: steps of a training run. None: the task's, 100,000 (CartPole) to 2 million (Atari)."""
    seeds: int = 3
    """ppo: training runs of each program."""
    beside: bool = False
    """ppo: do SB3's runs of all seeds but the first at once, a core each: for their scores, in less time; only the first one's
    time is taken then."""
    games: int = 20
    """ppo: games that each final policy plays."""
    out: Path = ROOT / "results" / "against_sb3"
    """ppo: where the result of every run is kept, so that a second call goes on where the first was stopped."""
    runs: Path = Path("runs/against-sb3")
    """ppo: where run directories are until then."""


def main(options: Options) -> None:
    if options.learner == "ppo":
        compare_ppo(options)
    else:
        compare_a2c(options)


def compare_ppo(options: Options) -> None:
    task = TASKS[options.env]
    if task.num_envs % options.cores:
        raise SystemExit(
            f"--cores {options.cores}: {options.env} has {task.num_envs} environments; a divisor of it is expected"
        )
    if min(options.seeds, options.games, options.steps or 1) < 1:
        raise SystemExit("--seeds, --games, --steps: numbers of 1 or more are expected")
    asked = (options.env, options.exchanges, options.steps or task.steps, options.seeds, options.games, options.cores)
    compare(Comparison(sb3_python(), *asked, options.beside, options.out, options.runs))


def compare_a2c(options: Options) -> None:
    if options.env not in PROGRAMS:
        raise SystemExit(f"--learner a2c --env {options.env}: {' or '.join(PROGRAMS)} is expected")
    python = sb3_python()
    turns = [turn(options, python) for _ in range(options.rounds)]
    table = Table(f"{options.env}, network {NETWORKS[options.env]}", "steps/s", f"times {ONE_RUN}", f"times {MANY_RUNS}")
    for name in turns[0]:
        ratios = [statistics.median(turn[name] / turn[of] for turn in turns) for of in (ONE_RUN, MANY_RUNS)]
        rate = statistics.median(turn[name] for turn in turns)
        table.add_row(name, f"{rate:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=100).print(
        f"{options.cores} cores, {options.num_envs} simulators a process, rollouts of 5 steps; "
        f"medians of {options.rounds} rounds of {options.updates} updates",
        table,
    )


def turn(options: Options, python: Path) -> dict[str, float]:
    """Steps/s of each program, one after another."""
    sizes = ["--num-envs", str(options.num_envs), "--updates", str(options.updates)]
    theirs = ["--env", options.env, *sizes]
    rates = {ONE_RUN: sb3(python, theirs, 1, options.cores), MANY_RUNS: sb3(python, theirs, options.cores, 1)}
    for env, precision in PROGRAMS[options.env]:
        if env.startswith("envpool:") and not find_spec("envpool"):
            continue
        setting = ["--env", env, "--network", NETWORKS[options.env], "--precision", precision]
        rates[f"gala_mpi, {env}, {precision}"] = gala_mpi([*sizes, *setting], options.cores)
    return rates


def sb3(python: Path, sizes: list[str], runs: int, threads: int) -> float:
    command = [python, ROOT / "benchmarks/sb3_a2c.py", *sizes, "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(runs)]
    outputs = [process.communicate()[0] for process in running]
    for process in running:
        if process.returncode:
            raise SystemExit(f"SB3 failed: {' '.join(map(str, command))} ended with {process.returncode}")
    return sum(float(output.split()[-1]) for output in outputs)


def gala_mpi(settings: list[str], processes: int) -> float:
    command = [
        "mpirun",
        "-n",
        str(processes),
        sys.executable,
        "-m",
        "gala_mpi.bench",
        "train",
        *settings,
        "--rounds",
        "1",
        "--json",
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)["all_ranks"]["steps_per_second"]


def sb3_python() -> Path:
    """The interpreter of SB3's own environment, which is made at the first call."""
    python, ready = ENVIRONMENT / "bin/python", ENVIRONMENT / "ready"
    if not ready.exists() or ready.read_text() != " ".join(SB3):
        print(f"installing Stable-Baselines3 into {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        constraints = ROOT / "constraints.txt"  # the same torch for both
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, *SB3], check=True)
        ready.write_text(" ".join(SB3))
    return python


if __name__ == "__main__":
    main(tyro.cli(Options))
