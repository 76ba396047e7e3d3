"""What environments do wrong is named, and what they do oddly is taken as it is meant: rewards, buffers, ends, shapes."""

from __future__ import annotations

import functools
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from shows import (
    ACTIONS,
    CHOICE,
    INF,
    NESTED,
    OBSERVATIONS,
    TEXT,
    Shows,
    box,
    inside,
    made,
    pixels,
)

from gala_mpi import networks
from gala_mpi.clock import Clock
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.spaces import Observations
from gala_mpi.errors import JobError, SettingError
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.collector import LARGEST_REWARD, Collector

NUMBERS = box(-INF, INF, (4,))


class Rewards(Shows):
    """Gives these rewards, step after step."""

    def __init__(self, *spaces, rewards):
        super().__init__(*spaces)
        self.rewards = iter(rewards)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, next(self.rewards), *rest


def test_rewards_that_are_arrays_of_one_number_are_taken():
    rewards = [np.array([1.5]), np.float32(2), np.array(3), [4], np.array([[5]]), True, torch.tensor([7.0])]
    environments = made(NUMBERS, num_envs=1, kind=Rewards, rewards=rewards)
    environments.reset(np.array([1]))
    assert [float(environments.step(np.array([0])).rewards[0]) for _ in rewards] == [1.5, 2, 3, 4, 5, 1, 7]


@pytest.mark.parametrize("reward", [None, "much", "1.5", b"1.5", np.array([1.0, 2.0]), {}, 1j])
def test_a_reward_that_is_no_number_is_named(reward):
    environments = made(NUMBERS, num_envs=1, kind=Rewards, rewards=[1.0, reward])
    environments.reset(np.array([1]))
    environments.step(np.array([0]))
    with pytest.raises(JobError) as error:
        environments.step(np.array([0]))
    assert f"--env {environments.name}: environment 0 returned at its step 2 a reward of {reward!r}" in str(error.value)


@pytest.mark.parametrize("reward", [1e18, 1e20, -1e25, 3e38, 1e300])
@pytest.mark.parametrize("clip_rewards", [False, True])
def test_a_reward_that_would_overflow_is_named_and_not_learnt_from(reward, clip_rewards):
    environments = made(NUMBERS, num_envs=1, kind=Rewards, rewards=[1.0, reward, *[1.0] * 20])
    torch.manual_seed(0)
    learner = A2C(Network("mlp", environments.spaces), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1]), 5, 0.9, clip_rewards, lambda: None, Clock())
    batch, _ = collector.collect()
    infinite = abs(reward) > np.finfo(np.float32).max
    assert (collector.fault is not None) == (infinite or not clip_rewards)
    if collector.fault:
        assert str(collector.fault) == f"environment 0 gave a reward of {float(np.float32(reward))} at its step 2"
        assert batch.rewards[1, 0] == 0
    collector.collect()
    assert collector.fault is None


def test_an_integer_beyond_all_floats_is_an_infinite_reward():
    environments = made(NUMBERS, num_envs=2, kind=Rewards, rewards=[10**400])
    inside(environments, 1).rewards = iter([-(10**400)])
    environments.reset(np.array([1, 2]))
    assert environments.step(np.array([0, 0])).rewards.tolist() == [INF, -INF]


def test_the_largest_reward_that_is_learnt_from_does_not_overflow():
    environments = made(NUMBERS, num_envs=1, kind=Rewards, rewards=[0.99 * LARGEST_REWARD] * 10)
    torch.manual_seed(0)
    learner = A2C(Network("mlp", environments.spaces), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1]), 5, 0.99, False, lambda: None, Clock())
    batch, _ = collector.collect()
    before = learner.flat.data.clone()
    assert collector.fault is None and torch.isfinite(learner.gradient(batch)[:3]).all()
    assert learner.step(0.0).taken and not torch.equal(before, learner.flat.data)


class Undecided(Shows):
    """Returns None in place of a truth value at the second step."""

    def __init__(self, *spaces, place):
        super().__init__(*spaces)
        self.place = place

    def step(self, action):
        returned = list(super().step(action))
        if self.t == 2:
            returned[self.place] = None
        return tuple(returned)


@pytest.mark.parametrize("place, shown", [(2, "terminated None, truncated False"), (3, "terminated False, truncated None")])
def test_an_end_that_is_neither_true_nor_false_is_named(place, shown):
    environments = made(NUMBERS, num_envs=1, kind=Undecided, place=place)
    environments.reset(np.array([1]))
    environments.step(np.array([0]))
    with pytest.raises(JobError, match=f"returned at its step 2 {shown}; truth values are expected"):
        environments.step(np.array([0]))


