"""What a start goes on from: the newest sound checkpoint, for as many agents as there are now."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from gala_mpi import networks
from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.exchange.base import Shared
from gala_mpi.learners.base import Learner
from gala_mpi.run import checkpoints, layout
from gala_mpi.run.checkpoints import State


@dataclass(frozen=True)
class Origin:
    """What a start goes on from.

    Attributes:
        number: the checkpoint; 0: from scratch.
        last: the newest checkpoint number in use, by damaged and incomplete checkpoints too. Later ones come after it, so that
            no file of another start ever seems to complete them.
        agents: whose checkpoint it is.
        updates: of the agent that had done most.
        steps: of all agents.
        newest: the saved agent whose file has the newest of the vector that all share; None: each has its own.
        shares: float64 [ranks, agents], how much of each saved agent goes into each of this start (see `elastic`).
    """

    number: int = 0
    last: int = 0
    agents: int = 0
    updates: int = 0
    steps: int = 0
    newest: int | None = None
    shares: np.ndarray = field(default_factory=lambda: np.eye(1))


class Scores(NamedTuple):
    """The training score, as a rank knows it: see `State`."""

    score: float
    games: int
    recent: tuple[float, ...]


def take(learner: Learner, config: Config, agents: int, hours: float, scores: Scores, shared: Shared | None = None) -> State:
    """Return this rank's state now, with the vector that all agents share if there is one."""
    network = learner.network
    policy = {"env": config.env, **network.description(), "parameters": learner.flat.table}
    state = State(network.name, agents, hours, scores.score, learner.state(), policy, games=scores.games, recent=scores.recent)
    if shared is not None:
        state.learner["parameters"], state.pushes = shared
    return state


def restore(run: Path, origin: Origin, rank: int, learner: Learner) -> float:
    """Put the saved state back; return the hours that the run had trained.

    When the number of agents has changed, vectors are averaged by `origin.shares`, all go on from the same update, later than
    any that was done, and the run's steps are dealt anew, so that they still add up. Of other counters (Adam's) the largest
    counts. Agents that share one vector all go on from the newest.
    """
    parts = [(share, checkpoints.load(run, origin.number, agent)) for agent, share in enumerate(origin.shares[rank]) if share]
    saved = parts[0][1].learner
    for name in [name for name, value in saved.items() if np.ndim(value)]:
        mean = cast(np.ndarray, sum(share * part.learner[name].astype(np.float64) for share, part in parts))  # one at least
        saved[name] = mean.astype(saved[name].dtype)
    for name in [name for name, value in saved.items() if not np.ndim(value)]:
        saved[name] = max(part.learner[name] for _, part in parts)
    if origin.newest is not None:
        saved["parameters"] = checkpoints.load(run, origin.number, origin.newest).learner["parameters"]
    ranks = len(origin.shares)
    if ranks != origin.agents:
        saved["updates"] = np.int64(origin.updates)
        saved["steps"] = np.int64(origin.steps // ranks + (rank < origin.steps % ranks))
    learner.load(saved)
    return max(part.hours for _, part in parts)


def recent_scores(run: Path, origin: Origin, rank: int) -> list[float]:
    """Return the last scores that a rank goes on with, oldest first: its own, or its share of those of all agents, where these
    were more or fewer."""
    ranks = len(origin.shares)
    if ranks == origin.agents:
        return list(checkpoints.load(run, origin.number, rank).recent)
    saved = [checkpoints.load(run, origin.number, agent).recent for agent in range(origin.agents)]
    return [score for recent in saved for score in recent][rank::ranks]


def resumable(run: Path, network: str, length: int | None = None) -> Origin:
    """What agents with `network` of `length` parameters (None: of any number) resume from; all but its `shares`. A run that was
    killed before all its ranks had saved once begins anew.

    Raises:
        SettingError: there are checkpoints but no sound one, or it is of another network, or of other spaces.
    """
    last = max(checkpoints.numbers(run), default=0)
    number, states = next(checkpoints.sound(run), (0, []))
    if not states and (checkpoints.complete(run) or checkpoints.unreadable(run)):
        raise SettingError(f"--resume --run-dir {run}: all its checkpoints are damaged; a sound one is expected")
    if not states:
        return Origin(last=last)
    if states[0].network != network and not networks.moved(network, states[0].network):
        raise SettingError(
            f"--network {network}: the checkpoints in {run} are of another network; {states[0].network} is expected"
        )
    saved = len(checkpoints.load(run, number, 0).learner["parameters"]) if length is not None else None
    if saved != length:  # the environment has other observations or actions
        raise SettingError(
            f"--resume --run-dir {run}: the network has {length:,} parameters with these settings of the environment, "
            f"its checkpoints have {saved:,}; the environment that the run was started with is expected"
        )
    updates, steps = ([int(state.learner[name]) for state in states] for name in ("updates", "steps"))
    newest = checkpoints.newest_vector([state.pushes for state in states])
    return Origin(number, last, len(states), max(updates), sum(steps), newest)


def replace_lost(run: Path) -> None:
    """Give every rank that has died a file in the newest checkpoint of the living: its own newest, else its neighbour's.

    From its own it does again what it did after it. In a neighbour's place it goes on from that one's parameters and
    optimiser, and its steps are done again.
    """
    lost = layout.lost(run)
    number = (checkpoints.newest(run) if lost else None) or 0
    there = checkpoints.ranks(run, number)
    for rank in sorted(lost & {*range(checkpoints.agents(run, number))} - {*there}):
        own = checkpoints.newest_of(run, rank)
        state = checkpoints.load(run, own, rank) if own else None
        # It may be of a start with another number of agents.
        if state is None or state.agents != checkpoints.agents(run, number):
            state = checkpoints.load(run, number, max((other for other in there if other < rank), default=there[-1]))
            state.learner |= {"updates": 0, "steps": 0}
            state.recent = ()
        checkpoints.write(run, number, rank, state)
