"""What a learner has in place of a collector, where actors play for it (--actors): their rollouts, as they arrive.

How far the parameters that played a rollout are behind is bounded by how many rollouts are under way, since each update learns
from one: as many as there are actors, if each goes on as soon as its last one is taken. Where they are more than
PLAYING_ON, an actor goes on once its last rollout has been learnt from, with what was learnt, and it is one less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gala_mpi.envs.base import Episode
from gala_mpi.errors import JobError
from gala_mpi.flat import Flat
from gala_mpi.mpi.liveness import Liveness
from gala_mpi.mpi.queues import CLOSES, ENDS, LEARNER, LEAVES, LearnerQueues
from gala_mpi.mpi.roll import Roll
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.collector import Arrival, Fault
from gala_mpi.rollout.message import Form, Played
from gala_mpi.rollout.stored import Stored

PLAYING_ON = 2  # actors of a learner, at most, that need not wait until it has learnt
LONGEST_PAUSE = 1e-3  # s, between two looks for a rollout


class Learner(Protocol):
    """A learner, as those who play for it see it: its parameters, and how many updates it has done."""

    flat: Flat
    updates: int


class Arrivals:
    """Gives a learner the rollouts of its actors, in the order of their arrival, and them its parameters.

    Args:
        learner: whose parameters.
        queues: to and from the actors.
        form: of their messages.
        passes: of the learner's network; become those of each rollout.
        num_envs: N, environments of each actor. Those of the k-th one (from 1 on) are counted from (k - 1) · N on.
        progress: called while this rank waits, so that MPI can move messages of other windows.
        survive: after how many seconds without a sign of life an actor is lost, at least; None: never.

    Attributes:
        steps, fault: as those of `Collector`.
        version: the update at whose beginning the parameters were those that have played the last rollout.
        arrival: how the last rollout came.
        lost: the actors that show no sign of life.
    """

    def __init__(
        self,
        learner: Learner,
        queues: LearnerQueues,
        form: Form,
        passes: Stored,
        num_envs: int,
        progress: Callable[[], None],
        survive: float | None = None,
    ):
        self._learner, self._queues, self._form, self.passes = learner, queues, form, passes
        self._num_envs, self._others = num_envs, progress
        self._roll = Roll.of(queues.crew)
        self._actors = range(1, queues.crew.size)
        self._liveness = Liveness(queues.rollouts, survive) if survive is not None else None
        if self._liveness:
            self._liveness.follow(self._actors)
        self.steps, self.version = 0, 0
        self.fault: Fault | None = None
        self.arrival = Arrival()

    @property
    def lost(self) -> dict[int, int]:
        """The actors that show no sign of life, and the number of the last rollout seen of each."""
        return self._liveness.lost if self._liveness else {}

    def collect(self) -> tuple[Batch, list[Episode]]:
        """Let actors have the newest parameters, wait for a rollout, and return it with the episodes that ended in it."""
        self._publish()
        began, waited, played = time.perf_counter(), 0.0, None
        self._look_after()
        while played is None:  # again only if it was rewritten meanwhile, which nobody does
            actor = self._next()
            waited = time.perf_counter() - began
            played = self._take(actor)
        if len(self._actors) <= PLAYING_ON:
            self._queues.acknowledge()
        self.steps, self.fault, self.version = played.batch.rewards.numel(), played.fault, played.version
        self.arrival = Arrival(waited, played.waited, self._queues.torn)
        return played.batch, played.episodes

    def progress(self) -> None:
        """Make progress: let MPI serve actors and other learners, and move rollouts along. To be called often."""
        self._queues.progress()
        self._queues.ready()
        self._others()

    def reset(self, seeds: np.ndarray) -> None:
        """Nothing is played here: actors begin new episodes when they start."""

    def end(self) -> None:
        """Take nothing more, and wait until all actors that live know."""
        self._queues.finish(ENDS)
        self._await_answers()

    def dismiss(self, status: int | None) -> None:
        """Let go of the actors, once there is nothing more to do.

        Args:
            status: None: windows are closed; collective, of a learner and its actors. Else each actor that lives ends with it.
        """
        if status is None:
            self._queues.finish(CLOSES)
            self._queues.close()
        else:
            self._queues.finish(LEAVES + status)
            self._await_answers()

    def _await_answers(self) -> None:
        watch = self._roll.watch_peers([*self._actors], self._queues.published)
        while not all(actor in self.lost or self._queues.has_answered(actor) for actor in self._actors):
            self._look_after()
            self._queues.progress()
            time.sleep(LONGEST_PAUSE)
            watch()

    def close(self) -> None:
        """No environment is open here."""

    def _next(self) -> int:
        """Wait until a rollout has arrived, and return its actor."""
        watch, pause = self._roll.watch_peers([*self._actors], self._queues.published), 0.0
        while (actor := self._queues.ready()) is None:
            self._look_after()
            self.progress()
            time.sleep(pause)
            pause = min(pause + 1e-5, LONGEST_PAUSE)
            watch()
        return actor

    def _look_after(self) -> None:
        """Name actors that are lost or have come back.

        Raises:
            JobError: all are lost.
        """
        before = dict(self.lost)
        if self._liveness is None or not self._liveness.update():
            return
        for actor in self.lost.keys() - before.keys():
            print(
                f"gala_mpi: {self._roll.name(actor)} is lost, last seen at its rollout {self.lost[actor]}; the others go on",
                file=sys.stderr,
                flush=True,
            )
        for actor in before.keys() - self.lost.keys():
            print(f"gala_mpi: {self._roll.name(actor)} is back", file=sys.stderr, flush=True)
        if len(self.lost) == len(self._actors) and not self._queues.finished:
            raise JobError(f"all actors of {self._roll.name(LEARNER)} are lost")

    def _publish(self) -> None:
        """Let actors have the parameters at which the next update begins, and then room for what was learnt from."""
        parameters = self._learner.flat.data.cpu().numpy()
        self._queues.parameters.publish(parameters, self._learner.updates + 1)
        self._queues.acknowledge()

    def _take(self, actor: int) -> Played | None:
        """Return the rollout of an actor; None: it was not whole, and comes again."""
        message, _ = self._queues.take(actor)
        played = self._form.read(message, self.passes, first=(actor - 1) * self._num_envs)
        return played if self._queues.keep(actor) else None
