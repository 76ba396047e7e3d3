"""What all exchanges are: a class whose defaults share nothing. A member says only what differs.

It is one file with these methods, and one line of the table in `gala_mpi.exchange`. Whoever asks something of an exchange asks
its class, never its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi.exchange.agreement import Agreement, Order, Tree
from gala_mpi.mpi.mailbox import Reach
from gala_mpi.topology import Graph, Topology


class Mix(NamedTuple):
    """A message that was averaged into the parameters: whose, which version, with which weight."""

    peer: int
    version: int
    weight: float


@dataclass
class Counters:
    """What an exchange did in the last update."""

    mixes: list[Mix] = field(default_factory=list)  # the messages averaged into the parameters
    staleness: int = 0  # updates since the last mix
    torn: int = 0  # messages thrown away so far because their slot was rewritten while they were read
    corrupt: int = 0  # messages thrown away so far: their checksum was wrong (checksum mode), or a number in them not finite
    progress_gap: float = 0.0  # longest time since the last update without a progress, s
    lost: dict[int, int] = field(default_factory=dict)  # peers that show no sign of life, and their last versions (--survive)
    lag: float | None = None  # updates of others since what this one began from was read; None: the versions in `mixes` tell


class Shared(NamedTuple):
    """The one vector of agents that have none of their own (float32 [P]), and how many steps had been added to it."""

    vector: np.ndarray
    pushes: int


def is_finite(vector: torch.Tensor) -> bool:
    """Return whether all numbers of a vector, float32 [P], are finite (and their sum is).

    By the sum, which takes a fiftieth of the time of `torch.isfinite(vector).all()`.
    """
    return math.isfinite(vector.sum())


class Settings(Protocol):
    """The settings of a run that exchanges read; config.py documents them."""

    @property
    def topology(self) -> Graph: ...

    @property
    def staleness(self) -> int | None: ...

    @property
    def max_lag(self) -> int | None: ...

    @property
    def checksum(self) -> bool: ...

    @property
    def survive(self) -> float | None: ...

    @property
    def sync_updates(self) -> int | None: ...

    @property
    def preempt(self) -> float | None: ...


class Exchange:
    """One way to share. Vectors are float32 [P], all on the agent's device, and are changed in place.

    The methods here share nothing. The word that somebody stops goes from rank to rank along a tree.

    Args:
        comm: all agents.
        length: P, the number of parameters.
        agreement: how ranks stop and save together.

    Attributes:
        takes: the names of settings that not every exchange has, but this one; with "replay", its runs can be replayed from the
            mixes that they record.
        collective: whether ranks meet in collective operations, so that all have to do the same number of updates.
        averages_gradients: whether ranks meet at every gradient, so that all have to take as many.
        shares: whether agents learn from each other's environments.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    collective: ClassVar[bool] = False
    averages_gradients: ClassVar[bool] = False
    shares: ClassVar[bool] = True

    # Of the class: what is asked before there is an exchange. `settings` always are those of a run with this exchange.

    @classmethod
    def build(cls, comm: MPI.Intracomm, length: int, settings: Settings) -> Self:
        """Return the exchange of two agents or more. Collective."""
        return cls(comm, length)

    @classmethod
    def in_step(cls, settings: Settings) -> bool:
        """Return whether all agents stand at the same update after every update."""
        return False

    @classmethod
    def graph(cls, settings: Settings, agents: int) -> Topology | None:
        """Return who reads whom; None: there is no graph.

        Raises:
            SettingError: the graph is not for so many agents.
        """
        return None

    @classmethod
    def propagation_delay(cls, settings: Settings, agents: int) -> int:
        """Return how many updates may pass between a wish to stop and the stop."""
        return agents

    @classmethod
    def window_bytes(cls, settings: Settings, length: int, reach: Reach) -> int:
        """Return how large the window of each of two ranks or more is; less than a page is not counted."""
        return 0

    # Of the exchange, in the order of their calls.

    def __init__(self, comm: MPI.Intracomm, length: int, agreement: Agreement | None = None):
        self._comm, self._length = comm, length
        self._agreement = agreement or (Tree(comm) if comm.size > 1 else Agreement())

    def start(self, version: int, parameters: torch.Tensor) -> None:
        """Begin, or resume, at update `version` with these parameters. Collective."""
        self._agreement.start()

    def cut_short(self) -> bool:
        """Return whether this rank is to end its rollout now, since others wait for it. Asked at every step."""
        return False

    def played(self, steps: int) -> None:
        """Take note that this rank has played a rollout, of so many steps."""

    def steps(self) -> int | None:
        """Return the steps of all ranks since the start, where they count them when they meet; None: they do not."""

    def gradient(self, gradient: torch.Tensor) -> bool:
        """Share the gradient; called after the backward pass, before the optimiser.

        Returns:
            Whether it was of use. It is not where the exchange has found it not finite, and put something else in its place.
        """
        return True

    def room(self) -> torch.Tensor | None:
        """Return where the optimiser's result is best written; None: in place. Called before its step.

        `parameters` then finds it there, and sets all of what it is given.
        """

    def parameters(self, parameters: torch.Tensor) -> None:
        """Share the parameters; called after the optimiser's step."""

    def at_mean(self) -> bool:
        """Return whether the last update has ended at the mean of all agents, from which an outer step may go on."""
        return False

    def progress(self) -> None:
        """Move messages along without waiting; called often."""
        self._agreement.progress()

    def agree(self, wish: Order) -> Order:
        """Return what to do after this update, in answer to this rank's wish. Ranks in step get the same answer on all."""
        return self._agreement.agree(wish)

    def counters(self) -> Counters:
        """Return what was done in the last update."""
        return Counters()

    def shared(self) -> Shared | None:
        """Return the one vector that agents share, as it is now or was when they closed; None: each has its own.

        It is what a checkpoint holds in place of the agent's parameters.
        """

    def serve(self, until: Callable[[dict[int, int]], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Serve the others, once this rank publishes no more, until `until(lost)` holds (see Counters.lost). Not collective.

        Only for exchanges that take `survive`.
        """
        raise NotImplementedError

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Serve the others until all are here, calling `meanwhile` as often as may be, then free the windows. Collective, and
        the last call."""
        self._agreement.close(meanwhile)
