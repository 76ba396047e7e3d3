"""PPO's scores beside Stable-Baselines3's: the same tasks, settings and steps, several seeds, one program after the other.

gala_mpi trains on a rank a core, each with its share of the environments, its rollout in as many minibatches: by all-reduce
(DD-PPO) every optimiser step is that of SB3's minibatch, by gossip agents learn from their own shares and average (see
ppo_tasks.OWN). Networks are SB3's: nature for images, two of 64-64 tanh units for numbers. SB3 has a thread a core for
images, and one for numbers, with which it is faster there.

The result of every run is kept in a file, and not computed again: a comparison that was stopped goes on where it was, and so do
SB3's runs, whose times do not count then. Where SB3 takes too long, its runs of all seeds but the first may be done beside each
other: likewise.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from gala_mpi.run import reader
from ppo_tasks import OWN, TASKS, Task

HERE = Path(__file__).parent
EPISODES = 100  # the last ones of training, whose mean is a score
SB3 = "SB3"
EXCHANGES = {"allreduce": "gala_mpi, all-reduce", "gossip": "gala_mpi, gossip"}


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where results are kept.

    Attributes:
        python: of SB3's environment.
        env: a key of TASKS.
        exchanges: of gala_mpi, keys of EXCHANGES.
        steps: of each training run.
        games: that each final policy plays, by its most probable actions.
        cores: ranks of gala_mpi, and threads of SB3 where it sees images.
        beside: do SB3's runs of all seeds but the first at once, a core each, and do not take their times.
        folder: of the results.
        runs: the folder of run directories.
    """

    python: Path
    env: str
    exchanges: tuple[str, ...]
    steps: int
    seeds: int
    games: int
    cores: int
    beside: bool
    folder: Path
    runs: Path

    @property
    def task(self) -> Task:
        return TASKS[self.env]


def compare(comparison: Comparison) -> None:
    """Do all runs that are not there yet, and print the table after each seed."""
    programs = {SB3: None, **{EXCHANGES[exchange]: exchange for exchange in comparison.exchanges}}
    found: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    for seed in range(comparison.seeds):
        if comparison.beside and seed == 1:
            print(f"{comparison.env}, {SB3}, seeds 1 to {comparison.seeds - 1} beside each other", file=sys.stderr, flush=True)
            with ThreadPoolExecutor(comparison.cores) as at_once:
                list(at_once.map(lambda seed: result(comparison, SB3, None, seed), range(1, comparison.seeds)))
        for program, exchange in programs.items():
            print(f"{comparison.env}, {program}, seed {seed} of {comparison.seeds}", file=sys.stderr, flush=True)
            found[program].append(result(comparison, program, exchange, seed))
        show(comparison, found)


def result(comparison: Comparison, program: str, exchange: str | None, seed: int) -> dict[str, Any]:
    """Return what a run came to: `training` and `played` scores, `seconds`; of the file of an earlier call, if there is one.

    Args:
        program: its name in the table.
        exchange: gala_mpi's; None: it is SB3.
    """
    name = f"{comparison.env}-{program}-{seed}-{comparison.steps}".replace(", ", "-").replace(" ", "-")
    path = comparison.folder / f"{name}.json"
    asked: dict[str, Any] = {"task": asdict(comparison.task), "cores": comparison.cores, "games": comparison.games}
    beside = exchange is None and comparison.beside and seed > 0
    if exchange is None:
        asked["threads"] = 1 if beside or not comparison.task.images else comparison.cores
    own = OWN.get((comparison.env, exchange), {})
    asked |= own
    if path.exists() and (kept := json.loads(path.read_text()))["asked"] == asked:
        return kept
    load = os.getloadavg()[0]
    begun = comparison.runs / f"{name}.sb3"
    if exchange is None:
        found = sb3(comparison, seed, asked["threads"], begun)
    else:
        found = gala_mpi(comparison, seed, {"exchange": exchange, **own}, comparison.runs / name)
    if beside:
        found["seconds"] = None
    found |= {"asked": asked, "load": [load, os.getloadavg()[0]]}
    comparison.folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.replace(path)
    begun.unlink(missing_ok=True)
    return found


