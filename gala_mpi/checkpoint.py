"""All that a resume needs, one file a rank and generation.

Ranks save without waiting for each other. A generation is a checkpoint's number: the g-th of this run on every rank. A
reader takes the newest generation of which every rank's file is there and sound; nobody declares it complete.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gala_mpi import store
from gala_mpi.errors import SettingError
from gala_mpi.learner import A2C


@dataclass
class State:
    """One rank's state after an update."""

    network: str
    agents: int
    hours: float  # training time of the run
    score: float  # mean of the last 100 scores over all agents, as rank 0 knew it; NaN before the first
    torch_rng: np.ndarray  # uint8: the generator that draws actions
    learner: dict[str, np.ndarray]  # A2C.state()


def take(learner: A2C, network: str, agents: int, hours: float, score: float) -> State:
    """This rank's state now."""
    return State(network, agents, hours, score, torch.get_rng_state().numpy(), learner.state())


def restore(run: Path, generation: int, rank: int, learner: A2C) -> float:
    """Put the saved state back; the hours that the run had trained."""
    state = load(run, generation, rank)
    learner.load(state.learner)
    torch.set_rng_state(torch.from_numpy(state.torch_rng))
    return state.hours


class Checkpoints:
    """When to save, where, and what to keep.

    Args:
        run: the run directory.
        rank: whose files.
        minutes: between checkpoints.
        keep: how many of the newest complete generations stay; the one with the best score stays as well.
        generation: of the last checkpoint.
    """

    def __init__(self, run: Path, rank: int, minutes: float, keep: int, generation: int):
        self._run, self._rank, self._keep = run, rank, keep
        self.generation = generation
        self.slowest = 0.0  # the longest that a checkpoint has taken, s
        self._seconds = 60 * minutes
        self._due = time.monotonic() + self._seconds

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, state: State, generation: int | None = None) -> None:
        """Write the next generation (or `generation`); rank 0 also deletes what need not be kept."""
        began = time.monotonic()
        self.generation = generation if generation is not None else self.generation + 1
        # By the schedule, not by now: generations then fall at about the same time on all ranks.
        self._due += self._seconds
        path = store.checkpoint_file(self._run, self.generation, self._rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.atomic(path) as file:
            file.attrs["network"] = np.bytes_(state.network)  # strings of variable length have no checksum
            file.attrs["agents"] = state.agents
            file.attrs["hours"] = state.hours
            file.attrs["score"] = state.score
            learner = file.create_group("learner")
            learner.attrs.update({name: value for name, value in state.learner.items() if not np.ndim(value)})
            arrays = {f"learner/{name}": value for name, value in state.learner.items() if np.ndim(value)}
            for name, value in {"torch_rng": state.torch_rng, **arrays}.items():
                file.create_dataset(name, data=value, fletcher32=True, chunks=True)
        if self._rank == 0:
            self._prune(state.agents)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _prune(self, agents: int) -> None:
        done = complete(self._run, agents)
        champion = best(self._run, agents)
        for generation in done[: -self._keep]:
            if generation != champion:
                shutil.rmtree(store.checkpoint_file(self._run, generation, 0).parent)


def generations(run: Path) -> list[int]:
    """Every generation that has begun to be written, oldest first."""
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def complete(run: Path, agents: int) -> list[int]:
    """The generations of which all files are there, oldest first."""
    ranks = range(agents)
    return [g for g in generations(run) if all(store.checkpoint_file(run, g, rank).exists() for rank in ranks)]


def best(run: Path, agents: int) -> int | None:
    """The complete generation with the best training score, or None. A later one wins a tie."""
    return max(complete(run, agents), key=lambda generation: (_score(run, generation), generation), default=None)


def newest(run: Path, agents: int) -> int | None:
    """The newest generation of which every file is there and sound, or None."""
    for generation in reversed(complete(run, agents)):
        try:
            for rank in range(agents):
                load(run, generation, rank)
            return generation
        except Exception:  # damaged (h5py raises many kinds): an older one is still good
            continue
    return None


def load(run: Path, generation: int, rank: int) -> State:
    """One rank's state.

    Raises:
        Exception: the file is missing, damaged or of another kind; h5py raises many kinds.
    """
    with store.reading(store.checkpoint_file(run, generation, rank)) as file:
        return State(
            network=np.asarray(file.attrs["network"]).astype(str).item(),
            agents=int(file.attrs["agents"]),
            hours=float(file.attrs["hours"]),
            score=float(file.attrs["score"]),
            torch_rng=file["torch_rng"][()],
            learner={name: value[()] for name, value in file["learner"].items()} | dict(file["learner"].attrs),
        )


def resumable(run: Path, agents: int, network: str) -> int:
    """The generation that `agents` agents with `network` resume from.

    Raises:
        SettingError: there is none, or it is of another number of agents or another network.
    """
    started_with = store.read_agents(run)
    if started_with != agents:
        raise SettingError(
            f"--resume --run-dir {run}: {agents} ranks; the run's {started_with} ranks are expected (mpirun -n {started_with})"
        )
    generation = newest(run, agents)
    if generation is None:
        raise SettingError(f"--resume --run-dir {run}: no checkpoint of all {agents} ranks; one is expected")
    saved = load(run, generation, 0).network
    if saved != network:
        raise SettingError(f"--network {network}: the checkpoints in {run} are of another network; {saved} is expected")
    return generation


def discard_after(run: Path, generation: int) -> None:
    """Forget what was saved after `generation`: the run goes on from there, and its next files must not mix with these."""
    for later in generations(run):
        if later > generation:
            shutil.rmtree(store.checkpoint_file(run, later, 0).parent)


def _score(run: Path, generation: int) -> float:
    try:
        with store.reading(store.checkpoint_file(run, generation, 0)) as file:
            return float(np.nan_to_num(file.attrs["score"], nan=-np.inf))
    except Exception:  # damaged
        return -np.inf
