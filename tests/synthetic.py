"""Run directories with known answers, by h5py and numpy alone, in the format that docs/metrics.md describes.

None of the program's own code has a say in what is written here or in what is right, so a test on such a run is a test by
definition. (`recorded.py` writes with the training's own writers instead: there it is tested that these and the reader agree.)

    run = Synthetic(tmp_path / "r", agents=2, env="pong", num_envs=8)
    for rank, seconds in enumerate((1.0, 10.0)):                        # the second agent is ten times slower
        rows = updates(100, seconds)
        run.write(rank, updates=rows, episodes=episodes(rows, score=rows["steps"]), mixes=mixes(rows, peer=1 - rank))
    run.evaluate(checkpoint=3, scores={-1: [20, 21]})
    run.lose(rank=1, update=10)
    run.resume(agents=4, checkpoint=3, num_envs=32)                     # ranks then write their next files
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

SECTIONS = ("act", "simulate", "learn", "optimise", "exchange", "record")
SHARES = (0.1, 0.4, 0.2, 0.1, 0.1, 0.05)  # of an update's time, unless a test says otherwise; the rest is in no section
COUNTERS = {"update": "<i8", "steps": "<i8", "run_steps": "<i8", "hours": "<f8"}
COLUMNS = {
    "updates": COUNTERS
    | dict.fromkeys(("policy_loss", "value_loss", "entropy"), "<f4")
    | dict.fromkeys(("kl", "clip_share", "rho", "policy_lag", "rollout_wait", "actor_wait", "rollouts_torn"), "<f4")
    | dict.fromkeys(("grad_norm", "step_norm"), "<f4")
    | {"skipped": "<i4", "staleness": "<i4", "age": "<f4", "torn": "<i4", "corrupt": "<i4"}
    | dict.fromkeys(("poke_gap", "rss", "cpu", *SECTIONS), "<f4"),
    "episodes": COUNTERS | {"simulator": "<i4", "length": "<i4", "score": "<f4"},
    "mixes": {"update": "<i8", "peer": "<i4", "version": "<i8", "weight": "<f8"},
    "sketches": {"update": "<i8", "parameters": "(4096,)<f4", "gradient": "(4096,)<f4"},
    "energy": {"update": "<i8", "hours": "<f8"}
    | dict.fromkeys(("seconds", "cpu_joules", "gpu_joules", "node_joules", "cores_busy", "gpus_busy"), "<f4"),
}
DTYPES = {table: np.dtype(list(columns.items())) for table, columns in COLUMNS.items()}
EVALUATION = np.dtype([("policy", "<i4"), ("game", "<i4"), ("score", "<f4"), ("length", "<i4")])
SETTINGS = {
    "env": "pong",
    "exchange": "gossip",
    "topology": {"name": "ring", "text": "", "nodes": []},
    "staleness": None,
    "max_lag": None,
    "sync_updates": None,
    "total_steps": 100_000,
    "num_envs": 16,
    "rollout_length": 5,
    "seed": 0,
    "network": "gala",
    "spaces": "scaled",
    "lr": 0.001,
    "sketch_updates": 100,
    "slow_rank": None,
    "survive": None,
    "atari": {"sticky": None, "frame_skip": None},
    "a2c": {"gae_lambda": 1.0},
}


class Synthetic:
    """A run directory, filled by its methods.

    Args:
        path: of the directory, which is made.
        agents: ranks of the first start.
        settings: that differ from SETTINGS.
    """

    def __init__(self, path: Path, agents: int = 2, hosts: Sequence[str] = (), metadata: Mapping = {}, **settings):
        self.path, self.settings = path, dict(SETTINGS)
        (path / "metrics").mkdir(parents=True)
        (path / "checkpoints").mkdir()
        with h5py.File(path / "run.h5", "w") as file:
            file.attrs["format"] = 1
        self.resume(agents, 0, hosts, metadata, **settings)

    def resume(
        self, agents: int = 0, checkpoint: int = 1, hosts: Sequence[str] = (), metadata: Mapping = {}, **settings
    ) -> Synthetic:
        """Begin another start, from this checkpoint, with as many agents as before (0) or others, and changed settings."""
        self.settings |= settings
        self.agents, self.checkpoint = agents or self.agents, checkpoint
        about = {
            "time": "2026-01-02T03:04:05+0000",
            "command": "python -m gala_mpi.train",
            "config": json.dumps(self.settings),
            "gala_mpi": "0.1.0",
            "commit": "0123456789abcdef",
            "hosts": list(hosts) or ["a"] * self.agents,
            "threads": [1] * self.agents,
            "resumed_from": checkpoint,
        }
        with h5py.File(self.path / "run.h5", "r+") as file:
            file.attrs.update({"config": about["config"], "agents": self.agents})
            starts = file.require_group("starts")
            starts.create_group(str(len(starts))).attrs.update(about | dict(metadata))
            for rank in range(self.agents):
                if file.get(f"metrics/rank{rank:05d}", getlink=True) is None:
                    file[f"metrics/rank{rank:05d}"] = h5py.ExternalLink(f"metrics/rank{rank:05d}.h5", "/")
        return self

    def write(self, rank: int, after_update: int = 0, room: int = 0, **tables: np.ndarray) -> Path:
        """Write the next metrics file of a rank, of the newest start. Tables that are not named have no rows.

        Args:
            after_update: that the rank goes on from; rows of its earlier files beyond it no longer count.
            room: for so many rows more than there are, as in a file that is still written to.
        """
        number = len(list((self.path / "metrics").glob(f"rank{rank:05d}*.h5")))
        path = self.path / "metrics" / f"rank{rank:05d}{f'-{number}' if number else ''}.h5"
        with h5py.File(path, "w") as file:
            file.attrs.update({"format": 1, "rank": rank, "after_update": after_update})
            file.attrs.update({"agents": self.agents, "resumed_from": self.checkpoint, "new_episodes": True})
            for name, dtype in DTYPES.items():
                rows = np.asarray(tables.get(name, np.zeros(0, dtype)), dtype)
                file.create_dataset(name, (len(rows) + max(room, 1),), dtype)[: len(rows)] = rows
                file[f"rows/{name}"] = len(rows)
        return path

    def evaluate(self, checkpoint: int, scores: Mapping[int, Sequence[float]], **metadata) -> Synthetic:
        """Add an evaluation: policy (-1: the averaged one) → the scores of its episodes."""
        rows = [(policy, n, score, 100) for policy, values in scores.items() for n, score in enumerate(values)]
        about = {"checkpoint": checkpoint, "arg_max": True, "seed": 1, "time": "now", "max_steps": 100_000, "cut": 0}
        with h5py.File(self.path / "run.h5", "r+") as file:
            evaluations = file.require_group("evaluations")
            dataset = evaluations.create_dataset(str(len(evaluations)), data=np.array(rows, EVALUATION))
            dataset.attrs.update(about | metadata)
        return self

    def save(self, *checkpoints: int) -> Synthetic:
        """Make the files of checkpoints with these numbers, which say how many agents there are and no more."""
        for number in checkpoints:
            folder = self.path / "checkpoints" / f"{number:06d}"
            folder.mkdir()
            for rank in range(self.agents):
                with h5py.File(folder / f"rank{rank:05d}.h5", "w") as file:
                    file.attrs["agents"] = self.agents
        return self

    def lose(self, rank: int, update: int) -> Synthetic:
        """Record that a rank has died (--survive), last seen at an update."""
        (self.path / "ends").mkdir(exist_ok=True)
        end = {"rank": rank, "host": "a", "lost": True, "update": update, "number": 0}
        (self.path / "ends" / f"rank{rank:05d}.json").write_text(json.dumps(end))
        return self


# Rows.


def updates(number: int, seconds: float | np.ndarray = 1.0, steps: int = 80, **columns) -> np.ndarray:
    """Return rows of so many updates, each of which takes `seconds` and does `steps`.

    Args:
        columns: more of them; and what was done before the first of these rows: `after` updates (0), `before` steps of the
            agent (by default `after` · `steps`), `begin` hours of training (0).
    """
    after, begin = columns.pop("after", 0), columns.pop("begin", 0.0)
    before = columns.pop("before", after * steps)
    rows = np.zeros(number, DTYPES["updates"])
    took = np.broadcast_to(seconds, number)
    rows["update"] = after + np.arange(1, number + 1)
    rows["steps"] = before + steps * np.arange(1, number + 1)
    rows["run_steps"] = -1  # as where it was not recorded
    rows["hours"] = begin + np.cumsum(took) / 3600
    rows["age"], rows["cpu"], rows["rss"] = np.nan, took, 100
    rows["entropy"], rows["grad_norm"], rows["step_norm"] = 1.0, 0.5, 0.01
    for section, share in zip(SECTIONS, SHARES):
        rows[section] = share * took
    for name, values in columns.items():
        rows[name] = values
    return rows


def episodes(rows: np.ndarray, score: float | np.ndarray = 0.0, every: int = 1) -> np.ndarray:
    """Return an episode that ends in every so many of these updates; `score`: of each of `rows`, or one for all."""
    ended = slice(every - 1, None, every)
    found = np.zeros(len(rows[ended]), DTYPES["episodes"])
    for name in ("update", "steps", "run_steps", "hours"):
        found[name] = rows[name][ended]
    found["length"], found["score"] = 100, np.broadcast_to(score, len(rows))[ended]
    return found


def mixes(rows: np.ndarray, peer: int, lag: int | np.ndarray = 0, weight: float = 0.5, every: int = 1) -> np.ndarray:
    """Return a message of `peer` mixed in every so many of these updates, `lag` updates old."""
    mixed = slice(every - 1, None, every)
    found = np.zeros(len(rows[mixed]), DTYPES["mixes"])
    found["update"], found["peer"], found["weight"] = rows["update"][mixed], peer, weight
    found["version"] = (rows["update"] - lag)[mixed]
    return found


def sketches(rows: np.ndarray, every: int = 10, seed: int = 0, **columns: np.ndarray) -> np.ndarray:
    """Return sketches of the updates that are multiples of `every`: random numbers, or `columns` [sketches, up to 4096]."""
    sketched = rows["update"][rows["update"] % every == 0]
    found, random = np.zeros(len(sketched), DTYPES["sketches"]), np.random.default_rng(seed)
    found["update"] = sketched
    for name in ("parameters", "gradient"):
        values = columns.get(name, random.standard_normal((len(sketched), 4096)))
        found[name][:, : values.shape[1]] = values
    return found


def energy(number: int, watts: float, seconds: float = 10.0, begin: float = 0.0, **columns) -> np.ndarray:
    """Return so many readings of a node's CPUs, `seconds` apart; what else is counted is named: node_joules, gpu_joules, ..."""
    rows = np.zeros(number, DTYPES["energy"])
    rows["update"], rows["seconds"] = np.arange(1, number + 1) + columns.pop("after", 0), seconds
    rows["hours"] = begin + seconds * np.arange(1, number + 1) / 3600
    rows["cpu_joules"], rows["cores_busy"] = watts * seconds, 0.5
    for name in ("gpu_joules", "node_joules", "gpus_busy"):
        rows[name] = np.nan
    for name, values in columns.items():
        rows[name] = values
    return rows


