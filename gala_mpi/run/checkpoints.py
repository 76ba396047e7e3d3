"""All that a resume needs, and a policy that is rebuilt elsewhere (docs/checkpoints.md): one file a rank and checkpoint.

Ranks save without waiting for each other. A checkpoint has the same number on every rank. A reader takes the
newest one of which every rank's file is there and sound; nobody declares it complete. Ranks that have died
(`layout.lost`) are not waited for; a resume gives them a file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.errors import JobError
from gala_mpi.run import evaluations, files, layout

# Games behind a training score by which checkpoints are compared: half of its window, since an agent that is slow, or lost, may
# never play its part of one.
FEWEST_GAMES = 50


@dataclass
class State:
    """One rank's state after an update. Its random streams begin anew at each start, from (seed, rank, update)."""

    network: str
    agents: int
    hours: float  # training time of the run
    score: float  # mean of the last 100 scores over all agents, as rank 0 knew it; NaN before the first
    learner: dict[str, Any]  # Learner.state()
    # What `parameters` are the parameters of: see docs/checkpoints.md. None: an older checkpoint, which does not say.
    policy: dict[str, Any] | None = None
    # Of agents that share one vector: how many steps had been added to it when it was read. None: the agent's own parameters.
    pushes: int | None = None
    games: int | None = None  # of how many scores `score` is the mean. None: an older checkpoint, which does not say.
    recent: tuple[float, ...] = ()  # this agent's own of them, oldest first


def write(run: Path, number: int, rank: int, state: State) -> None:
    """One rank's file, whole and on disk or not there at all.

    Raises:
        DiskError: it cannot be written.
        JobError: a vector is not finite, and is not worth a file.
    """
    path = layout.checkpoint_file(run, number, rank)
    if broken := _not_finite(state.learner):
        raise JobError(f"{path} is not written; not finite: {broken}")
    with files.naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.sync(path.parent.parent)
    with files.atomic(path) as file:
        file.attrs["network"] = np.bytes_(state.network)  # strings of variable length have no checksum
        file.attrs["agents"] = state.agents
        file.attrs["hours"] = state.hours
        file.attrs["score"] = state.score
        for name, count in (("pushes", state.pushes), ("games", state.games)):
            if count is not None:
                file.attrs[name] = count
        if state.recent:
            file.create_dataset("recent", data=np.array(state.recent), fletcher32=True, chunks=True)
        learner = file.create_group("learner")
        for name, value in state.learner.items():
            if np.ndim(value):
                learner.create_dataset(name, data=value, fletcher32=True, chunks=True)
            else:
                learner.attrs[name] = value
        if state.policy is not None:  # of fixed length, and no attribute, which may not be so long
            text = np.array([json.dumps(state.policy).encode()])
            file.create_dataset("policy", data=text, fletcher32=True, chunks=True)


