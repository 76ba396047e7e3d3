"""An agent = an MPI rank = an actor-learner: its own environments, network, optimiser and share of the exchange.

`Agent.update` is the algorithm. GALA, A2C and A3C differ in the exchange alone. The loss is the learner's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gala_mpi.clock import Clock
from gala_mpi.exchange.base import Exchange
from gala_mpi.learners.base import Learner, Losses
from gala_mpi.record.recorder import Update
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.collector import Collector


@dataclass
class Agent:
    """One rank's actor-learner.

    Attributes:
        gradient: the learner's, recorded where a GPU can repeat it.
        streams: update → seeds of the environments (int64 [N]); also seeds the actions.
        delay: by how many seconds each update is slowed down (--slow-rank).
    """

    collector: Collector
    learner: Learner
    gradient: Callable[[Batch], torch.Tensor]
    exchange: Exchange
    clock: Clock
    sketch: Sketcher
    streams: Callable[[int], np.ndarray]
    delay: float = 0.0

    def update(self, progress: float = 0.0) -> Update:
        """Play a rollout, learn from it, and share what was learnt.

        Args:
            progress: share of the run's steps that are done, in [0, 1]; the learning rate's decay goes by it.
        """
        clock, learner, exchange = self.clock, self.learner, self.exchange
        batch, episodes = self.collector.collect()
        with clock("simulate"):
            keep_busy(self.delay)
        learner.count(self.collector.steps)
        parts = learner.parts(batch)  # the rollout itself, unless the learner takes it in several parts
        terms, steps, sketches, of_use = [], [], [], True
        for number, part in enumerate(parts, start=1):
            with clock("learn"):
                terms.append(self._learn(part))
                learner.tally(batch.additions if number == len(parts) else None)
            if number == 1:
                sketches += self._sketches(learner.flat.learnt.grad)  # before it is averaged (all-reduce) and clipped
            with clock("exchange"):
                of_use &= exchange.gradient(learner.flat.grad)  # all-reduce averages here
                room = exchange.room() if number == len(parts) else None  # gossip: a slot of its window
            with clock("optimise"):
                steps.append(learner.step(progress, room))
        with clock("exchange"):
            exchange.parameters(learner.flat.data)  # gossip mixes here; server pushes and pulls here
        sketches += self._sketches(learner.flat.learnt.data)
        (grad_norm, step_norm), losses = _means(steps), Losses(*_means(terms))
        skipped = "" if of_use and all(step.taken for step in steps) else self._why_skipped(losses)
        return Update(losses, grad_norm, step_norm, episodes, sketches, skipped)

    def _learn(self, part: Batch) -> list[float]:
        """Put the gradient of a part of the rollout into the learner's, and return the terms of its loss (see Losses).

        Where there is none to be had, since something in the rollout or the loss is not finite, it is NaN: the optimiser takes
        no such step, and all-reduce leaves it out. (Terms that are NaN say nothing: the learner may have none. The gradient of
        a loss that is NaN is so too.)
        """
        terms = [math.nan] * len(Losses._fields)
        if not self.collector.fault:
            terms = self.gradient(part).tolist()
        if self.collector.fault or any(map(math.isinf, terms)):
            self.learner.flat.grad.fill_(math.nan)
        return terms

    def _why_skipped(self, losses: Losses) -> str:
        """Return in words what of this update was not finite."""
        if self.collector.fault:
            return str(self.collector.fault)
        terms = ", ".join(f"{name} {value:g}" for name, value in losses._asdict().items())
        return f"its loss or gradient is not finite; losses: {terms}"

    def _sketches(self, vector: torch.Tensor) -> list[np.ndarray]:
        """Sketch `vector`, if this is an update to sketch it at."""
        with self.clock("record"):
            return [self.sketch(vector)] if self.sketch.due(self.learner.updates) else []

    def restart_environments(self) -> None:
        """Begin new episodes and action noise, by (seed, rank, update): the same in a run that goes on and in one resumed
        here."""
        self.collector.reset(self.streams(self.learner.updates))

    def start(self) -> None:
        """Collective. Open the exchange at the learner's update and parameters."""
        self.exchange.start(self.learner.updates, self.learner.flat.data)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Collective. Serve the others until all are done, then let go of windows and environments."""
        self.leave(meanwhile)
        self.collector.close()

    def leave(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Collective. Serve the others until all are done, then let go of windows. The environments stay."""
        self.exchange.close(meanwhile)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each column."""
    return list(rows[0]) if len(rows) == 1 else [sum(column) / len(column) for column in zip(*rows)]


def keep_busy(seconds: float) -> None:
    """Be slow as a straggler is: computing, not sleeping, and without a call into MPI."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
