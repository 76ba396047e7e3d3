"""All that a resume needs, one file a rank and generation.

Ranks save without waiting for each other. A generation is a checkpoint's number, the same on every rank. A reader takes the
newest generation of which every rank's file is there and sound; nobody declares it complete. Ranks that have died
(`store.lost`) are not waited for; a resume gives them a file.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gala_mpi import store
from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.exchange import Order
from gala_mpi.learner import A2C


@dataclass
class State:
    """One rank's state after an update. Its random streams begin anew at each start, from (seed, rank, update)."""

    network: str
    agents: int
    hours: float  # training time of the run
    score: float  # mean of the last 100 scores over all agents, as rank 0 knew it; NaN before the first
    learner: dict[str, np.ndarray]  # A2C.state()


@dataclass(frozen=True)
class Origin:
    """What a start goes on from.

    Attributes:
        generation: the checkpoint; 0: from scratch.
        last: the newest number in use, by damaged and incomplete checkpoints too. Later ones come after it, so that no file of
            another start ever seems to complete them.
        agents: whose checkpoint it is.
        updates: of the agent that had done most.
        steps: of all agents.
        shares: float64 [ranks, agents], how much of each saved agent goes into each of this start (see `elastic`).
    """

    generation: int = 0
    last: int = 0
    agents: int = 0
    updates: int = 0
    steps: int = 0
    shares: np.ndarray = field(default_factory=lambda: np.eye(1))


def take(learner: A2C, network: str, agents: int, hours: float, score: float) -> State:
    """This rank's state now."""
    return State(network, agents, hours, score, learner.state())