class Counts(Shows):
    """Shows how often it was begun."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(4, self.episode, np.float32), {}


def test_all_environments_are_begun_equally_often_before_the_first_episode():
    name = f"shows/Counts-v{len(gymnasium.registry)}"
    gymnasium.register(name, functools.partial(Counts, NUMBERS, CHOICE), disable_env_checker=True)
    assert len(np.unique(GymEnvironments(name, 3).reset(np.arange(3)))) == 1


@pytest.mark.parametrize("dtype", [np.uint64, np.int8])
def test_choices_of_any_integers_are_read(dtype):
    environments = made(gym.MultiDiscrete([3, 4], dtype=dtype), num_envs=3)
    rows = environments.reset(np.array([1, 2, 3]))
    shown = [each.unwrapped.shown[0] for each in environments.envs]
    assert np.array_equal(rows, [[*np.eye(3)[a], *np.eye(4)[b]] for a, b in np.int64(shown)])


class Reuses(Shows):
    """Has one buffer, which it returns at every step, and at a reset: 10 · episode + step in each number. Never lost."""

    buffer = np.zeros(4, np.float32)  # of all environments

    def _show(self):
        self.buffer[:] = (10 * self.episode + self.t) / 10
        return self.buffer

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.t == 3, info


def test_what_an_environment_writes_over_was_copied():
    environments = made(NUMBERS, kind=Reuses)
    shown = [environments.reset(np.array([1, 2]))]
    steps = [environments.step(np.array([0, 0])) for _ in range(4)]
    shown += [step.observations for step in steps]
    assert [float(rows[0, 0]) for rows in shown] == [float(np.float32(value)) for value in (1.0, 1.1, 1.2, 2.0, 2.1)]
    assert np.array_equal(steps[2].final_observations, np.full((2, 4), 1.3, np.float32))


def test_the_value_at_a_truncation_is_that_of_the_last_observation():
    """And not of the next episode's first, which the environment has written over it."""
    environments = made(NUMBERS, kind=Reuses)
    torch.manual_seed(0)
    learner = A2C(Network("mlp", environments.spaces), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1, 2]), 4, 0.9, False, lambda: None, Clock())
    batch, _ = collector.collect()
    with torch.no_grad():
        (last, following) = learner.network(torch.tensor([[1.3] * 4, [2.0] * 4]))[1].tolist()
    assert abs(last - following) > 0.05
    assert batch.rewards[2].tolist() == pytest.approx([0.5 + 0.9 * last] * 2)
    assert batch.discounts[2].tolist() == [0, 0]


class Ends(Rewards):
    """Ends its second step, in the way that it is told."""

    def __init__(self, *spaces, terminated, truncated):
        super().__init__(*spaces, rewards=[0.25] * 100)
        self.ends = terminated, truncated

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, *(end and self.t == 2 for end in self.ends), info


@pytest.mark.parametrize("terminated, truncated", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["float32 [4]", "uint8 [40, 50, 3]", "nested", "Discrete", "float32 [8, 9, 3] in -1..1"])
def test_targets_where_an_episode_ends(kind, terminated, truncated):
    """r + γ V(last) where it was cut off, r where it was lost, and where it was both."""
    space, shape, expected, _ = OBSERVATIONS[kind]
    environments = made(space, num_envs=1, kind=Ends, terminated=terminated, truncated=truncated)
    torch.manual_seed(0)
    name = networks.default(shape if len(shape) == 3 else None)
    network = Network(name, environments.spaces).to(memory_format=torch.channels_last)
    collector = Collector(
        A2C(network, A2CSettings(), 1e-3), [environments], np.array([5]), 3, 0.9, False, lambda: None, Clock()
    )
    batch, _ = collector.collect()
    last = np.asarray(expected(inside(environments).shown[2])).astype(environments.spaces.observation_dtype)
    with torch.no_grad():
        value = float(network(torch.from_numpy(last)[None])[1])
    assert abs(value) > 1e-3
    bootstrap = 0.9 * value if truncated and not terminated else 0.0
    assert float(batch.rewards[1, 0]) == pytest.approx(0.25 + bootstrap, rel=1e-4, abs=1e-5)
    assert batch.discounts[:, 0].tolist() == pytest.approx([0.9, 0, 0.9])


