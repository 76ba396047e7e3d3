"""A finished run in a few numbers: what docs/results.md is made from (`results.py`), small enough to be kept with the program.

Definitions:

* score: the mean of the episodes that ended in the last tenth of the run's steps; none where none did.
* area: the mean over the run's twenty twentieths of the mean score in each. Where no episode ended, the one before counts on;
  those before the first episode are left out.
* played: the mean score of the newest evaluation's games: of the mean of the agents, or of their moving averages where these
  were evaluated (--ema); where agents share nothing of every agent's policy.
* distance, ratio: see consensus.py, at the last update looked at, and the largest.
* cosine: see gradients.py, mean over pairs of agents and updates.
* lag: of the messages mixed, median.
* machine: where these numbers were taken, which with `paper.py --collect` need not be where the run was made.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

import checkout  # noqa: F401
from consensus import drift
from curves import bin_scores, carried
from gala_mpi.run import Run
from gradients import cosines

BINS = 20


def digest(run: Run) -> dict[str, float | str]:
    """Return the numbers of a run, and by what and on what it was made. NaN: there is no such number."""
    steps, score = run.scores["steps"], run.scores["score"]
    last = steps > 0.9 * run.config["total_steps"]
    curve = carried(np.array([score for _, _, score in points(run)]))
    start = run.starts[-1]
    return {
        "steps": run.steps,
        "updates": float(np.mean(run.newest["update"])),
        "hours": run.hours,
        "score": mean(score[last]),
        "area": mean(curve[np.isfinite(curve)]),
        **evaluated(run),
        **together(run),
        "resumed": len(run.starts) - 1,
        "cores": start["cores"],
        "machine": processor(),
        "gala_mpi": start["gala_mpi"],
        "commit": start["commit"],
        "packages": " ".join([f"python {start['python']}", start["mpi"], *start["packages"][:2]]),
    }


def points(run: Run) -> list[tuple[float, float, float]]:
    """Return steps, hours and mean score (NaN: no episode ended) of each twentieth of a run's steps; steps are its end's."""
    total = run.config["total_steps"]
    edges = np.linspace(0, total, BINS + 1)
    scores = run.scores
    _, values, _ = bin_scores(np.minimum(scores["steps"], total), scores["score"], edges)
    rows = run.updates(0)
    hours = np.interp(edges[1:], run.steps_of_all(0, rows), rows["hours"])
    return list(zip(edges[1:].tolist(), hours.tolist(), values.tolist()))


def evaluated(run: Run) -> dict[str, float]:
    """Return the score of the final policy in the newest evaluation, and of how many games."""
    if not run.evaluations:
        return {"played": np.nan, "games": 0}
    games, _ = run.evaluations[-1]
    policy = games["policy"]  # an agent; -1: the mean; -2: that of moving averages, and no other
    apart = run.agents > 1 and run.config["exchange"] == "none"
    scores = games["score"][policy >= 0 if apart else policy == policy.min()]
    return {"played": mean(scores), "games": len(scores)}


def together(run: Run) -> dict[str, float]:
    """Return what agents have to do with each other."""
    if run.agents == 1 or not all(len(run.sketches(rank)) for rank in range(run.agents)):
        return {"distance": np.nan, "ratio": np.nan, "cosine": np.nan, "lag": np.nan}
    drifted, pairs = drift(run), np.triu_indices(run.agents, 1)
    lags = np.concatenate([run.updates(rank)["age"] for rank in range(run.agents)])
    lags = lags[np.isfinite(lags)]
    return {
        "distance": float(drifted.distance[-1]) if len(drifted.updates) else np.nan,
        "ratio": float(np.nanmax(drifted.ratio)) if np.isfinite(drifted.ratio).any() else np.nan,
        "cosine": mean(cosines(run)[:, *pairs]),
        "lag": float(np.median(lags)) if len(lags) else np.nan,
    }


def mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if np.size(values) else np.nan


def processor() -> str:
    """Return the name of this machine's processor."""
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
