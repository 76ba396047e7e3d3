"""Run directories as the training's own writers make them, filled with rows of our choice: readers and writers agree.

(`synthetic.py` writes without them, for tests of what is right.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from gala_mpi.config import Config
from gala_mpi.run import layout, writer
from gala_mpi.run.tables import TABLES, Tables

ROOT = Path(__file__).parents[1]
ANALYSIS = ROOT / "analysis"
METADATA = {"time": "2026-01-02T03:04:05+0000", "hosts": ["a", "b"], "threads": [1, 1], "beta": 0.5, "resumed_from": 0}
STEPS = 80  # of an update
ROOM = 400
EPISODES = np.dtype([("policy", "<i4"), ("game", "<i4"), ("score", "<f4"), ("length", "<i4")])


def begin(path: Path, agents: int = 2, **settings) -> Path:
    """The run.h5 of a run of 100 updates."""
    settings = {"env": "CartPole-v1", "total_steps": 100 * STEPS * agents, "rollout_length": 5, **settings}
    writer.write_run(path, Config(**settings), agents, METADATA)
    return path


def write(path: Path, rank: int, after_update: int, agents: int = 0, **tables: np.ndarray) -> Path:
    """One more metrics file of a rank, with room for ROOM rows; of the large sketches for those that there are."""
    file = layout.next_metrics_file(path, rank)
    rooms = dict.fromkeys(TABLES, ROOM) | {"sketches": max(1, len(tables.get("sketches", ())))}
    layouts = {name: (dtype, rooms[name]) for name, dtype in TABLES.items()}
    writer = Tables(file, layouts, {"rank": rank, "after_update": after_update, "agents": agents})
    for name, rows in tables.items():
        writer.append(name, rows)
    writer.close()
    return file


def update_rows(first: int, last: int) -> np.ndarray:
    """As of a version that did not record `run_steps`."""
    rows = np.zeros(last - first + 1, TABLES["updates"])
    rows["update"] = np.arange(first, last + 1)
    rows["steps"], rows["run_steps"], rows["hours"] = STEPS * rows["update"], -1, rows["update"] / 50
    rows["entropy"] = np.sqrt(rows["update"])
    return rows


def episode_rows(random: np.random.Generator, number: int, last: int = 100, first: int = 1) -> np.ndarray:
    rows = np.zeros(number, TABLES["episodes"])
    rows["update"] = np.sort(random.integers(first, last + 1, number))
    rows["steps"], rows["run_steps"] = STEPS * rows["update"], -1
    rows["hours"] = rows["update"] / 50 + random.uniform(0, 1e-3)
    rows["simulator"] = random.integers(0, 16, number)
    rows["length"] = random.integers(10, 500, number)
    rows["score"] = random.normal(rows["update"], 10)
    return rows


def mix_rows(first: int, last: int) -> np.ndarray:
    return np.array([(update, 1, update - 1, 0.5) for update in range(first, last + 1)], TABLES["mixes"])


def make(path: Path, seed: int, agents: int = 2, number: int = 350, last: int = 100, **settings) -> Path:
    """A run with so many episodes of every agent."""
    random = np.random.default_rng(seed)
    begin(path, agents, seed=seed, **settings)
    for rank in range(agents):
        episodes = episode_rows(random, number, last)
        write(path, rank, 0, agents, updates=update_rows(1, last), episodes=episodes, mixes=mix_rows(1, last))
    return path


def measured_run(path: Path, agents: int, exchange: str, seconds: float, **settings) -> Path:
    """A run whose every update takes so long, all of it processor time."""
    run_dir = begin(path, agents, exchange=exchange, total_steps=100 * STEPS * agents, **settings)
    with h5py.File(run_dir / "run.h5", "r+") as file:
        file["starts/0"].attrs["hosts"] = ["a"] * agents
    for rank in range(agents):
        rows = update_rows(1, 100)
        rows["hours"], rows["cpu"] = rows["update"] * seconds / 3600, seconds
        rows["simulate"], rows["learn"] = 0.6 * seconds, 0.4 * seconds
        rows["exchange"] = 0.02 if exchange == "allreduce" else 0
        write(run_dir, rank, 0, updates=rows, mixes=mix_rows(1, 100)[: 100 * (exchange == "gossip")])
    return run_dir


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    file.write_bytes(b"\x00" * 5000)


def evaluate(run_dir: Path, scores_of: dict[int, list[float]]) -> None:
    """Episodes of every policy (-1: the averaged one)."""
    rows = [(policy, n, score, 100) for policy, values in scores_of.items() for n, score in enumerate(values)]
    writer.write_evaluation(run_dir, np.array(rows, EPISODES), {"checkpoint": 3, "arg_max": True, "seed": 1, "time": "now"})


def command(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """A script of the analysis, called as a user calls it."""
    words = [sys.executable, str(ANALYSIS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True)