WRONG = {  # what is returned in place of what was declared, and what is said of it
    "shape": (NUMBERS, lambda x: x[:3], "observation of shape (3,); (4,) is declared (Box(-inf, inf, (4,), float32))"),
    "more": (NUMBERS, lambda x: x[None], "observation of shape (1, 4); (4,) is declared"),
    "scalar": (NUMBERS, lambda x: 1.0, "observation of shape (); (4,) is declared"),
    "dtype": (pixels(5, 6), lambda x: x / 255, "observation of dtype float64; uint8 is declared (Box(0, 255, (5, 6), uint8))"),
    "nothing": (NUMBERS, lambda x: None, "observation of shape (); (4,) is declared"),
    "value": (gym.Discrete(3), lambda x: 3, "observation of 3; Discrete(3) is declared"),
    "float": (gym.Discrete(3), lambda x: 0.5, "observation of dtype float64; int64 is declared"),
    "larger": (pixels(5, 6), lambda x: np.full((5, 6), 300, np.uint16), "observation of 300; Box(0, 255, (5, 6), uint8) is"),
    "wraps": (
        box(-100, 100, (2,), np.int8),
        lambda x: np.array([100, -300]),
        "observation of -300; Box(-100, 100, (2,), int8)",
    ),
    "key": (TEXT, lambda x: {"mission": "go"}, "no observation[place] as in Dict("),
    "part": (NESTED, lambda x: {**x, "position": np.zeros(3)}, "observation[position] of shape (3,); (2,) is declared"),
    "no Dict": (NESTED, lambda x: 3, "no observation[held] as in Dict("),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_was_not_declared_is_named_at_the_first_step(kind):
    space, change, words = WRONG[kind]
    environments = made(space, change=change)
    with pytest.raises(JobError) as error:
        environments.reset(np.array([1, 2]))
    line = str(error.value)
    assert line.startswith(f"--env {environments.name}: environment 0 returned at its step 0 {words}") and "\n" not in line


def later(change):
    """Change the fifth sample, and those that follow: the first one is looked at, the second one is that of the reset."""
    count = iter(range(100))
    return lambda sample: change(sample) if next(count) >= 4 else sample


@pytest.mark.parametrize("kind", ["shape", "more", "scalar", "dtype", "value", "float", "larger", "wraps", "key", "part"])
def test_what_was_not_declared_is_named_later_too(kind):
    space, change, _ = WRONG[kind]
    environments = made(space, num_envs=1, change=later(change))
    environments.reset(np.array([1]))
    environments.step(np.array([0])), environments.step(np.array([0]))
    with pytest.raises(JobError, match=rf"--env {environments.name}: environment 0 returned at its step 3 .*observation"):
        environments.step(np.array([0]))


@pytest.mark.parametrize("change", [lambda x: x.astype(np.float64), lambda x: x.tolist(), lambda x: x.astype(np.int64)])
def test_numbers_that_lose_nothing_but_digits_are_taken(change):
    """Lists, and float64 in place of float32, as many environments return them."""
    environments = made(NUMBERS, num_envs=1, change=change)
    first = environments.reset(np.array([1]))
    dtype = np.asarray(change(np.zeros(4, np.float32))).dtype
    listed = isinstance(change(np.zeros(4, np.float32)), list)
    said = f"--env {environments.name}: observation of dtype {dtype}; float32 is declared, which it is converted to"
    assert environments.advice == ([] if listed else [said])
    assert np.array_equal(first[0], np.float32(inside(environments).shown[0]))


@pytest.mark.parametrize("kind, other", [("observation_space", box(-1, 1, (4,))), ("action_space", gym.Discrete(3))])
def test_environments_that_differ_are_named(kind, other):
    count = iter(range(9))

    def differs(*spaces):
        environment = Shows(*spaces)
        if next(count) == 2:
            setattr(environment, kind, other)
        return environment

    gymnasium.register(f"Differs-{kind}-v0", functools.partial(differs, NUMBERS, CHOICE), disable_env_checker=True)
    with pytest.raises(JobError, match=rf"^--env Differs-{kind}-v0: environment 2 has the {kind} .*, environment 0 "):
        GymEnvironments(f"Differs-{kind}-v0", 4)


def test_infos_that_nobody_reads_may_be_of_any_shape():
    """`Shows` has lists of dictionaries in them."""
    environments = made(NUMBERS)
    environments.reset(np.array([1, 2]))
    for _ in range(7):
        environments.step(np.array([0, 1]))


def test_descriptions_say_what_is_played():
    """As docs/checkpoints.md has it."""
    cases = {
        "Box 100..200": {"shape": [1], "low": [100.0], "high": [200.0], "scale": [50.0], "offset": [150.0]},
        "Box, half of its bounds infinite": {
            "shape": [3],
            "low": [-1.0, None, 0.0],
            "high": [3.0, None, None],
            "scale": [2.0, 1.0, 1.0],
            "offset": [1.0, 0.0, 0.0],
        },
        "MultiDiscrete": {"numbers": [2, 4]},
        "MultiBinary": {"numbers": [2, 2, 2]},
        "Discrete from 5": {"number": 3},
    }
    for kind, said in cases.items():
        spaces = made(NUMBERS, ACTIONS[kind][0]).spaces
        assert Network("mlp", spaces).description()["actions"] == said
    parts = Network("mlp", made(NESTED).spaces).description()["observations"]["parts"]
    assert [part["size"] for part in parts] == [3, 2, 3, 5, 4] and parts[0]["name"] == "observation[held]"
    assert math.prod(made(NESTED).spaces.observation_shape) == 17


class Mission(gym.Space):
    """A text as MiniGrid has it: a space of strings that is no Text."""

    def __init__(self):
        super().__init__(dtype=str)


def test_spaces_of_strings_are_left_out_as_texts_are():
    seen = Observations("Grid-v0", gym.Dict({"direction": gym.Discrete(4), "mission": Mission()}))
    assert seen.shape == (4,) and seen.left_out == ["mission"]
    with pytest.raises(SettingError, match="a wrapper that turns it into numbers is expected"):
        Observations("Grid-v0", Mission())
