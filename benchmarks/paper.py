"""The runs behind docs/results.md: do what is missing, one after the other, and keep a few numbers of each in results/.

    python benchmarks/paper.py                          what is missing, in the order of paper.toml, every seed of it
    python benchmarks/paper.py --part minatar           one part
    python benchmarks/paper.py --seeds 10 11            further seeds, of all parts
    python benchmarks/paper.py --minutes 60             begin no run after an hour
    python benchmarks/paper.py --status                 how much is done, and how long the rest trains
    python benchmarks/paper.py --sweep tables           tables for jobs/slurm/sweep.sh, and how to submit them
    python benchmarks/paper.py --collect runs/sweep-7   the numbers of finished runs, those of a sweep for example

`python -m gala_mpi.watch` shows the run that goes on. One that was stopped goes on where it was, and one whose numbers are in
results/ is not done again. `make paper` does what is missing and makes the page.
"""

from __future__ import annotations

import csv
import itertools
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import tyro

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "analysis"))

from digest import digest, evaluated, points  # noqa: E402
from gala_mpi import open_run  # noqa: E402
from gala_mpi.cli import ignore_broken_pipe  # noqa: E402
from gala_mpi.run import Run  # noqa: E402
from gala_mpi.run.files import replaced  # noqa: E402
from gala_mpi.run.reader import find_runs  # noqa: E402
from kept import rows_of  # noqa: E402
from network import missing as lacks_for_network  # noqa: E402

KEY = ("env", "method", "agents", "seed")


@dataclass(frozen=True)
class Options:
    """The runs behind docs/results.md."""

    part: Optional[str] = None
    """Only this part of paper.toml."""
    seeds: tuple[int, ...] = ()
    """These seeds. None given: those of each part, 0 to one less than its number."""
    minutes: Optional[float] = None
    """Begin no further run after so many minutes."""
    status: bool = False
    """Say what is done and how long the rest trains (starting and playing come on top), and do nothing."""
    sweep: Optional[Path] = None
    """Write tables of what paper.toml asks for to this folder, for jobs/slurm/sweep.sh, and do nothing else."""
    collect: Optional[Path] = None
    """Take up the finished runs in this folder that paper.toml asks for, and do nothing else."""
    table: Path = HERE / "paper.toml"
    """What is asked for."""
    results: Path = HERE.parent / "results"
    """Where the numbers are kept."""
    runs: Path = Path("runs/paper")
    """Where run directories are, until their numbers are kept."""


@dataclass(frozen=True)
class Task:
    """One run that paper.toml asks for."""

    part: str
    env: str
    method: str
    agents: int
    seed: int
    flags: str
    games: int  # that its final policies play in all, at least
    longest: int | None  # steps of a game, where an environment has no end of its own
    network: str | None  # flags of network.py, with whose hosts it is done
    told: frozenset[str]  # names of all flags in the table

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(getattr(self, name)) for name in KEY)

    @property
    def name(self) -> str:
        return "-".join((*self.key[:2], f"{self.agents}x16", f"seed{self.seed}")).replace("/", ".")

    def is_done_by(self, run: Run) -> bool:
        """Return whether a run is this one and finished: told the same by these flags, and no others of the table."""
        if self.network:  # nobody can tell by a run
            return False
        wanted = pairs(self.flags)
        if run.state != "finished" or named(run.starts[0]["command"]) & self.told != set(wanted):
            return False
        settings = run.settings()
        wanted |= {"env": self.env, "seed": str(self.seed), "agents": str(self.agents)}
        return all(alike(settings.get(name), value) for name, value in wanted.items())


