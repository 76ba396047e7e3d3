"""The games of an evaluation: episodes that end, that never do, and that go wrong."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym

from gala_mpi.envs import registry
from gala_mpi.errors import JobError
from gala_mpi.games import Games
from gala_mpi.networks.policy import Network


class Counts(gymnasium.Env):
    """Shows its number of steps, and rewards it; ends after `length` of them, and shows or rewards `sick` at its third step of
    all."""

    observation_space, action_space = gym.Box(-np.inf, np.inf, (1,)), gym.Discrete(2)

    def __init__(self, length=np.inf, what="", sick=np.nan):
        self.length, self.what, self.sick, self.moves = length, what, sick, 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps, self.moves = self.steps + 1, self.moves + 1
        observation, reward = np.array([self.steps], np.float32), float(self.steps)
        if self.moves == 3 and self.what == "observation":
            observation[0] = self.sick
        if self.moves == 3 and self.what == "reward":
            reward = self.sick
        return observation, reward, self.steps == self.length, False, {}


gymnasium.register("Counts-v0", Counts)


def games(max_steps: int, *kwargs: str, number: int = 2) -> tuple[Games, functools.partial]:
    environments = registry.make("Counts-v0", number, kwargs=kwargs)
    network = Network("mlp", environments.spaces)
    begun = Games(environments, np.arange(number), max_steps)
    return begun, functools.partial(begun.play, network, None)


def test_what_never_ends_is_cut_off():
    ended = []
    begun, play = games(7)
    assert [(game.score, game.length) for game in play(ended.append)] == [(28, 7)] * 2
    assert begun.cut == 2 and ended == [0] * 6 + [2]


def test_what_ends_in_time_is_not():
    begun, play = games(5, "length=5")
    assert [(game.score, game.length) for game in play()] == [(15, 5)] * 2
    assert begun.cut == 0


def test_a_game_that_is_over_is_not_played_on():
    """The second episode of an environment whose first is the shorter one counts nothing."""
    environments = registry.make("Counts-v0", 2, kwargs=["length=6"])
    environments.envs[0].unwrapped.length = 2
    begun = Games(environments, np.arange(2), max_steps=100)
    assert [game.length for game in begun.play(Network("mlp", environments.spaces), None)] == [2, 6]


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("sick", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(what, sick):
    environments = registry.make("Counts-v0", 3, kwargs=["length=9"])
    environments.envs[1].unwrapped.what, environments.envs[1].unwrapped.sick = what, sick
    begun = Games(environments, np.arange(3), max_steps=100)
    with pytest.raises(JobError, match=rf"environment 1 gave an? {what} of {sick} at its step 3: "):
        begun.play(Network("mlp", environments.spaces), None)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_is_not_finite_after_a_game_concerns_nobody(what):
    environments = registry.make("Counts-v0", 2, kwargs=["length=9"])
    first = environments.envs[0].unwrapped
    first.length, first.what = 2, what
    begun = Games(environments, np.arange(2), max_steps=100)
    assert [game.length for game in begun.play(Network("mlp", environments.spaces), None)] == [2, 9]
