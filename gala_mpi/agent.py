"""An agent = an MPI rank = an actor-learner: its own environments, network, optimiser and share of the exchange.

`Agent.update` is the algorithm. GALA, A2C and A3C differ in the exchange alone. The loss is the learner's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import torch

from gala_mpi import device
from gala_mpi.clock import Clock
from gala_mpi.envs.base import Episode
from gala_mpi.exchange.base import Exchange
from gala_mpi.learners.base import Learner, Losses, RolloutPart
from gala_mpi.record.recorder import Update
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.arrivals import Arrivals
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.collector import Collector, Fault

PAUSE = 0.001  # seconds between two calls for progress, while there is nothing to do but wait for the gradient


class Rollout:
    """A rollout, and what is left to learn from it.

    Args:
        update: at its beginning the parameters were those that have played the rollout.
        batch: the whole.
        episodes: those that have ended in it.
        fault: see `Collector`.

    Attributes:
        part: what the next gradient is taken of; None: nothing is left.
    """

    def __init__(self, update: int, batch: Batch, episodes: list[Episode], fault: Fault | None):
        self.update, self.batch, self.episodes, self.fault = update, batch, episodes, fault
        self._parts: Iterator[RolloutPart] = iter(())
        self.part: RolloutPart | None = None

    def begin(self, parts: Iterable[RolloutPart]) -> None:
        """Learn from it in these parts."""
        self._parts = iter(parts)
        self.advance()

    def advance(self) -> None:
        self.part = next(self._parts, None)


@dataclass
class Agent:
    """One rank's actor-learner.

    Attributes:
        collector: plays its rollouts, or gets them from the agent's actors.
        gradient: the learner's, recorded where a GPU can repeat it.
        streams: update → seeds of the environments (int64 [N]); also seeds the actions.
        mix_steps: after how many steps of the optimiser an update ends, and the next one goes on with the same rollout; None:
            when nothing is left of it.
        lag: 1: the next rollout is played while another thread computes the gradient of this one. Both read the parameters at
            which this update begins, and nobody writes them meanwhile. Only the main thread calls MPI.
    """

    collector: Collector | Arrivals
    learner: Learner
    gradient: Callable[[RolloutPart], torch.Tensor]
    exchange: Exchange
    clock: Clock
    sketch: Sketcher
    streams: Callable[[int], np.ndarray]
    mix_steps: int | None = None
    lag: int = 0
    _rollout: Rollout | None = field(default=None, init=False)  # of which something is left
    _ahead: Rollout | None = field(default=None, init=False)  # played already, and not yet begun

    def __post_init__(self):
        if self.lag:
            where = self.learner.flat.data.device
            self._other_thread = ThreadPoolExecutor(1, "learner", _as_this_thread, (torch.get_num_threads(), where))
            # Updates at which one waits for the other: what a GPU is given is recorded in them, of both rooms for rollouts.
            self._apart = 2 * (device.WARM_UP_CALLS + 1) if device.is_asynchronous(where) else 0

    def update(self, progress: float = 0.0) -> Update:
        """Play a rollout, if nothing is left of the last one, learn from it, and share what was learnt.

        Args:
            progress: share of the run's steps that are done, in [0, 1]; the learning rate's decay goes by it.
        """
        clock, learner, exchange = self.clock, self.learner, self.exchange
        rollout, episodes = self._at_hand()
        terms, steps, sketches, of_use, ends = [], [], [], True, False
        while rollout.part is not None and not ends:
            terms.append(self._learn(rollout, rollout.part))
            with clock("learn"):
                rollout.advance()  # afterwards: by the gradient the learner may see that this was the last one
                learner.tally(rollout.batch.additions if rollout.part is None else None)
                ends = rollout.part is None or len(terms) == self.mix_steps
            if not steps:
                sketches += self._sketches(learner.flat.learnt.grad)  # before it is averaged (all-reduce) and clipped
            with clock("exchange"):
                of_use &= exchange.gradient(learner.flat.grad)  # all-reduce averages here
                room = exchange.room() if ends else None  # gossip: a slot of its window
            with clock("optimise"):
                steps.append(learner.step(progress, room))
        with clock("exchange"):
            exchange.parameters(learner.flat.data)  # gossip mixes here; server pushes and pulls here
        with clock("optimise"):
            if exchange.at_mean():
                learner.outer_step()
            learner.average()
        self._rollout = None if rollout.part is None else rollout
        sketches += self._sketches(learner.flat.learnt.data)
        (grad_norm, step_norm), losses = _means(steps), Losses(*_means(terms))
        skipped = "" if of_use and all(step.taken for step in steps) else _why_skipped(rollout, losses)
        lag = learner.updates - rollout.update
        return Update(losses, grad_norm, step_norm, episodes, sketches, skipped, lag, *self.collector.arrival)

    def _at_hand(self) -> tuple[Rollout, list[Episode]]:
        """Return what there is to learn from, and the episodes that have ended in what is new of it. Count it as an update."""
        if self._rollout is not None:
            self.learner.count(0)
            return self._rollout, []
        rollout, self._ahead = self._ahead or self._play(self.learner.updates + 1), None
        self.exchange.played(self.collector.steps)
        self.learner.count(self.collector.steps)
        with self.clock("learn"):
            rollout.begin(self.learner.parts(rollout.batch))
        return rollout, rollout.episodes

    def _play(self, update: int) -> Rollout:
        """Play a rollout with the parameters at which `update` begins, or take one that actors have played."""
        batch, episodes = self.collector.collect()
        return Rollout(self.collector.version or update, batch, episodes, self.collector.fault)

    def _learn(self, rollout: Rollout, part: RolloutPart) -> list[float]:
        """Compute the gradient of a part, see `_gradient`; with a lag, play the next rollout meanwhile."""
        if not self.lag:
            with self.clock("learn"):
                return self._gradient(rollout, part)
        learning = self._other_thread.submit(self._gradient, rollout, part)
        if self._apart > 0:
            self._apart -= 1
            wait([learning])
        self._ahead = self._play(self.learner.updates)
        with self.clock("learn"):
            while not learning.done():
                self.collector.progress()
                wait([learning], PAUSE)
            return learning.result()

    def _gradient(self, rollout: Rollout, part: RolloutPart) -> list[float]:
        """Put the gradient of a part of the rollout into the learner's, and return the terms of its loss (see Losses).

        Where there is none to be had, since something in the rollout or the loss is not finite, it is NaN: the optimiser takes
        no such step, and all-reduce leaves it out. (Terms that are NaN say nothing: the learner may have none. The gradient of
        a loss that is NaN is so too.)
        """
        terms = [math.nan] * len(Losses._fields)
        if not rollout.fault:
            terms = self.gradient(part).tolist()
        if rollout.fault or any(map(math.isinf, terms)):
            self.learner.flat.grad.fill_(math.nan)
        return terms

    def _sketches(self, vector: torch.Tensor) -> list[np.ndarray]:
        """Sketch `vector`, if this is an update to sketch it at."""
        with self.clock("record"):
            return [self.sketch(vector)] if self.sketch.due(self.learner.updates) else []

    def restart_environments(self) -> None:
        """Begin new episodes and action noise, by (seed, rank, update): the same in a run that goes on and in one resumed
        here. What was played is forgotten."""
        self._rollout = self._ahead = None
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
        if self.lag:
            self._other_thread.shutdown()
        self.exchange.close(meanwhile)


def _as_this_thread(threads: int, where: torch.device) -> None:
    """Let a new thread compute as the main one does: with so many of torch's threads, and on the same device."""
    torch.set_num_threads(threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)


def _why_skipped(rollout: Rollout, losses: Losses) -> str:
    """Return in words what of an update was not finite."""
    if rollout.fault:
        return str(rollout.fault)
    terms = ", ".join(f"{name} {value:g}" for name, value in zip(losses._fields[:3], losses))
    return f"its loss or gradient is not finite; losses: {terms}"


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each column."""
    return list(rows[0]) if len(rows) == 1 else [sum(column) / len(column) for column in zip(*rows)]
