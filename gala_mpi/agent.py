"""An agent = an MPI rank = an actor-learner: its own environments, network, optimiser and share of the exchange.

`Agent.update` is the algorithm. GALA, A2C and A3C differ in the exchange alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.record.recorder import Update
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.collector import Collector


@dataclass
class Agent:
    """One rank's actor-learner.

    Attributes:
        learn: the gradient of the last rollout's loss into the learner; the terms of that loss.
        config: the run's settings.
        agents: how many the run has.
        streams: update → seeds of the environments (int64 [N]); also seeds the actions.
        delay: by how many seconds each update is slowed down (--slow-rank).
    """

    collector: Collector
    learn: Callable[[], torch.Tensor]
    learner: A2C
    exchange: Exchange
    clock: Clock
    sketch: Sketcher
    config: Config
    agents: int
    streams: Callable[[int], np.ndarray]
    delay: float = 0.0

    def update(self) -> Update:
        """A rollout, a gradient, a step and an exchange."""
        clock, learner = self.clock, self.learner
        # By the steps before this update: the first one has the full rate.
        progress = min(1.0, learner.steps * self.agents / self.config.total_steps)
        episodes = self.collector.collect()
        with clock("simulate"):
            keep_busy(self.delay)
        with clock("learn"):
            losses = Losses(*self.learn().tolist())
            learner.count(self.collector.steps)
        sketches = self._sketches(learner.flat.grad)  # before it is averaged (A2C) and clipped
        with clock("exchange"):
            self.exchange.gradient(learner.flat.grad)  # A2C: all-reduce here
            room = self.exchange.room()  # GALA: a slot of my window
        with clock("optimise"):
            grad_norm = learner.step(progress, room)
        with clock("exchange"):
            self.exchange.parameters(learner.flat.data)  # GALA: mix here.  A3C: push and pull here
        sketches += self._sketches(learner.flat.data)
        return Update(losses, grad_norm, episodes, sketches)

    def _sketches(self, vector: torch.Tensor) -> list[np.ndarray]:
        """Of `vector`, if this is an update to sketch it at."""
        with self.clock("record"):
            return [self.sketch(vector)] if self.sketch.due(self.learner.updates) else []

    def restart_environments(self) -> None:
        """New games and action noise, by (seed, rank, update): the same in a run that goes on and in one resumed here."""
        self.collector.reset(self.streams(self.learner.updates))

    def start(self) -> None:
        """Collective. Open the exchange at the learner's update and parameters."""
        self.exchange.start(self.learner.updates, self.learner.flat.data)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Collective. Serve the others until all are done, then let go of windows and environments."""
        self.exchange.close(meanwhile)
        self.collector.close()


def keep_busy(seconds: float) -> None:
    """Be slow as a straggler is: computing, not sleeping, and without a call into MPI."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