def restore(run: Path, origin: Origin, rank: int, learner: A2C) -> float:
    """Put the saved state back; the hours that the run had trained.

    When the number of agents has changed, vectors are averaged by `origin.shares`, all go on from the same update, later than
    any that was done, and the run's steps are dealt anew, so that they still add up.
    """
    parts = [(share, load(run, origin.generation, agent)) for agent, share in enumerate(origin.shares[rank]) if share]
    saved = parts[0][1].learner
    for name in [name for name, value in saved.items() if np.ndim(value)]:
        mean = sum(share * part.learner[name].astype(np.float64) for share, part in parts)
        saved[name] = mean.astype(saved[name].dtype)
    ranks = len(origin.shares)
    if ranks != origin.agents:
        saved["updates"] = np.int64(origin.updates)
        saved["steps"] = np.int64(origin.steps // ranks + (rank < origin.steps % ranks))
    learner.load(saved)
    return max(part.hours for _, part in parts)


class Checkpoints:
    """When to save, where, and what to keep.

    Args:
        run: the run directory.
        rank: whose files.
        config: how often, and how many of the newest complete generations stay; the one with the best score stays as well, and
            the last of every rank that has died.
        generation: the newest number in use.

    Attributes:
        slowest: the longest that a checkpoint has taken, s.
    """

    def __init__(self, run: Path, rank: int, config: Config, generation: int):
        self._run, self._rank, self._config = run, rank, config
        self.generation = generation
        self.slowest = 0.0
        self._seconds = 60 * config.checkpoint_minutes
        self._due = time.monotonic() + self._seconds

    def due(self) -> bool:
        """Whether it is time by this rank's clock. Exact runs do not go by it."""
        return not self._config.exact_resume and time.monotonic() >= self._due

    def heed(self, order: Order, update: int) -> Order:
        """What to do after `update`: what was agreed on. Exact runs save at every N-th update, and stop nowhere else; a replay
        stops where the record does."""
        if not self._config.exact_resume:
            return order
        mark = update % self._config.exact_updates == 0
        return dataclasses.replace(order, save=mark, stop=order.stop and (mark or self._config.replay is not None))

    def save(self, state: State, generation: int | None = None) -> None:
        """Write the next generation (or `generation`); the first rank that lives also deletes what need not be kept.

        By the schedule, not by now: generations then fall at about the same time on all ranks. A rank that was suspended and
        has missed some leaves them out. Where all ranks save at the same update, they count together whatever their clocks say.
        """
        began = time.monotonic()
        missed = int(max(0.0, began - self._due) // self._seconds)
        self._due += (1 + missed) * self._seconds
        self.generation = generation or self.generation + 1 + (0 if self._config.in_step else missed)
        write(self._run, self.generation, self._rank, state)
        lost = store.lost(self._run)
        if self._rank == min({*range(state.agents)} - lost, default=0):
            self._prune(lost)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _prune(self, lost: set[int]) -> None:
        """Every rank saves in the order of the numbers: what is incomplete when a later one is complete stays so, unless a rank
        that was taken for dead is still writing."""
        done = complete(self._run)
        kept = {*done[-self._config.keep_checkpoints :], best(self._run)}
        kept |= {_newest_of(self._run, rank) for rank in lost}
        for generation in generations(self._run):
            folder = store.checkpoint_file(self._run, generation, 0).parent
            if done and generation < done[-1] and generation not in kept and not any(folder.glob(".*.tmp")):
                shutil.rmtree(folder, ignore_errors=True)


def write(run: Path, generation: int, rank: int, state: State) -> None:
    """One rank's file, whole and on disk or not there at all."""
    path = store.checkpoint_file(run, generation, rank)
    with store.naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.sync(path.parent.parent)
    with store.atomic(path) as file:
        file.attrs["network"] = np.bytes_(state.network)  # strings of variable length have no checksum
        file.attrs["agents"] = state.agents
        file.attrs["hours"] = state.hours
        file.attrs["score"] = state.score
        learner = file.create_group("learner")
        for name, value in state.learner.items():
            if np.ndim(value):
                learner.create_dataset(name, data=value, fletcher32=True, chunks=True)
            else:
                learner.attrs[name] = value


def generations(run: Path) -> list[int]:
    """Every generation that has begun to be written, oldest first."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def agents(run: Path, generation: int) -> int:
    """How many agents a checkpoint is of, by the first of its files that can be read; 0: none can."""
    for path in store.checkpoint_files(run, generation):
        try:
            with store.reading(path) as file:
                return int(file.attrs["agents"])
        except Exception:  # damaged (h5py raises many kinds)
            continue
    return 0


def complete(run: Path) -> list[int]:
    """The generations of which all files are there, but for those of the dead, oldest first."""
    return [generation for generation in generations(run) if _is_complete(run, generation, agents(run, generation))]


def _is_complete(run: Path, generation: int, agents: int) -> bool:
    return agents > 0 and {*range(agents)} <= {*ranks(run, generation)} | store.lost(run)


def ranks(run: Path, generation: int) -> list[int]:
    """The ranks whose files are there."""
    return [int(path.stem.removeprefix("rank")) for path in store.checkpoint_files(run, generation)]


def best(run: Path) -> int | None:
    """The complete generation with the best training score, or None. A later one wins a tie."""
    return max(complete(run), key=lambda generation: (_score(run, generation), generation), default=None)


def newest(run: Path) -> int | None:
    """The newest generation of which every file is there and sound, or None."""
    return next((generation for generation, _ in _sound(run)), None)


def load(run: Path, generation: int, rank: int) -> State:
    """One rank's state.

    Raises:
        Exception: the file is missing, damaged or of another kind; h5py raises many kinds.
    """
    return _read(store.checkpoint_file(run, generation, rank))


def resumable(run: Path, network: str) -> Origin:
    """What agents with `network` resume from; all but its `shares`. A run that was killed before all its ranks had saved once
    begins anew.

    Raises:
        SettingError: there are checkpoints but no sound one, or it is of another network.
    """
    last = max(generations(run), default=0)
    generation, states = next(_sound(run), (0, []))
    if not states and complete(run):
        raise SettingError(f"--resume --run-dir {run}: all its checkpoints are damaged; a sound one is expected")
    if not states:
        return Origin(last=last)
    if states[0].network != network:
        raise SettingError(
            f"--network {network}: the checkpoints in {run} are of another network; {states[0].network} is expected"
        )
    updates, steps = ([int(state.learner[name]) for state in states] for name in ("updates", "steps"))
    return Origin(generation, last, len(states), max(updates), sum(steps))


def _sound(run: Path) -> Iterator[tuple[int, list[State]]]:
    """The generations of which every file is there and sound, newest first, with what the files say (but for the vectors).

    Damaged files are named on standard error.
    """
    for generation in reversed(generations(run)):
        states: list[State] = []
        for path in store.checkpoint_files(run, generation):
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
            if states and _is_complete(run, generation, states[0].agents):
                yield generation, states


def _read(path: Path) -> State:
    with store.reading(path) as file:
        return State(
            network=np.asarray(file.attrs["network"]).astype(str).item(),
            agents=int(file.attrs["agents"]),
            hours=float(file.attrs["hours"]),
            score=float(file.attrs["score"]),
            learner={name: value[()] for name, value in file["learner"].items()} | dict(file["learner"].attrs),
        )


def replace_lost(run: Path) -> None:
    """Give every rank that has died a file in the newest generation of the living: its own newest, else its neighbour's.

    From its own it does again what it did after it. In a neighbour's place it goes on from that one's parameters and
    optimiser, and does all its updates.
    """
    lost = store.lost(run)
    generation = (newest(run) if lost else None) or 0
    there = ranks(run, generation)
    for rank in sorted(lost & {*range(agents(run, generation))} - {*there}):
        own = _newest_of(run, rank)
        state = load(run, own, rank) if own else None
        if state is None or state.agents != agents(run, generation):  # of a run that has since had another number of agents
            state = load(run, generation, max((other for other in there if other < rank), default=there[-1]))
            state.learner |= {"updates": 0, "steps": 0}
        write(run, generation, rank, state)


def _newest_of(run: Path, rank: int) -> int:
    """The newest generation that has a sound file of `rank`, or 0."""
    for generation in reversed(generations(run)):
        try:
            load(run, generation, rank)
            return generation
        except Exception:  # missing or damaged
            continue
    return 0


def _score(run: Path, generation: int) -> float:
    try:
        with store.reading(store.checkpoint_file(run, generation, 0)) as file:
            return float(np.nan_to_num(file.attrs["score"], nan=-np.inf))
    except Exception:  # damaged
        return -np.inf
