"""An actor: it plays for a learner (--actors). Pull the newest parameters, play a rollout with them, send it; again.

It learns nothing, and keeps no files. What it plays is recorded by its learner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from gala_mpi import pulse
from gala_mpi.mpi.queues import ENDS, LEARNER, LEAVES, ActorQueues
from gala_mpi.mpi.roll import Roll
from gala_mpi.rollout.collector import Collector
from gala_mpi.rollout.message import Form, Played

LONGEST_PAUSE = 1e-3  # s, between two looks for room


@dataclass
class Actor:
    """One rank that plays for its learner.

    Attributes:
        collector: of its environments.
        parameters: of its network, float32 [P].
        queues: to and from the learner.
        form: of its messages.
        streams: update → seeds of the environments (int64 [N]); also seeds the actions.
    """

    collector: Collector
    parameters: torch.Tensor
    queues: ActorQueues
    form: Form
    streams: Callable[[int], np.ndarray]
    _version: int = field(default=0, init=False)  # of the parameters; 0: they are not the learner's yet

    def __post_init__(self):
        on_host = self.parameters.device.type == "cpu"
        self._vector = self.parameters if on_host else torch.empty(len(self.parameters))  # what messages are copied into

    def act(self) -> int | None:
        """Play until the learner takes nothing more, then let go of it. Collective, of a learner and its actors.

        Returns:
            The status with which this rank is to end by itself, where that is not collective: somebody has been lost.
        """
        while not self.queues.finished:
            began = time.perf_counter()
            self._wait(self._may_play)
            if not self.queues.finished:
                self._pull()
                self._play(time.perf_counter() - began)
        self.queues.answer()
        self._wait(self._may_leave)
        if self.queues.finished >= LEAVES:
            self.queues.answer()
            return self.queues.finished - LEAVES
        self.queues.close()
        return None

    def _may_leave(self) -> bool:
        """Return whether the learner has said how to leave."""
        self.queues.look()
        return self.queues.finished > ENDS

    def _may_play(self) -> bool:
        """Return whether there is room for a rollout, and parameters to play it with; or nothing more is to be played."""
        self.queues.look()
        return self.queues.finished > 0 or (self.queues.room and self.queues.latest > 0)

    def _pull(self) -> None:
        """Take over the learner's parameters, if they are newer. With the first ones episodes begin."""
        before, self._version = self._version, self.queues.pull(self._version, self._vector.numpy(), self._wait)
        if self._version != before and self._vector is not self.parameters:
            self.parameters.copy_(self._vector)
        if not before and self._version > 1:  # the learner goes on from a checkpoint
            self.collector.reset(self.streams(self._version - 1))

    def _play(self, waited: float) -> None:
        """Play a rollout, and send it. `waited`: for how many seconds it could not be played."""
        batch, episodes = self.collector.collect()
        self.form.write(self.queues.begin(), Played(batch, episodes, self.collector.fault, self._version, waited))
        self.queues.publish()
        pulse.work(self.queues.published)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, with progress and back-off."""
        watch, pause = Roll.of(self.queues.crew).watch_peers([LEARNER], lambda _: self.queues.latest), 0.0
        while not done():
            self.queues.progress()
            pulse.work(self.queues.published)  # it is its agent that knows whether there is something to wait for
            time.sleep(pause)
            pause = min(pause + 1e-5, LONGEST_PAUSE)
            watch()
