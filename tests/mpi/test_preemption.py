"""Preemption over ranks: stragglers cut their rollouts short, and nobody else does."""

from __future__ import annotations

import time
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from mpi4py import MPI

from gala_mpi.config import Config, PPOSettings
from gala_mpi.exchange.base import Order
from gala_mpi.exchange.preemption import shortest
from gala_mpi.job import build
from gala_mpi.mpi.shared_count import SharedCount

WORLD = MPI.COMM_WORLD
T, N, UPDATES, STUCK = 16, 2, 6, 7  # the straggler is stuck in its STUCK-th step, until the others have played
several = pytest.mark.skipif(WORLD.size == 1, reason="one rank waits for nobody")


class SlowPole(CartPoleEnv):
    """CartPole that calls `in_step` with the number of its step."""

    steps, in_step = 0, staticmethod(lambda step: None)

    def step(self, action):
        self.steps += 1
        self.in_step(self.steps)
        return super().step(action)


gymnasium.register("SlowPole-v0", SlowPole, disable_env_checker=True)


def settings(**changes) -> Config:
    made = dict(env="SlowPole-v0", exchange="allreduce", num_envs=N, rollout_length=T, network="mlp", precision="fp32")
    ppo = PPOSettings(epochs=2, minibatches=4, clip=0.2, entropy_coefficient=0.01)
    return Config(**made | dict(learner="ppo", ppo=ppo, preempt=max(0.5, (WORLD.size - 1) / WORLD.size)) | changes)


def test_everybody_sees_what_all_have_added_and_never_more(comm):
    count = SharedCount(comm)
    for all_have_added in (100, 200, 300):
        for _ in range(100):
            count.add()
            assert count.look() <= all_have_added * comm.size
        while count.look() < all_have_added * comm.size:
            count.progress()
        everybody = comm.Ibarrier()  # nobody adds more before all have seen that
        while not everybody.Test():
            count.progress()
    count.free()


@several
@pytest.mark.parametrize("learner", ["ppo", "a2c"])
def test_a_straggler_alone_cuts_its_rollouts_short_and_gradients_weigh_the_same(comm, learner):
    agent = build.build(settings(learner=learner), comm, comm.rank, 1)
    straggler, exchange, means = comm.rank == comm.size - 1, agent.exchange, []

    def wait_for_others(step: int) -> None:
        if straggler and step % STUCK == 0:
            while not exchange.cut_short():
                exchange.progress()
                time.sleep(1e-4)

    def averaged(gradient: torch.Tensor) -> bool:
        mine = gradient.numpy().copy()
        counts = average(gradient)
        means.append(np.allclose(gradient, np.mean(comm.allgather(mine), axis=0), rtol=1e-4, atol=1e-7))
        return counts

    average, exchange.gradient = exchange.gradient, averaged
    pole = agent.collector.environments[0].envs[0].unwrapped
    pole.in_step = wait_for_others
    agent.start()
    done = []
    for _ in range(UPDATES):
        pole.steps = 0
        agent.update()
        done.append(agent.collector.steps // N)
        assert exchange.steps() == comm.allreduce(agent.learner.steps)
        exchange.agree(Order())
    # The next step has begun when it is asked whether to go on; the others may have played before it is stuck.
    fewest, most = (shortest(T), STUCK + 1) if straggler else (T, T)
    assert fewest <= min(done) and max(done) <= most
    assert agent.learner.steps == sum(done) * N
    assert len(means) == UPDATES * (2 * 4 if learner == "ppo" else 1) and all(means)
    agent.close()


@several
def test_no_rollout_is_cut_before_a_quarter_of_it_is_played(comm):
    """Where the first rank to have played is enough, and the last one comes later than all others."""
    agent = build.build(settings(preempt=0.01), comm, comm.rank, 1)
    straggler, exchange = comm.rank == comm.size - 1, agent.exchange

    def wait_for_one(step: int) -> None:
        if straggler and step == 1:
            while not exchange.cut_short():
                exchange.progress()
                time.sleep(1e-4)

    pole = agent.collector.environments[0].envs[0].unwrapped
    pole.in_step = wait_for_one
    agent.start()
    for _ in range(UPDATES):
        pole.steps = 0
        agent.update()
        steps = comm.allgather(agent.collector.steps // N)
        assert steps[-1] == shortest(T) == 4 and max(steps) == T and min(steps) == 4
    agent.close()


@several
def test_where_all_ranks_are_waited_for_all_rollouts_are_whole(comm):
    with closing(build.build(settings(preempt=1.0), comm, comm.rank, 1)) as agent:
        agent.start()
        for _ in range(UPDATES):
            agent.update()
            assert agent.collector.steps == T * N
        assert agent.exchange.steps() == comm.size * UPDATES * T * N


@pytest.mark.parametrize("length, steps", [(1, 1), (2, 1), (4, 1), (5, 2), (16, 4), (128, 32), (2047, 512)])
def test_a_quarter_is_rounded_up(length, steps):
    assert shortest(length) == steps