def pairs(flags: str) -> dict[str, str]:
    """Return what flags tell, by the names of settings."""
    words = shlex.split(flags)
    return {setting(flag): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def named(command: str) -> set[str]:
    """Return the names of the settings that a command gives."""
    return {setting(word.partition("=")[0]) for word in shlex.split(command) if word.startswith("--")}


def setting(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def alike(value: Any, word: str) -> bool:
    """Return whether a setting is what a flag says."""
    try:
        return float(value) == float(word)
    except (TypeError, ValueError):
        return str(value) == word


class Results:
    """The numbers of a part's runs: runs.csv, a row each, and curves.csv, a row for each twentieth of each. Both are small, and
    every change rewrites them whole, so that a kill leaves the file before or the one after."""

    def __init__(self, folder: Path):
        self._folder = folder

    def rows(self, name: str) -> list[dict[str, str]]:
        return rows_of(self._folder / f"{name}.csv")

    @property
    def done(self) -> dict[tuple[str, ...], dict[str, str]]:
        return {tuple(row[name] for name in KEY): row for row in self.rows("runs")}

    def add(self, task: Task, run: Run) -> None:
        key = dict(zip(KEY, task.key))
        curve = [key | {"steps": s, "hours": h, "score": v} for s, h, v in points(run)]
        self._write("curves", curve, task.key)  # first: a run counts as done once it is in runs.csv
        self._write("runs", [key | digest(run)], task.key)

    def _write(self, name: str, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
        others = [row for row in self.rows(name) if tuple(row[column] for column in KEY) != key]
        written = sorted([*others, *({k: short(v) for k, v in row.items()} for row in rows)], key=order)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replaced(self._folder / f"{name}.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(written)


def short(value: Any) -> str:
    """Return a number in six digits, anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def order(row: dict[str, str]) -> tuple:
    return row["env"], row["method"], int(row["agents"]), int(row["seed"]), float(row["steps"])


def tasks(options: Options) -> list[Task]:
    """Return all runs that are asked for, in the order in which they are done."""
    table = tomllib.loads(options.table.read_text())
    parts = [part for part in table["parts"] if options.part in (None, part["name"])]
    if not parts:
        names = ", ".join(dict.fromkeys(part["name"] for part in table["parts"]))
        print(f"--part {options.part}: no such part; one of {names} is expected", file=sys.stderr)
        raise SystemExit(2)
    texts = [flags for _, flags in table["methods"].values()] + [part["flags"] for part in table["parts"]]
    told = frozenset(name for text in texts for name in pairs(text))
    found = []
    for part in parts:
        seeds = options.seeds or range(part["seeds"])
        for seed, agents, env, method in itertools.product(seeds, part["agents"], part["envs"], part["methods"]):
            flags = f"{table['methods'][method][1]} {part['flags']}"
            more = part.get("games", 0), part.get("longest"), part.get("network"), told
            found.append(Task(part["name"], env, method, agents, seed, flags, *more))
    return found


def missing(options: Options) -> list[Task]:
    """Return what is not in results/, or with fewer games than are asked for now."""
    done = {task.part: Results(options.results / task.part).done for task in tasks(options)}
    return [task for task in tasks(options) if float(done[task.part].get(task.key, {}).get("games", -1)) < task.games]


def do(task: Task, options: Options) -> float:
    """Train, go on with what was begun, and keep its numbers. Return the hours that training took, those before it was stopped
    too. Raises CalledProcessError where it fails."""
    run = options.runs / task.part / task.name
    began = (run / "run.h5").exists()
    if not began:
        shutil.rmtree(run, ignore_errors=True)
    what = ["--resume"] if began else ["--env", task.env, "--seed", str(task.seed), *shlex.split(task.flags)]
    train = [*launcher(task), "-m", "gala_mpi.train", *what, "--run-dir", str(run)]
    if not (began and open_run(run).state == "finished"):
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    play(task, run)
    finished = open_run(run)
    Results(options.results / task.part).add(task, finished)
    shutil.rmtree(run)
    return finished.hours


def play(task: Task, run: Path) -> None:
    """Let the final policy of a run play, where it has not played as many games as are asked for."""
    if evaluated(open_run(run))["games"] < task.games:
        apart = "--exchange none" in task.flags  # each agent has its own
        policies = "all" if apart else "ema" if "--ema" in task.flags else "mean"
        episodes = -(-task.games // task.agents) if apart else task.games
        evaluate = [sys.executable, "-m", "gala_mpi.evaluate", str(run), "--policies", policies, "--episodes", str(episodes)]
        cut = [] if task.longest is None else ["--max-steps", str(task.longest)]
        subprocess.run([*evaluate, *cut], check=True, stdout=subprocess.DEVNULL)


def launcher(task: Task) -> list[str]:
    """Return what starts the task's ranks, up to what Python is told."""
    if not task.network:
        return ["mpirun", "-n", str(task.agents), sys.executable]
    return [sys.executable, str(HERE / "network.py"), "--hosts", str(task.agents), *shlex.split(task.network), "--"]


def time_left(left: Sequence[Task], options: Options, besides: float = 0.0) -> str:
    """Return in words how long runs take, by those of their part that were done, with as many agents if there are some.

    Args:
        besides: hours that a run takes besides training, to start and to play.
    """
    hours, unknown = 0.0, 0
    done = {part: list(Results(options.results / part).done.values()) for part in {task.part for task in left}}
    for task in left:
        rows = done[task.part]
        found = [float(row["hours"]) for row in rows if row["agents"] == str(task.agents)] or [float(r["hours"]) for r in rows]
        hours += statistics.median(found) + besides if found else 0.0
        unknown += not found
    known = f"{hours:.1f} h left"
    if not unknown:
        return known
    nobody = f"as yet nobody knows how long {unknown} of them take"
    return f"{known}, and {nobody}" if hours else nobody


def status(options: Options) -> str:
    """Return how much is done, part by part."""
    wanted, left = tasks(options), missing(options)
    lines = []
    for part in dict.fromkeys(task.part for task in wanted):
        all_of_it, rest = ([task for task in some if task.part == part] for some in (wanted, left))
        lines.append(f"{part}: {len(all_of_it) - len(rest)} of {len(all_of_it)} runs, {time_left(rest, options)}")
    return "\n".join(lines)


def write_sweep(options: Options) -> None:
    """Write a table for each part and number of agents, of all of its runs, and print how they are submitted."""
    options.sweep.mkdir(parents=True, exist_ok=True)
    table = tomllib.loads(options.table.read_text())
    wanted = [part for part in table["parts"] if options.part in (None, part["name"]) and "network" not in part]
    for number, part in enumerate(wanted):
        seeds = options.seeds or range(part["seeds"])
        lines = [
            " | ".join(f"--env {env}" for env in part["envs"]),
            " | ".join(table["methods"][method][1] for method in part["methods"]),
            " | ".join(f"--seed {seed}" for seed in seeds),
            part["flags"],
        ]
        path = options.sweep / f"{number}-{part['name']}.txt"
        path.write_text("\n".join(lines) + "\n")
        last = len(part["envs"]) * len(part["methods"]) * len(seeds) - 1
        for agents in part["agents"]:
            print(f"sbatch --ntasks={agents} --array=0-{last} jobs/slurm/sweep.sh {path}")


def collect(options: Options) -> Iterator[str]:
    """Keep the numbers of finished runs that are asked for, wherever they were made, and let their final policies play where
    they have not; yield what was kept. Raises CalledProcessError where that fails."""
    left = missing(options)
    for path in find_runs([options.collect]):
        run = open_run(path)
        for task in [task for task in left if task.is_done_by(run)]:
            play(task, path)
            Results(options.results / task.part).add(task, open_run(path))
            left.remove(task)
            yield f"{path}: {task.part}, {task.name}"


def main(options: Options) -> None:
    if options.status:
        print(status(options))
    elif options.sweep:
        write_sweep(options)
    elif options.collect:
        print("\n".join(collect(options)) or f"{options.collect}: no finished run that is missing in {options.results}")
    else:
        do_missing(options)


def do_missing(options: Options) -> None:
    began, left = time.monotonic(), missing(options)
    besides: list[float] = []  # hours of each run that were not training
    if any(task.network for task in left) and (lack := lacks_for_network()):
        print(f"runs over a network are left out: {lack}", file=sys.stderr)
        left = [task for task in left if not task.network]
    for number, task in enumerate(left):
        if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
            break
        rest = time_left(left[number:], options, statistics.median(besides or [0.0]))
        print(f"run {number + 1} of {len(left)} that are missing; {rest}: {options.runs / task.part / task.name}", flush=True)
        since = time.monotonic()
        trained = do(task, options)
        besides.append(max(0.0, (time.monotonic() - since) / 3600 - trained))
    print(status(options))


if __name__ == "__main__":
    with ignore_broken_pipe():
        try:
            main(tyro.cli(Options, description=__doc__))
        except subprocess.CalledProcessError as error:
            command = shlex.join(map(str, error.cmd))
            print(f"{command} ended with {error.returncode}; called again, this goes on", file=sys.stderr)
            raise SystemExit(1) from None