# Whole runs.


def paced(
    path: Path, seconds: Sequence[float], numbers: Sequence[int], score: float = 1.0, watts: float = 0.0, **settings
) -> Synthetic:
    """A run whose agents each go at a pace of their own.

    Args:
        seconds: an update of each agent takes.
        numbers: of updates that each does; one episode ends in each, all of the same score.
        watts: of its one node; 0: not measured.
    """
    total = 80 * int(np.sum(numbers))
    run = Synthetic(path, **{"agents": len(seconds), "total_steps": total, **settings})
    last = max(s * n for s, n in zip(seconds, numbers))
    for rank, (took, number) in enumerate(zip(seconds, numbers)):
        rows = updates(number, took)
        tables = {"updates": rows, "episodes": episodes(rows, score)}
        if run.settings["exchange"] == "gossip" and len(seconds) > 1:
            tables["mixes"] = mixes(rows, peer=(rank - 1) % len(seconds))
        if watts and not rank:
            tables["energy"] = energy(int(last / 10), watts)
        run.write(rank, **tables)
    return run


def scored(path: Path, number: int, score: Callable, seconds: float = 1.0, **settings) -> Path:
    """A run of one agent that does so many updates of 80 steps and ends an episode in each.

    Args:
        score: of the steps done, float64 [updates], the scores of the episodes.
    """
    settings = {"total_steps": 80 * number, "exchange": "gossip", **settings}
    run, rows = Synthetic(path, agents=1, **settings), updates(number, seconds)
    run.write(0, updates=rows, episodes=episodes(rows, score(rows["steps"].astype(float))))
    return path
