"""A plan → an agent whose rollouts are played by actors of its own, or one of these (--actors)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gala_mpi.acting import Actor
from gala_mpi.agent import Agent
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.device import Upload
from gala_mpi.flat import Flat
from gala_mpi.job import build
from gala_mpi.mpi.queues import ActorQueues, LearnerQueues
from gala_mpi.mpi.world import World, rendezvous
from gala_mpi.networks.policy import Network
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.arrivals import Arrivals
from gala_mpi.rollout.message import Form
from gala_mpi.rollout.recomputed import computed_again

FIRST_ACTOR = 1  # who tells its learner of the environments


@dataclass
class Player:
    """A network that plays, and does not learn."""

    network: Network
    one_pass: bool = False  # its passes are computed again, by the learner


def build_learner(config: Config, world: World) -> Agent:
    """Return an agent whose actors play for it. Collective, over all ranks: see `build_actor`."""
    comm, crew = world.comm, world.crew
    assert crew is not None  # they are those of a plan with actors
    clock, where = Clock(), build.prepare_torch(config, world.node.rank, world.threads)
    rendezvous(crew)
    spaces = crew.bcast(None, FIRST_ACTOR)
    build.require_alike(config.env, comm, [spaces])
    network = build.make_network(config, [comm, crew], spaces, where)
    learner = build.make_learner(config, comm, network)
    rendezvous(comm)
    shared = build.build_exchange(config, comm, len(learner.flat))
    form = Form(network, config.length, config.num_envs, len(learner.flat.counted.data))
    seen = Upload(where)(np.zeros((config.num_envs, *spaces.observation_shape), spaces.observation_dtype))
    # For a GPU, torch runs the backward pass in a thread of its own, which must not call MPI.
    between = (lambda: arrivals.progress()) if where.type == "cpu" else None
    passes = computed_again(network, where)(network, config.length, seen, between=between)
    queues = LearnerQueues(crew, len(learner.flat), form.words, config.checksum, config.survive is not None)
    arrivals = Arrivals(learner, queues, form, passes, config.num_envs, shared.progress, config.survive)
    sketch = Sketcher(len(learner.flat.learnt.data), config.sketch_updates)
    shown = crew.bcast(None, FIRST_ACTOR)
    if network.observation_sums is not None:
        network.observation_sums.centre(comm.bcast(shown))
    return Agent(arrivals, learner, learner.gradient, shared, clock, sketch, lambda update: np.zeros(0, np.int64))


def build_actor(config: Config, world: World) -> Actor:
    """Return an actor. Collective, over all ranks, of which the others call `build_learner`."""
    comm, crew = world.comm, world.crew
    assert crew is not None
    clock, where = Clock(), build.prepare_torch(config, world.node.rank, world.threads)
    environments, streams, generator = build.make_environments(config, comm.rank, where, world.threads)
    spaces = environments[0].spaces
    build.require_alike(config.env, comm, [each.spaces for each in environments])
    rendezvous(crew)
    crew.bcast(spaces, FIRST_ACTOR)
    network = build.make_network(config, [comm, crew], spaces, where)
    flat = Flat(network)
    form = Form(network, config.length, config.num_envs, len(flat.counted.data))
    collector = build.make_collector(
        *(config, comm.rank, Player(network), environments, streams(0), lambda: queues.progress(), clock, generator)
    )
    queues = ActorQueues(crew, len(flat), form.words, config.checksum, config.survive is not None)
    crew.bcast(build.shown_first(network, collector), FIRST_ACTOR)
    return Actor(collector, flat.data, queues, form, streams)
