"""What an agent tells its environments: streams of random numbers, those of global ones too, and how messages number them."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from torch.distributions import Independent, Normal

from gala_mpi import pulse
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.job import build
from gala_mpi.mpi.world import World
from gala_mpi.networks.distributions import Discrete, Gaussian, Masked, Several


class NoisyPole(CartPoleEnv):
    """CartPole that is seen through noise of all global streams, at its first step too, and has drawn as it was made."""

    def __init__(self):
        super().__init__()
        self.scale = 0.01 * np.random.rand()

    def noise(self):
        return np.float32(self.scale * (np.random.rand() + random.random() + float(torch.rand(()))))

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation + self.noise(), info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation + self.noise(), *rest


class SeedingPole(CartPoleEnv):
    """CartPole that uses torch for itself: it seeds torch's global stream and draws from it."""

    def step(self, action):
        torch.manual_seed(0)
        torch.rand(3)
        np.random.seed(0)
        return super().step(action)


@pytest.fixture(scope="module")
def world():
    end, registered = pulse.end, dict(gymnasium.registry)
    gymnasium.register("NoisyPole-v0", NoisyPole, max_episode_steps=500)
    gymnasium.register("SeedingPole-v0", SeedingPole, max_episode_steps=500)
    yield World()
    pulse.end = end
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)


def agent_on(world: World, env: str, seed: int = 0):
    config = Config(env=env, num_envs=2, seed=seed, network="mlp", precision="fp32")
    return build.build(config, world.comm, 0, 1)


def learnt(world: World, env: str, seed: int = 0, between=lambda: None) -> np.ndarray:
    """The parameters after some updates, with something in between."""
    agent = agent_on(world, env, seed)
    agent.start()
    for _ in range(8):
        agent.update()
        between()
    parameters = agent.learner.flat.data.numpy().copy()
    agent.close()
    return parameters


def test_an_environment_that_draws_from_global_streams_repeats(world):
    first = learnt(world, "NoisyPole-v0")
    np.random.seed(3), random.seed(3), torch.manual_seed(3)
    assert np.array_equal(first, learnt(world, "NoisyPole-v0"))
    assert not np.array_equal(first, learnt(world, "NoisyPole-v0", seed=1))
    assert not np.array_equal(first, learnt(world, "CartPole-v1"))


def test_an_environment_that_seeds_torch_does_not_disturb_the_agent(world):
    assert np.array_equal(learnt(world, "SeedingPole-v0"), learnt(world, "CartPole-v1"))
    assert np.array_equal(learnt(world, "CartPole-v1", between=lambda: torch.manual_seed(1)), learnt(world, "CartPole-v1"))


def test_a_start_at_an_update_seeds_the_global_streams_as_every_such_start(world):
    def drawn(update: int) -> tuple:
        return (*agent.streams(update).tolist(), np.random.rand(), random.random(), float(torch.rand(())))

    agent = agent_on(world, "CartPole-v1")
    assert drawn(5) == drawn(5)
    assert len({*drawn(5), *drawn(6)}) == 2 * len(drawn(5))
    agent.close()


def test_actions_are_drawn_as_from_a_global_stream_of_the_same_seed():
    """Runs of versions whose agents drew from it are replayed."""
    logits, mean, deviation = torch.randn(50, 6), torch.randn(50, 3), torch.rand(3)
    for policy, theirs in (
        (Discrete(logits), Discrete(logits)),
        (Masked(logits), Discrete(logits)),
        (Several.of(logits, [2, 4]), Several.of(logits, [2, 4])),
        (Gaussian(mean, deviation), Independent(Normal(mean, deviation), 1)),
    ):
        torch.manual_seed(7)
        expected = theirs.sample()
        assert torch.equal(policy.sample(torch.Generator().manual_seed(7)), expected)
        torch.manual_seed(7)
        assert torch.equal(policy.sample(), expected)


def test_messages_count_the_environments_of_an_agent_over_both_halves(world, monkeypatch):
    made, make = [], registry.make

    def counted(env, number, *, first, **options):
        made.append((first, number))
        return make(env, number, first=first, **options)

    monkeypatch.setattr(registry, "make", counted)
    agent = build.build(Config(env="pong", network="gala", precision="fp32", num_envs=4, overlap=True), world.comm, 0, 1)
    assert made == [(0, 2), (2, 2)]
    agent.close()
