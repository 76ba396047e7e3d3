"""A plan → this rank's agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi import device, networks
from gala_mpi.agent import Agent
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Environments, Spaces
from gala_mpi.envs.streams import seed_global
from gala_mpi.errors import JobError
from gala_mpi.exchange import EXCHANGES, preemption
from gala_mpi.exchange.base import Exchange
from gala_mpi.exchange.independent import Independent
from gala_mpi.exchange.recorded import Recorded
from gala_mpi.learners import LEARNERS, outer
from gala_mpi.learners.base import Learner
from gala_mpi.mpi.world import rendezvous
from gala_mpi.networks import own
from gala_mpi.networks.policy import Network, Precision
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.batch import Player
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
    clock, where = Clock(), prepare_torch(config, node_rank, threads)
    environments, streams, generator = make_environments(config, comm.rank, where, threads)
    require_alike(config.env, comm, [each.spaces for each in environments])
    network = make_network(config, [comm], environments[0].spaces, where)
    learner = make_learner(config, comm, network)
    rendezvous(comm)
    shared = build_exchange(config, comm, len(learner.flat))
    collector = make_collector(
        *(config, comm.rank, learner, environments, streams(0), shared.progress, clock, generator),
        cut_short=shared.cut_short,
    )
    sketch = Sketcher(len(learner.flat.learnt.data), config.sketch_updates)
    rendezvous(comm)
    if network.observation_sums is not None:  # all count from what rank 0 has seen first: sums from one offset average
        network.observation_sums.centre(comm.bcast(shown_first(network, collector)))
    # Parts of a rollout, and rollouts with a lag, may lie elsewhere each time, with a memory episodes begin at other steps, and
    # a rollout that is cut short has fewer: a recording cannot follow.
    recorded = learner.one_pass and not (network.memory or config.lag) and config.preempt is None
    gradient = device.cuda_graph(learner.gradient, where) if recorded else learner.gradient
    return Agent(collector, learner, gradient, shared, clock, sketch, streams, config.mix_steps, config.lag)


def prepare_torch(config: Config, node_rank: int, threads: int) -> torch.device:
    """Let torch compute on this rank's device, with its share of the cores. Return the device."""
    where = device.pick(config.device, node_rank)
    # Beside a GPU torch has little to do on the CPU: its threads would wait for more, and take the cores from the emulators.
    # With a lag two threads compute, beside emulators that play at the same time if halves take turns.
    shares = config.turns + config.lag if config.lag else 1
    torch.set_num_threads(1 if device.is_asynchronous(where) else max(1, threads // shares))
    if where.type == "cuda":
        torch.cuda.set_device(where)  # streams and graphs are made on the current one
    return where


def make_environments(
    config: Config, rank: int, where: torch.device, threads: int
) -> tuple[list[Environments], Callable[[int], np.ndarray], torch.Generator | None]:
    """Return a rank's environments, its streams (see `_streams`), and what its actions are drawn from."""
    number, workers = config.num_envs // config.turns, config.env_workers // config.turns
    # Not torch's global stream, which environments may use and seed. A GPU has one of its own, which its graphs draw from.
    generator = torch.Generator() if where.type == "cpu" else None
    streams = partial(_streams, config, rank, generator)
    streams(0)  # what environments draw as they are made
    options = {"threads": threads, "workers": workers, **config.env_options}
    environments = [registry.make(config.env, number, first=turn * number, **options) for turn in range(config.turns)]
    return environments, streams, generator


def make_network(config: Config, comms: Sequence[MPI.Intracomm], spaces: Spaces, where: torch.device) -> Network:
    """Return the network, with the same weights on all ranks. Collective, over each of the communicators."""
    # The mean square of a weight that gets no gradient any more falls until it is a denormal number, and stays one: after ten
    # minutes of Pong a quarter of them. Some CPUs compute 20 times slower with these. Beside the default ε they count as much
    # as 0, which they become.
    torch.set_flush_denormal(True)
    weights = np.random.SeedSequence(config.seed, spawn_key=(0,))
    seed_global(weights)  # a module of the user's own may draw its weights from any of these streams
    torch.manual_seed(_seed(weights))
    name, precision = cast(str, config.network), cast(Precision, config.precision)  # settled by `job.prepare`
    network = Network(name, spaces, precision, config.action_std, **config.network_options)
    for comm in comms:
        require_same_network(name, comm, network)
    network.to(where, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack memory_format
    return network


def make_learner(config: Config, comm: MPI.Intracomm, network: Network) -> Learner:
    """Return the learner of an agent; `comm` is of all agents."""
    stream = partial(_stream, config, comm.rank)
    make = LEARNERS[config.learner].load()
    learner = make(network, config.learner_settings, config.learning_rate(comm.size), stream)
    if config.ema is not None:
        learner.keep_average(config.ema)
    if config.outer_momentum is not None:
        learner.take_outer_steps(config.outer_momentum, config.outer_lr or outer.LR)
    return learner


def make_collector(
    config: Config,
    rank: int,
    player: Player,
    environments: Sequence[Environments],
    seeds: np.ndarray,
    progress: Callable[[], None],
    clock: Clock,
    generator: torch.Generator | None,
    cut_short: Callable[[], bool] = lambda: False,
) -> Collector:
    """Return what plays a rank's rollouts."""
    clip_rewards = config.learner_settings.clip_rewards
    slow, seconds = config.slowness()
    return Collector(
        player,
        environments,
        seeds=seeds,
        length=config.length,
        discount=config.learner_settings.discount,
        clip_rewards=registry.resolve(config.env).kind == "atari" if clip_rewards is None else clip_rewards,
        progress=progress,
        clock=clock,
        generator=generator,
        shortest=preemption.shortest(config.length) if config.preempt is not None else None,
        cut_short=cut_short,
        delay=seconds / config.length if rank == slow else 0.0,
        lag=config.lag,
    )


def shown_first(network: Network, collector: Collector) -> np.ndarray:
    """Return the mean of the numbers that environments show, float64."""
    return collector.shown[:, network.spaces.numbers].mean(0, dtype=np.float64)


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


def require_same_network(name: str, comm: MPI.Intracomm, network: Network) -> None:
    """Refuse a network of the user's own that is not that of rank 0, as where a host has another version of it.

    Collective.

    Raises:
        JobError: on the rank that has it.
    """
    if not networks.is_own(name):
        return
    rendezvous(comm)
    here = {key: tuple(parameter.shape) for key, parameter in network.named_parameters()}
    numbers = [each.numpy() for each in own.returned(network.encoder, network.spaces.unmasked)]
    there, theirs = comm.bcast((here, numbers))
    for key in {**there, **here}:
        if here.get(key) != there.get(key):
            why = f"its {key} is {here.get(key)} here, {there.get(key)} on rank 0"
            raise JobError(f"--network {name}: {why}; one network on all ranks is expected")
    if not all(np.allclose(mine, other, own.RTOL, own.ATOL) for mine, other in zip(numbers, theirs)):
        raise JobError(f"--network {name}: it computes other numbers here than on rank 0; one network on all ranks is expected")


def _streams(config: Config, rank: int, generator: torch.Generator | None, update: int) -> np.ndarray:
    """One seed → a tree of independent streams: weights; then for each rank and start, actions, environments, and the global
    streams of Python, numpy and torch, which environments may draw from; for each rank and update, what the learner draws.

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


def _stream(config: Config, rank: int, update: int) -> np.random.Generator:
    """Return what the learner of a rank draws from at an update."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(2, rank, update)))


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
