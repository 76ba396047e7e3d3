"""The policies that a run's checkpoint holds: every agent's, and that of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.cli import require
from gala_mpi.errors import JobError, SettingError
from gala_mpi.run import checkpoints, layout

MEAN = -1  # the policy with all agents' parameters averaged, or with the one vector that they share
EMA = -2  # the one with all agents' moving averages averaged
NAMED = {"newest": checkpoints.newest, "last": checkpoints.newest, "best": checkpoints.best_sound}


@dataclass(frozen=True)
class Policies:
    """What a checkpoint's policies are.

    Attributes:
        vectors: the parameters of every policy, float32 [P], by agent, and last that of all agents together (MEAN or EMA).
        together: what the last one is.
        description: what they are the parameters of (docs/checkpoints.md); None: an older checkpoint, which does not say.
        steps: of all agents.
        hours: training time of the run.
    """

    vectors: dict[int, np.ndarray]
    together: str
    description: dict[str, Any] | None = None
    steps: int = 0
    hours: float = np.nan


def check_name(checkpoint: str, flag: str = "--checkpoint") -> None:
    """Refuse what names no checkpoint. Raises SettingError."""
    known = checkpoint in NAMED or (checkpoint.isascii() and checkpoint.isdigit())
    require(known, flag, checkpoint, "newest, best or a checkpoint's number")


def find(run: Path, checkpoint: str, flag: str = "--checkpoint") -> int:
    """Return the number of the checkpoint of this name: newest (or last), best (see `checkpoints.best`), or a number.

    Damaged files that are passed over are named on standard error.

    Raises:
        SettingError: there is no such complete checkpoint.
    """
    number = NAMED[checkpoint](run) if checkpoint in NAMED else int(checkpoint)
    available = checkpoints.complete(run)
    if number not in available:
        numbers = ", ".join(map(str, available)) or "none is complete yet"
        raise SettingError(f"{flag} {checkpoint}: a complete checkpoint of {run} is expected ({numbers})")
    return number


def read(run: Path, number: int, agents: Sequence[int], each: bool = True, ema: bool = False) -> Policies:
    """Read the policies of these agents' files.

    Args:
        each: whether every agent's own is wanted too. Agents that share one vector have none.
        ema: the mean of the agents' moving averages is wanted, and nothing else.

    Raises:
        JobError: names the file that cannot be read.
        SettingError: the checkpoint has no moving average.
    """
    vectors: dict[int, np.ndarray] = {}
    total: np.ndarray = np.zeros(())
    pushes: list[int | None] = []
    description, steps, hours = None, 0, 0.0
    for agent in agents:
        state = _load(run, number, agent)
        vector = state.learner.get("ema" if ema else "parameters")
        if vector is None:
            raise SettingError(f"checkpoint {number} of {run} has no moving average; one of a run with --ema is expected")
        total = total + vector.astype(np.float64)
        pushes.append(state.pushes)
        description = description or state.policy
        steps, hours = steps + int(state.learner["steps"]), max(hours, state.hours)
        if each:
            vectors[agent] = vector
    mean = (total / len(agents)).astype(np.float32)
    if ema:
        return Policies({EMA: mean}, "moving average of all agents", description, steps, hours)
    newest = checkpoints.newest_vector(pushes)
    if newest is not None:
        shared = _load(run, number, agents[newest]).learner["parameters"]
        return Policies({MEAN: shared}, "shared vector", description, steps, hours)
    return Policies(vectors | {MEAN: mean}, "mean of all agents", description, steps, hours)


def _load(run: Path, number: int, agent: int) -> checkpoints.State:
    try:
        return checkpoints.load(run, number, agent)
    except Exception as error:  # h5py raises many kinds
        raise JobError(f"{layout.checkpoint_file(run, number, agent)} is damaged or deleted ({error})") from None
