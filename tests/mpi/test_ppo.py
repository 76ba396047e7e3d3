"""PPO over ranks: the gradient of every minibatch is averaged (DD-PPO), or parameters are mixed once a rollout."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from descent import ALLREDUCE, gossip
from mpi4py import MPI

from batches import made_up
from gala_mpi.agent import Agent
from gala_mpi.clock import Clock
from gala_mpi.config import Config, PPOSettings
from gala_mpi.envs.base import Spaces
from gala_mpi.exchange.base import Exchange
from gala_mpi.job.build import _stream, build_exchange
from gala_mpi.learners.ppo import PPO
from gala_mpi.networks.policy import Network
from gala_mpi.record.sketch import Sketcher
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.collector import Arrival

T, N, UPDATES = 8, 3, 4
SETTINGS = PPOSettings(epochs=2, minibatches=4, entropy_coefficient=0.01)


def new_learner(rank: int) -> PPO:
    torch.manual_seed(0)
    return PPO(Network("mlp", Spaces((4,), False, 3)), SETTINGS, 1e-3, partial(_stream, Config(), rank))


def rollout(network: Network, rank: int, update: int) -> Batch:
    """Made-up steps, on every rank others."""
    rng = np.random.default_rng((rank, update))
    seen = torch.from_numpy(rng.standard_normal((T + 1, N, 4)).astype(np.float32))
    actions = torch.from_numpy(rng.integers(0, 3, (T, N)))
    rewards, discounts = rng.standard_normal((T, N)), np.where(rng.random((T, N)) < 0.1, 0, 0.99)
    return made_up(network, seen, actions, *(torch.from_numpy(each.astype(np.float32)) for each in (rewards, discounts)))


class Playing:
    """A collector's part: one rollout after the other."""

    steps, fault, version, arrival = T * N, None, None, Arrival()

    def __init__(self, learner: PPO, rank: int):
        self._learner, self._rank = learner, rank

    def collect(self) -> tuple[Batch, list]:
        return rollout(self._learner.network, self._rank, self._learner.updates + 1), []


def new_agent(comm: MPI.Intracomm, exchange: Exchange, mix_steps: int | None = None) -> Agent:
    learner = new_learner(comm.rank)
    playing, no_seeds = Playing(learner, comm.rank), lambda update: np.zeros(0)
    sketch = Sketcher(len(learner.flat), 0)
    return Agent(playing, learner, learner.gradient, exchange, Clock(), sketch, no_seeds, mix_steps)


def alone(ranks: int) -> torch.Tensor:
    """The parameters of one process that takes the mean over the minibatches of all."""
    learner = new_learner(0)
    for update in range(1, UPDATES + 1):
        learner.count(T * N)
        parts = []
        for rank in range(ranks):
            learner.stream = partial(_stream, Config(), rank)
            parts.append(list(learner.parts(rollout(learner.network, rank, update))))
        for minibatches in zip(*parts, strict=True):
            gradients = []
            for part in minibatches:
                learner.gradient(part)
                gradients.append(learner.flat.grad.clone())
            learner.flat.grad.copy_(torch.stack(gradients).mean(0))
            assert learner.step(0.0).taken
    return learner.flat.data


def test_the_gradient_of_every_minibatch_is_averaged(comm):
    with closing(build_exchange(ALLREDUCE, comm, len(new_learner(0).flat))) as exchange:
        agent = new_agent(comm, exchange)
        agent.start()
        for _ in range(UPDATES):
            assert not agent.update().skipped
    found = agent.learner.flat.data
    assert float((found - new_learner(0).flat.data).norm()) > 0.01, "nothing was learnt"
    assert np.array_equal(found.numpy(), comm.bcast(found.numpy()))
    torch.testing.assert_close(found, alone(comm.size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("staleness", [0, None])
def test_under_gossip_agents_mix_once_a_rollout(comm, staleness):
    """What is published is what all minibatches have come to."""
    settings = gossip("ring", staleness)
    with closing(build_exchange(settings, comm, len(new_learner(0).flat))) as exchange:
        agent = new_agent(comm, exchange)
        agent.start()
        for update in range(1, UPDATES + 1):
            begun = agent.learner.flat.data.clone()
            agent.update()
            assert float(agent.learner.optimiser.steps) == update * 2 * 4
            mixes = exchange.counters().mixes
            assert len(mixes) <= 1 and (comm.size == 1 or staleness is None or len(mixes) == 1)
            if update == 1 and staleness == 0:
                assert_is_the_mean(comm, agent, begun)


def assert_is_the_mean(comm: MPI.Intracomm, agent: Agent, begun: torch.Tensor) -> None:
    """Of what this rank's first rollout leads to and what that of the one before it does, from where all have begun."""
    ends = []
    for rank in {comm.rank, (comm.rank - 1) % comm.size}:
        learner = new_learner(rank)
        learner.flat.data.copy_(begun)
        learner.count(T * N)
        for part in learner.parts(rollout(learner.network, rank, 1)):
            learner.gradient(part)
            learner.step(0.0)
        ends.append(learner.flat.data)
    torch.testing.assert_close(agent.learner.flat.data, torch.stack(ends).mean(0), rtol=1e-5, atol=1e-6)


class Simulated:
    """One rank, of which all ranks compute the same."""

    def __init__(self, rank: int):
        self.rank, self.learner, self.parts, self.rollouts = rank, new_learner(rank), iter(()), 0

    def advance(self, steps: int) -> None:
        """Take so many steps of the optimiser, or what is left of the rollout; play another first where nothing is."""
        done, part = 0, next(self.parts, None)
        self.learner.updates += 1
        if part is None:
            self.rollouts += 1
            self.parts = iter(self.learner.parts(rollout(self.learner.network, self.rank, self.learner.updates)))
            part = next(self.parts)
        while part is not None:
            self.learner.gradient(part)
            self.learner.step(0.0)
            done += 1
            part = next(self.parts, None) if done < steps else None


@pytest.mark.parametrize("mix_steps, updates_of_a_rollout", [(1, 8), (3, 3), (4, 2), (8, 1), (50, 1)])
def test_every_so_many_steps_agents_mix_what_all_have_come_to(comm, mix_steps, updates_of_a_rollout):
    """In lock-step: the mean of this rank's parameters and those of the one before it, as one process computes them."""
    updates = 2 * updates_of_a_rollout + 1
    everybody = [Simulated(rank) for rank in range(comm.size)]
    with closing(build_exchange(gossip("ring", 0), comm, len(new_learner(0).flat))) as exchange:
        agent = new_agent(comm, exchange, mix_steps)
        agent.start()
        for update in range(1, updates + 1):
            assert not agent.update().skipped
            for one in everybody:
                one.advance(mix_steps)
            ends = [one.learner.flat.data.clone() for one in everybody]
            for rank, one in enumerate(everybody):
                one.learner.flat.data.copy_((ends[rank] + ends[rank - 1]) / 2)
            torch.testing.assert_close(agent.learner.flat.data, everybody[comm.rank].learner.flat.data, rtol=1e-4, atol=1e-5)
            rollouts = -(-update // updates_of_a_rollout)
            assert agent.learner.updates == update and agent.learner.steps == rollouts * T * N
            assert float(agent.learner.optimiser.steps) == float(everybody[comm.rank].learner.optimiser.steps)
            assert [mix.version for mix in exchange.counters().mixes] == ([update] if comm.size > 1 else [])
    settings = PPOSettings(epochs=2, minibatches=4)
    config = Config(learner="ppo", mix_steps=mix_steps, num_envs=N, rollout_length=T, ppo=settings)
    assert config.updates_per_rollout == updates_of_a_rollout