def sb3(comparison: Comparison, seed: int, threads: int, begun: Path) -> dict[str, Any]:
    """Train, going on with what was begun, and play. `begun`: the file in which training is kept."""
    begun.parent.mkdir(parents=True, exist_ok=True)
    command = [comparison.python, HERE / "sb3_ppo.py", "--env", comparison.env, "--steps", str(comparison.steps)]
    command += ["--seed", str(seed), "--games", str(comparison.games), "--threads", str(threads), "--begun", str(begun)]
    told = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    told |= {"OMP_WAIT_POLICY": "PASSIVE"}  # as for gala_mpi: beside other programs threads that spin are much slower
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=without | told).stdout
    return json.loads(output.splitlines()[-1])


def gala_mpi(comparison: Comparison, seed: int, own: dict[str, Any], run: Path) -> dict[str, Any]:
    """Train in a run directory that is removed once its scores are read. `own`: settings that SB3 has not, or others."""
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    mpirun, python = ["mpirun", "-n", str(comparison.cores)], [sys.executable, "-m"]
    flags = [*settings(comparison, own), "--seed", str(seed), "--run-dir", str(run)]
    began = time.perf_counter()
    subprocess.run([*mpirun, *python, "gala_mpi.train", *flags], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - began
    evaluate = [*python, "gala_mpi.evaluate", str(run), "--episodes", str(comparison.games), "--policies", "mean"]
    subprocess.run(evaluate, check=True, stdout=sys.stderr)
    ((games, _),) = reader.open_run(run).evaluations
    rows = [row for rank in range(comparison.cores) for row in reader.read_rows(run, rank, "episodes")]
    rows.sort(key=lambda row: row["hours"])
    training = [float(row["score"]) for row in rows[-EPISODES:]]
    shutil.rmtree(run)
    return {"training": training, "played": games["score"].tolist(), "seconds": seconds}


def settings(comparison: Comparison, own: dict[str, Any]) -> list[str]:
    """Return the task's settings as flags of one rank, `own` in place of theirs."""
    task = comparison.task
    told = {
        "--learner": "ppo",
        "--env": comparison.env,
        "--network": "nature" if task.images else "mlp",
        "--total-steps": comparison.steps,
        "--num-envs": task.num_envs // comparison.cores,
        "--rollout-length": task.length,
        "--lr": task.lr,
        "--normalise-observations": task.normalise,
        "--normalise-rewards": task.normalise,
        "--ppo.minibatches": task.minibatches,
        "--ppo.epochs": task.epochs,
        "--ppo.clip": task.clip,
        "--ppo.discount": task.discount,
        "--ppo.gae-lambda": task.gae_lambda,
        "--ppo.entropy-coefficient": task.entropy,
    }
    if not task.images:
        told["--value-network"] = "copy"
    told |= {f"--{name.replace('_', '-')}": value for name, value in own.items()}
    words = [word for flag, value in told.items() for word in (flag, str(value))]
    return [*words, "--ppo.decay-lr" if task.decay_lr else "--ppo.no-decay-lr"]


def show(comparison: Comparison, found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the scores and times that there are. Intervals are over seeds (Student's t)."""
    task = comparison.task
    table = Table("", f"last {EPISODES} episodes", f"{comparison.games} games", "s", f"{SB3}'s time / its own")
    theirs = median_time(found[SB3])
    for program, results in found.items():
        scores = [interval([float(np.mean(each[kind])) for each in results]) for kind in ("training", "played")]
        times = median_time(results), theirs / median_time(results)
        table.add_row(program, *scores, *("–" if np.isnan(x) else f"{x:,.{n}f}" for x, n in zip(times, (0, 2))))
    loads = [load for results in found.values() for result in results for load in result["load"]]
    Console(width=100).print(
        f"{comparison.env}, {comparison.steps:,} steps, {task.num_envs} environments, {len(found[SB3])} of {comparison.seeds} "
        f"seeds; mean ± 95%; {comparison.cores} cores, load averages {min(loads):.1f} to {max(loads):.1f}",
        table,
    )


def median_time(results: list[dict[str, Any]]) -> float:
    """Return the median of the times that were taken; NaN: none was."""
    taken = [each["seconds"] for each in results if each["seconds"] is not None]
    return statistics.median(taken) if taken else np.nan


def interval(means: list[float]) -> str:
    """Return the mean over seeds and half of its 95% interval, in words."""
    if len(means) < 2:
        return f"{means[0]:.1f}"
    half = stats.t.ppf(0.975, len(means) - 1) * statistics.stdev(means) / len(means) ** 0.5
    return f"{statistics.mean(means):.1f} ± {half:.1f}"
