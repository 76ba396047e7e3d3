"""A plan → this rank's agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi import device
from gala_mpi.agent import Agent
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.streams import seed_global
from gala_mpi.errors import JobError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.exchange.base import Exchange
from gala_mpi.exchange.independent import Independent
from gala_mpi.exchange.recorded import Recorded
from gala_mpi.learners import LEARNERS
from gala_mpi.mpi.world import rendezvous
from gala_mpi.networks.policy import Network, Precision
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.collector import Collector
from gala_mpi.run import reader


def build(config: Config, comm: MPI.Intracomm, node_rank: int, threads: int) -> Agent:
    """One rank's agent. Collective.

    Args:
        config: with `network` and `precision` resolved.
        comm: all agents.
        node_rank: which rank of its host this is; GPUs are dealt by it.
        threads: for torch and the emulators.
    """
    clock = Clock()
    where = device.pick(config.device, node_rank)
    # Beside a GPU torch has little to do on the CPU: its threads would wait for more, and take the cores from the emulators.
    torch.set_num_threads(1 if device.is_asynchronous(where) else threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # streams and graphs are made on the current one
    number, workers = config.num_envs // config.turns, config.env_workers // config.turns
    # Not torch's global stream, which environments may use and seed. A GPU has one of its own, which its graphs draw from.
    generator = torch.Generator() if where.type == "cpu" else None
    streams = partial(_streams, config, comm.rank, generator)
    streams(0)  # what environments draw as they are made
    options = {"threads": threads, "workers": workers, **config.env_options}
    environments = [registry.make(config.env, number, first=turn * number, **options) for turn in range(config.turns)]
    # The mean square of a weight that gets no gradient any more falls until it is a denormal number, and stays one: after ten
    # minutes of Pong a quarter of them. Some CPUs compute 20 times slower with these. Beside the default ε they count as much
    # as 0, which they become.
    torch.set_flush_denormal(True)
    torch.manual_seed(_seed(np.random.SeedSequence(config.seed, spawn_key=(0,))))
    require_alike(config.env, comm, [each.spaces for each in environments])
    name, precision = cast(str, config.network), cast(Precision, config.precision)  # settled by `job.prepare`
    network = Network(name, environments[0].spaces, precision, config.action_std, **config.statistics)
    network.to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack memory_format
    settings = config.learner_settings
    learner = LEARNERS[config.learner].load()(network, settings, config.learning_rate(comm.size))
    rendezvous(comm)
    shared = build_exchange(config, comm, len(learner.flat))
    clip_rewards = settings.clip_rewards
    collector = Collector(
        learner,
        environments,
        seeds=streams(0),
        length=config.rollout_length,
        discount=settings.discount,
        clip_rewards=registry.resolve(config.env).kind == "atari" if clip_rewards is None else clip_rewards,
        progress=shared.progress,
        clock=clock,
        generator=generator,
    )
    slow, seconds = config.slowness()
    sketch, delay = Sketcher(len(learner.flat.learnt.data), config.sketch_updates), seconds if comm.rank == slow else 0.0
    rendezvous(comm)
    if network.observation_sums is not None:  # all count from what rank 0 has seen first: sums from one offset average
        shown = collector.shown[:, network.spaces.numbers].mean(0, dtype=np.float64)
        network.observation_sums.centre(comm.bcast(shown))
    # Parts of a rollout may lie elsewhere each time, which a recording cannot follow.
    gradient = device.cuda_graph(learner.gradient, where) if learner.one_pass else learner.gradient
    return Agent(collector, learner, gradient, shared, clock, sketch, streams, delay)


def require_alike(env: str, comm: MPI.Intracomm, spaces: Sequence[Spaces]) -> None:
    """Refuse environments whose spaces are not those of rank 0's, as where a host has another version: networks are averaged.

    Collective.

    Raises:
        JobError: on the rank that has them.
    """
    rendezvous(comm)
    first = comm.bcast(spaces[0])
    for mine in spaces:
        for field in dataclasses.fields(mine):
            here, there = getattr(mine, field.name), getattr(first, field.name)
            if field.compare and here != there:
                raise JobError(f"--env {env}: its {field.name} is {here} here, {there} on rank 0; one on all ranks is expected")


def _streams(config: Config, rank: int, generator: torch.Generator | None, update: int) -> np.ndarray:
    """One seed → a tree of independent streams: weights; then for each rank and start, actions, environments, and the global
    streams of Python, numpy and torch, which environments may draw from.

    Seeds the generator of actions (None: torch's global one is) and the global streams, and returns the environments' seeds,
    int64 [N].
    """
    actions, games, shared = np.random.SeedSequence(config.seed, spawn_key=(1, rank, update)).spawn(3)
    seed_global(shared)
    if generator is None:
        torch.manual_seed(_seed(actions))
    else:
        generator.manual_seed(_seed(actions))
    return (games.generate_state(config.num_envs) >> 1).astype(np.int64)  # emulators take 31 bits


def _seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def build_exchange(config: Config, comm: MPI.Intracomm, length: int) -> Exchange:
    """The exchange that the settings name, for vectors of `length` parameters. One rank alone shares with nobody."""
    if config.replay:
        mixes, updates = (reader.read_rows(config.replay, comm.rank, name) for name in ("mixes", "updates"))
        return Recorded(comm, length, mixes, int(updates["update"].max(initial=0)))
    if comm.size == 1:
        return Independent(comm, length)
    return EXCHANGES[config.exchange].load().build(comm, length, config)