def numbers(run: Path) -> list[int]:
    """Every number that has begun to be written, oldest first."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def agents(run: Path, number: int) -> int:
    """How many agents a checkpoint is of, by the first of its files that can be read; 0: none can."""
    for path in layout.checkpoint_files(run, number):
        try:
            with files.reading(path) as file:
                return int(file.attrs["agents"])
        except Exception:  # damaged (h5py raises many kinds)
            continue
    return 0


def complete(run: Path) -> list[int]:
    """The numbers of which all files are there, but for those of the dead, oldest first."""
    return [number for number in numbers(run) if is_complete(run, number)]


def is_complete(run: Path, number: int) -> bool:
    """Whether all files of a checkpoint are there, but for those of the dead."""
    return _is_complete(run, number, agents(run, number))


def unreadable(run: Path) -> bool:
    """Whether there is a checkpoint of which no file can be read. Files appear whole, so a kill leaves none such."""
    return any(layout.checkpoint_files(run, number) and not agents(run, number) for number in numbers(run))


def saved_updates(run: Path, number: int) -> dict[int, int]:
    """Return the update at which each rank saved a checkpoint; empty unless it is complete. No vector is read.

    Raises:
        Exception: a file is damaged; h5py raises many kinds.
    """
    updates, agents = {}, 0
    for path, rank in zip(layout.checkpoint_files(run, number), ranks(run, number)):
        with files.reading(path) as file:
            updates[rank], agents = int(file["learner"].attrs["updates"]), int(file.attrs["agents"])
    return updates if _is_complete(run, number, agents) else {}


def _is_complete(run: Path, number: int, agents: int) -> bool:
    return agents > 0 and {*range(agents)} <= {*ranks(run, number)} | layout.lost(run)


def ranks(run: Path, number: int) -> list[int]:
    """The ranks whose files are there."""
    return [int(path.stem.removeprefix("rank")) for path in layout.checkpoint_files(run, number)]


def best(run: Path) -> int | None:
    """The best complete checkpoint, or None. A later one wins a tie. No vector is read.

    It is the one with the best score in evaluations, where the run is evaluated while it trains and some complete one has
    been; else the one with the best training score. Of these, scores of fewer than FEWEST_GAMES games tell nothing: where there
    are no others, the newest is the best.
    """
    return next(iter(_best_first(run)), None)


def newest(run: Path) -> int | None:
    """The newest checkpoint of which every file is there and sound, or None."""
    return next((number for number, _ in sound(run)), None)


def load(run: Path, number: int, rank: int) -> State:
    """One rank's state.

    Raises:
        Exception: the file is missing, damaged or of another kind; h5py raises many kinds.
    """
    return _read(layout.checkpoint_file(run, number, rank))


def sound(run: Path) -> Iterator[tuple[int, list[State]]]:
    """The numbers of which every file is there and sound, newest first, with what the files say (but for the vectors).

    Damaged files are named on standard error.
    """
    return _sound(run, reversed(numbers(run)))


def best_sound(run: Path) -> int | None:
    """The best checkpoint (see `best`) of which every file is there and sound, or None.

    Damaged files are named on standard error.
    """
    return next((number for number, _ in _sound(run, _best_first(run))), None)


def _sound(run: Path, among: Iterable[int]) -> Iterator[tuple[int, list[State]]]:
    for number in among:
        states: list[State] = []
        for path in layout.checkpoint_files(run, number):
            try:
                state = _read(path)
            except FileNotFoundError:  # deleted meanwhile, by a run that goes on
                break
            except Exception as error:  # h5py raises many kinds
                print(f"gala_mpi: {path} is damaged and passed over ({error})", file=sys.stderr, flush=True)
                break
            counters = {name: value for name, value in state.learner.items() if not np.ndim(value)}
            states.append(dataclasses.replace(state, learner=counters))
        else:
            if states and _is_complete(run, number, states[0].agents):
                yield number, states


def _read(path: Path) -> State:
    with files.reading(path) as file:
        state = State(
            network=np.asarray(file.attrs["network"]).astype(str).item(),
            agents=int(file.attrs["agents"]),
            hours=float(file.attrs["hours"]),
            score=float(file.attrs["score"]),
            learner={name: value[()] for name, value in file["learner"].items()} | dict(file["learner"].attrs),
            policy=json.loads(file["policy"][0]) if "policy" in file else None,
            pushes=int(file.attrs["pushes"]) if "pushes" in file.attrs else None,
            games=int(file.attrs["games"]) if "games" in file.attrs else None,
            recent=tuple(file["recent"][:].tolist()) if "recent" in file else (),
        )
    if broken := _not_finite(state.learner):
        raise ValueError(f"not finite: {broken}")
    return state


def _not_finite(learner: dict[str, Any]) -> str:
    """Return the name of a vector of which some number is not finite; empty: all are."""
    return next((name for name, value in learner.items() if np.ndim(value) and not np.isfinite(value).all()), "")


def newest_vector(pushes: Sequence[int | None]) -> int | None:
    """Return which file of a checkpoint has the newest of a shared vector, as ranks read it one after another.

    Args:
        pushes: those of each file's state.

    Returns:
        An index of `pushes`, the first of several that are alike; None: each file has its agent's own parameters.
    """
    counts = [-1 if count is None else count for count in pushes]
    return counts.index(max(counts)) if max(counts, default=-1) >= 0 else None


def newest_of(run: Path, rank: int) -> int:
    """The newest checkpoint that has a sound file of `rank`, or 0."""
    for number in reversed(numbers(run)):
        try:
            load(run, number, rank)
            return number
        except Exception:  # missing or damaged
            continue
    return 0


def _best_first(run: Path) -> list[int]:
    """Return the complete checkpoints, the best one first: those that were evaluated before the others."""
    evaluated = evaluations.scores(run)

    def rank(number: int) -> tuple[bool, float, int]:
        return number in evaluated, evaluated[number] if number in evaluated else _score(run, number), number

    return sorted(complete(run), key=rank, reverse=True)


def _score(run: Path, number: int) -> float:
    """Return the training score of a checkpoint, by the first of its files that can be read; -inf: there is none that tells
    anything. (Of older ones it is not known how many games it is of.)"""
    for path in layout.checkpoint_files(run, number):
        try:
            with files.reading(path) as file:
                enough = file.attrs.get("games", FEWEST_GAMES) >= FEWEST_GAMES
                return float(np.nan_to_num(file.attrs["score"], nan=-np.inf)) if enough else -np.inf
        except Exception:  # damaged
            continue
    return -np.inf
