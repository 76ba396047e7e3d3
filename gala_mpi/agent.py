"""An agent = an MPI rank = an actor-learner: its own simulators, network, optimiser and share of the exchange.

`Agent.update` is the algorithm. GALA, A2C and A3C differ in the exchange alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi import device, envs, exchange
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs import Episode
from gala_mpi.exchange import Exchange
from gala_mpi.learner import A2C, Losses
from gala_mpi.model import Network
from gala_mpi.rollout import Collector
from gala_mpi.sketch import Sketcher
from gala_mpi.world import rendezvous


class Update(NamedTuple):
    """What came of an update.

    Attributes:
        grad_norm: length of the gradient, before clipping.
        episodes: those that ended.
        sketches: now and then two: of this agent's own gradient, and of the parameters with which it goes on.
    """

    losses: Losses
    grad_norm: float
    episodes: list[Episode]
    sketches: list[np.ndarray]


@dataclass
class Agent:
    """One rank's actor-learner.

    Attributes:
        learn: the gradient of the last rollout's loss into the learner; the terms of that loss.
        config: the run's settings.
        agents: how many the run has.
        streams: update → seeds of the simulators (int64 [N]); also seeds the actions.
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

    def begin(self) -> None:
        """New games and action noise, by (seed, rank, update): the same in a run that goes on and in one resumed here."""
        self.collector.reset(self.streams(self.learner.updates))

    def start(self) -> None:
        """Collective. Open the exchange at the learner's update and parameters."""
        self.exchange.start(self.learner.updates, self.learner.flat.data)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Collective. Serve the others until all are done, then let go of windows and simulators."""
        self.exchange.close(meanwhile)
        self.collector.close()


def build(config: Config, comm: MPI.Intracomm, node_rank: int, threads: int) -> Agent:
    """One rank's agent. Collective.

    Args:
        config: with `network` and `precision` resolved.
        comm: all agents.
        node_rank: which rank of its host this is; GPUs are dealt by it.
        threads: for torch and the emulators.
    """
    torch.set_num_threads(threads)
    clock = Clock()
    where = device.pick(config.device, node_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # streams and graphs are made on the current one
    turns = 2 if config.overlap else 1
    number, options = config.num_envs // turns, {"threads": threads, "sticky": config.sticky}
    simulators = [envs.make(config.env, number, **options) for _ in range(turns)]
    # The mean square of a weight that gets no gradient any more falls until it is a denormal number, and stays one: after ten
    # minutes of Pong a quarter of them. Some CPUs compute 20 times slower with these. Beside the default ε they count as much
    # as 0, which they become.
    torch.set_flush_denormal(True)
    torch.manual_seed(_seed(np.random.SeedSequence(config.seed, spawn_key=(0,))))
    network = Network(config.network, simulators[0].spaces, config.precision).to(where, memory_format=torch.channels_last)
    streams = partial(_streams, config, comm.rank)
    learner = A2C(network, config.a2c, config.learning_rate(comm.size))
    rendezvous(comm)
    shared = exchange.build(config, comm, len(learner.flat))
    clip_rewards = config.a2c.clip_rewards
    collector = Collector(
        network,
        simulators,
        seeds=streams(0),
        length=config.rollout_length,
        discount=config.a2c.discount,
        clip_rewards=envs.resolve(config.env)[0] == "atari" if clip_rewards is None else clip_rewards,
        poke=shared.poke,
        clock=clock,
    )
    slow, seconds = config.slowness()
    sketch, delay = Sketcher(len(learner.flat), config.sketch_updates), seconds if comm.rank == slow else 0.0
    rendezvous(comm)
    learn = device.replayed(lambda: learner.gradient(collector.batch()), where)
    return Agent(collector, learn, learner, shared, clock, sketch, config, comm.size, streams, delay)


def keep_busy(seconds: float) -> None:
    """Be slow as a straggler is: computing, not sleeping, and without a call into MPI."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _streams(config: Config, rank: int, update: int) -> np.ndarray:
    """One seed → a tree of independent streams: weights; then for each rank and start, actions and simulators.

    Seeds the actions, and returns the simulators' seeds, int64 [N].
    """
    actions, games = np.random.SeedSequence(config.seed, spawn_key=(1, rank, update)).spawn(2)
    torch.manual_seed(_seed(actions))
    return (games.generate_state(config.num_envs) >> 1).astype(np.int64)  # emulators take 31 bits


def _seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
