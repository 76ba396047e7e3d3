"""What becomes of observations and actions of every kind: what reaches the network is what the environment returned, or what
docs/environments.md says of it; what arrives at the environment is what the network chose."""

from __future__ import annotations

import copy
import functools
import math
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from gymnasium.spaces.utils import flatten

from gala_mpi import networks
from gala_mpi.clock import Clock
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.spaces import Observations
from gala_mpi.errors import JobError, SettingError
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks.distributions import NEVER, Discrete, Gaussian, Several
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.cached import fits
from gala_mpi.rollout.collector import LARGEST_REWARD, Collector

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"
INF = np.inf


class Shows(gymnasium.Env):
    """Returns samples of its space, and keeps copies of them; episodes of 3 steps, lost and cut off in turn.

    Args:
        change: what is done to a sample before it is returned.
    """

    def __init__(self, observation_space, action_space, change=lambda sample: sample):
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)
        self.change = change
        self.shown: list = []
        self.arrived: list = []
        self.episode = 0

    def _show(self):
        sample = self.change(self.observation_space.sample())
        self.shown.append(copy.deepcopy(sample))
        return sample

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.t, self.episode = 0, self.episode + 1
        return self._show(), {}

    def step(self, action):
        self.arrived.append(copy.deepcopy(action))
        self.t += 1
        over = self.t == 3
        return self._show(), 0.5, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {"odd": [None, {"a": self.t}]}


CHOICE = gym.Discrete(2)


def made(observation_space, action_space=CHOICE, num_envs=2, kind=Shows, raw=False, **options) -> GymEnvironments:
    """Environments of these spaces, by the way that users go."""
    name = f"shows/{kind.__name__}-v{len(gymnasium.registry)}"
    make = functools.partial(kind, observation_space, action_space, **options)
    gymnasium.register(name, make, disable_env_checker=True)
    environments = GymEnvironments(name, num_envs, raw=raw)
    for each in environments.envs:  # one of which was looked at
        each.unwrapped.shown.clear()
        each.unwrapped.episode = 0
    return environments


def inside(environments: GymEnvironments, i: int = 0) -> Shows:
    return environments.envs[i].unwrapped


# Observations: a space, what a network sees of it (shape, image, dtype, scale), and one observation as it should reach it.


def planes(*axes: int):
    """Turn the axes of an image."""
    return lambda image: np.transpose(image, axes)


def flat(space):
    return lambda observation: np.asarray(flatten(space, observation), np.float32)


def box(low, high, shape, dtype=np.float32) -> gym.Box:
    return gym.Box(low, high, shape, dtype)


def pixels(*shape: int) -> gym.Box:
    return box(0, 255, shape, np.uint8)


NESTED = gym.Dict(
    {
        "position": box(-1, 1, (2,)),
        "held": gym.Discrete(3),
        "rest": gym.Tuple(
            [gym.MultiBinary(3), gym.MultiDiscrete([2, 3]), gym.Dict({"deep": box(-INF, INF, (2, 2), np.float64)})]
        ),
    }
)
CENTIGRADE = box(np.float32([[[-20]], [[0]]]).repeat(4, 1).repeat(5, 2), 100, (2, 4, 5))
UNEVEN = gym.Box(np.zeros(3, np.uint8), np.array([1, 10, 255], np.uint8), dtype=np.uint8)
SCREEN = gym.Dict({"screen": pixels(40, 50, 3), "speed": box(-INF, INF, (2,))})
GRID = gym.Dict({"direction": gym.Discrete(4), "image": box(0, 10, (7, 7, 3), np.uint8), "mission": gym.Text(8)})
EYES = gym.Dict(
    {
        "left": box(0, 255, (8, 9), np.uint8),
        "map": box(0, 1, (3, 4, 2)),
        "speed": box(-1, 1, (1,)),
        "right": box(-1, 1, (8, 9, 2), np.float64),
        "flags": box(0, 1, (2, 2), np.bool_),
    }
)
TEXT = gym.Dict({"mission": gym.Text(8), "place": gym.Discrete(4)})

OBSERVATIONS = {
    # images of bytes
    "uint8 [84, 84]": (pixels(84, 84), (1, 84, 84), lambda x: x[None], 1 / 255),
    "uint8 [5, 6]": (pixels(5, 6), (1, 5, 6), lambda x: x[None], 1 / 255),
    "uint8 [40, 50, 3]": (pixels(40, 50, 3), (3, 40, 50), planes(2, 0, 1), 1 / 255),
    "uint8 [4, 40, 50]": (pixels(4, 40, 50), (4, 40, 50), lambda x: x, 1 / 255),
    "uint8 [10, 10, 4] of 0 and 1": (box(0, 1, (10, 10, 4), np.uint8), (4, 10, 10), planes(2, 0, 1), 1.0),
    "uint8 [7, 7, 3] up to 10": (box(0, 10, (7, 7, 3), np.uint8), (3, 7, 7), planes(2, 0, 1), 1 / 10),
    "bool [10, 10, 4]": (box(0, 1, (10, 10, 4), np.bool_), (4, 10, 10), planes(2, 0, 1), 1.0),
    "bool [6, 8]": (box(0, 1, (6, 8), np.bool_), (1, 6, 8), lambda x: x[None], 1.0),
    "uint8 [4, 40, 50, 3]": (pixels(4, 40, 50, 3), (12, 40, 50), lambda x: planes(0, 3, 1, 2)(x).reshape(12, 40, 50), 1 / 255),
    "uint8 [2, 3, 40, 50]": (pixels(2, 3, 40, 50), (6, 40, 50), lambda x: x.reshape(6, 40, 50), 1 / 255),
    # images of other numbers
    "float32 [8, 9, 3] in 0..1": (box(0, 1, (8, 9, 3)), (3, 8, 9), planes(2, 0, 1), 1.0),
    "float32 [8, 9, 3] in -1..1": (box(-1, 1, (8, 9, 3)), (3, 8, 9), lambda x: (planes(2, 0, 1)(x) + 1) / 2, 1.0),
    "float64 [2, 4, 5], bounds of its own": (
        gym.Box(CENTIGRADE.low.astype(float), CENTIGRADE.high.astype(float), dtype=np.float64),
        (2, 4, 5),
        lambda x: (x - CENTIGRADE.low) / (CENTIGRADE.high - CENTIGRADE.low),
        1.0,
    ),
    "float16 [3, 8, 8] without bounds": (box(-INF, INF, (3, 8, 8), np.float16), (3, 8, 8), lambda x: x, 1.0),
    "int64 [3, 8, 8] up to 5": (box(0, 5, (3, 8, 8), np.int64), (3, 8, 8), lambda x: x / 5, 1.0),
    "float32 [2, 5, 6, 3]": (box(0, 2, (2, 5, 6, 3)), (6, 5, 6), lambda x: planes(0, 3, 1, 2)(x).reshape(6, 5, 6) / 2, 1.0),
    # vectors
    "float32 [4]": (box(-INF, INF, (4,)), (4,), lambda x: x, 1.0),
    "float32 [5, 6]": (box(-INF, INF, (5, 6)), (30,), np.ravel, 1.0),
    "float32 []": (box(-1, 1, ()), (1,), np.ravel, 1.0),
    "float16 [4]": (box(-1, 1, (4,), np.float16), (4,), lambda x: x, 1.0),
    "float64 [4]": (box(-1, 1, (4,), np.float64), (4,), lambda x: x, 1.0),
    "int32 [4]": (box(-9, 9, (4,), np.int32), (4,), lambda x: x, 1.0),
    "int8 [2, 2]": (box(-9, 9, (2, 2), np.int8), (4,), np.ravel, 1.0),
    "uint8 [128]": (pixels(128), (128,), lambda x: x / np.float32(255), 1.0),
    "uint8 [3], bounds of its own": (UNEVEN, (3,), lambda x: x / np.float32([1, 10, 255]), 1.0),
    "uint8 [2, 9]": (pixels(2, 9), (18,), lambda x: x.ravel() / np.float32(255), 1.0),
    "float32 [2, 2, 2]": (box(-1, 1, (2, 2, 2)), (8,), np.ravel, 1.0),
    "Discrete": (gym.Discrete(5), (5,), flat(gym.Discrete(5)), 1.0),
    "Discrete from 3": (gym.Discrete(5, start=3), (5,), flat(gym.Discrete(5, start=3)), 1.0),
    "MultiDiscrete": (gym.MultiDiscrete([2, 4, 3]), (9,), flat(gym.MultiDiscrete([2, 4, 3])), 1.0),
    "MultiDiscrete [2, 2]": (gym.MultiDiscrete([[2, 4], [3, 2]]), (11,), flat(gym.MultiDiscrete([[2, 4], [3, 2]])), 1.0),
    "MultiBinary": (gym.MultiBinary(6), (6,), flat(gym.MultiBinary(6)), 1.0),
    "MultiBinary [2, 3]": (gym.MultiBinary([2, 3]), (6,), flat(gym.MultiBinary([2, 3])), 1.0),
    "Tuple": (gym.Tuple([gym.Discrete(3), gym.Discrete(2)]), (5,), flat(gym.Tuple([gym.Discrete(3), gym.Discrete(2)])), 1.0),
    "nested": (NESTED, (2 + 3 + 3 + 5 + 4,), flat(NESTED), 1.0),
    "Dict of one image": (
        gym.Dict({"screen": pixels(40, 50, 3)}),
        (3, 40, 50),
        lambda x: planes(2, 0, 1)(x["screen"]),
        1 / 255,
    ),
    "Dict with text": (TEXT, (4,), lambda x: np.eye(4)[x["place"]], 1.0),
}


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_what_reaches_the_network_is_what_the_environment_returned(kind):
    """At resets by seeds and by the end of episodes, at steps, and where an episode was cut off."""
    space, shape, expected, scale = OBSERVATIONS[kind]
    environments = made(space)
    seen = [environments.reset(np.array([3, 4]))]
    spaces = environments.spaces
    assert (spaces.observation_shape, spaces.image) == (shape, len(shape) == 3)
    assert spaces.scale == pytest.approx(scale)
    steps = [environments.step(np.array([0, 1])) for _ in range(7)]
    for i in range(2):
        shown = iter([np.asarray(expected(each)).astype(spaces.observation_dtype) for each in inside(environments, i).shown])
        assert_same(seen[0][i], next(shown))
        for step in steps:
            last = next(shown)
            if step.truncated[i]:
                assert_same(step.final_observations[i], last)
            assert_same(step.observations[i], next(shown) if step.truncated[i] or step.terminated[i] else last)
        assert next(shown, None) is None
    assert [step.truncated.all() for step in steps] == [False, False, True, False, False, False, False]
    assert [step.terminated.all() for step in steps] == [False, False, False, False, False, True, False]
    for rows in (seen[0], *(step.observations for step in steps)):
        assert rows.dtype == spaces.observation_dtype and rows.shape == (2, *shape)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit where nothing is computed, and to a rounding of float32 where bytes or bounds are divided by."""
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7 if found.ndim == 3 else 0)


@pytest.mark.parametrize("kind", [kind for kind, (space, *_) in OBSERVATIONS.items() if isinstance(space, gym.Box)])
def test_an_old_run_sees_what_it_has_seen(kind):
    """Only bytes of rank 3 are images, divided by 255; all else is flattened as it is."""
    space = OBSERVATIONS[kind][0]
    environments = made(space, raw=True)
    (first, _) = environments.reset(np.array([3, 4]))
    shown = np.asarray(inside(environments).shown[0])
    image = space.dtype == np.uint8 and len(space.shape) == 3
    assert environments.spaces.image == image and environments.spaces.scale == (1 / 255 if image else 1.0)
    if not image:
        assert first.dtype == np.float32 and np.array_equal(first, shown.astype(np.float32).ravel())
    else:
        assert first.dtype == np.uint8
        assert np.array_equal(first, np.moveaxis(shown, 2, 0) if shown.shape[2] < shown.shape[0] else shown)


def test_text_is_left_out_and_named():
    (line,) = Observations("Mission-v0", TEXT).advice
    assert line == "--env Mission-v0: mission of its observations: text, which is left out"
    assert Observations("Mission-v0", NESTED).advice == []


def nan_box(low: float, high: float) -> gym.Box:
    space = box(0, 1, (2,))
    space.low[0], space.high[1] = low, high
    return space


REFUSED_OBSERVATIONS = {
    "Text": (gym.Text(8), "a wrapper that turns text into numbers is expected"),
    "Dict of texts": (gym.Dict({"a": gym.Text(8)}), "a wrapper that turns text into numbers is expected"),
    "Sequence": (gym.Sequence(gym.Discrete(2)), "a wrapper that gives Box, Discrete"),
    "Graph": (gym.Graph(box(0, 1, (2,)), None), "a wrapper that gives Box, Discrete"),
    "Sequence in a Dict": (gym.Dict({"a": gym.Sequence(gym.Discrete(2)), "b": gym.Discrete(2)}), "with Sequence(Discrete(2)"),
    "OneOf": (gym.OneOf([gym.Discrete(2), gym.Discrete(3)]), "a wrapper that gives Box, Discrete"),
    "a Box of size 0": (box(0, 1, (0,)), "(0,), float32): it holds no number; one or more is expected"),
    "a bound that is NaN": (nan_box(np.nan, 1), "a bound is NaN"),
    "a million numbers": (gym.Discrete(1_000_001), "they are 1,000,001 numbers; 1,000,000 at most are expected"),
}


@pytest.mark.parametrize("kind", REFUSED_OBSERVATIONS)
def test_observations_that_no_network_takes_are_refused_in_one_line(kind):
    space, words = REFUSED_OBSERVATIONS[kind]
    with pytest.raises(SettingError) as refused:
        made(space)
    line = str(refused.value)
    assert line.startswith("--env shows/Shows-v") and words in line and "\n" not in line


# Actions: a space, what a network gives, and what arrives at the environment for some of it


def some(*rows) -> np.ndarray:
    return np.array(rows)


WHOLE = box(np.array([0, -3]), np.array([10, 3]), (2,), np.int64)
HALF = gym.Box(np.float32([-1, -INF, 0]), np.float32([3, INF, INF]))
BYTES = box(0, 255, (2,), np.uint8)

ACTIONS = {
    "Discrete": (gym.Discrete(3), some(0, 2), [0, 2], 3),
    "Discrete from 5": (gym.Discrete(3, start=5), some(0, 2), [5, 7], 3),
    "MultiDiscrete": (gym.MultiDiscrete([2, 4]), some([0, 3], [1, 2]), [[0, 3], [1, 2]], 6),
    "MultiDiscrete from 1": (gym.MultiDiscrete([2, 4], start=[1, 10]), some([0, 3], [1, 2]), [[1, 13], [2, 12]], 6),
    "MultiDiscrete [2, 2]": (
        gym.MultiDiscrete([[2, 3], [4, 5]]),
        some([0, 1, 2, 3], [1, 2, 3, 4]),
        [[[0, 1], [2, 3]], [[1, 2], [3, 4]]],
        14,
    ),
    "MultiBinary": (gym.MultiBinary(3), some([0, 1, 0], [1, 1, 0]), [[0, 1, 0], [1, 1, 0]], 6),
    "Box -1..1": (box(-1, 1, (2,)), np.float32([[0.5, -0.25], [2, -2]]), [[0.5, -0.25], [1, -1]], 2),
    "Box 100..200": (box(100, 200, (1,)), np.float32([[0], [0.5]]), [[150], [175]], 1),
    "Box of shape [2, 2]": (
        box(-2, 2, (2, 2)),
        np.float32([[[0, 1], [-1, 5]]] * 2),
        [[[0, 2], [-2, 2]]] * 2,
        4,
    ),
    "Box, half of its bounds infinite": (HALF, np.float32([[0, 7, 7], [-1, -7, -7]]), [[1, 7, 7], [-1, -7, 0]], 3),
    "Box without bounds": (box(-INF, INF, (2,), np.float64), np.float32([[0, 9], [-9, 3]]), [[0, 9], [-9, 3]], 2),
    "Box of integers": (WHOLE, np.float32([[0.1, 0.1], [-5, 0.9]]), [[6, 0], [0, 3]], 2),
    "Box of bytes": (BYTES, np.float32([[-1, 1], [0, 0.5]]), [[0, 255], [128, 191]], 2),
    "Box of integers without bounds": (
        box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
        np.float32([[2.7], [-1e30]]),
        [[3], [-(2**53)]],
        1,
    ),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_what_arrives_at_the_environment_is_what_the_network_chose(kind):
    space, chosen, expected, outputs = ACTIONS[kind]
    environments = made(box(-1, 1, (4,)), space)
    environments.reset(np.array([1, 2]))
    environments.step(chosen)
    assert environments.spaces.outputs == outputs
    for i, wanted in enumerate(expected):
        (action,) = inside(environments, i).arrived
        assert np.array_equal(action, wanted), action
        assert np.asarray(action).dtype == space.dtype and np.shape(action) == space.shape
        assert "bounds" in kind or space.contains(action)


@pytest.mark.parametrize("kind", ["Box -1..1", "Box 100..200", "Box, half of its bounds infinite"])
def test_an_old_run_plays_as_before(kind):
    """Its numbers are what is played, clipped."""
    space, chosen, _, _ = ACTIONS[kind]
    environments = made(box(-1, 1, (4,)), space, raw=True)
    environments.reset(np.array([1, 2]))
    environments.step(chosen)
    for i, action in enumerate(chosen):
        assert np.array_equal(inside(environments, i).arrived[0], np.clip(action, space.low, space.high))
    assert set(environments.spaces.action_scale) == {1.0} and set(environments.spaces.action_offset) == {0.0}


def test_actions_are_spread_over_the_bounds_by_the_setting():
    """The standard deviation of what is played, at the start: a share of half of the range."""
    torch.manual_seed(0)
    environments = made(box(-1, 1, (4,)), gym.Box(np.float32([100, -1]), np.float32([200, 3])))
    for std in (1.0, 0.1):
        policy, _ = Network("mlp", environments.spaces, action_std=std)(torch.zeros(20_000, 4))
        torch.testing.assert_close(policy.base_dist.scale, torch.full((20_000, 2), std))
    played = environments._act(policy.sample().numpy())
    np.testing.assert_allclose(played.mean(0), [150, 1], rtol=0, atol=0.2)
    np.testing.assert_allclose(played.std(0), [5, 0.2], rtol=0.03)


REFUSED_ACTIONS = {
    "Tuple": gym.Tuple([gym.Discrete(2), gym.Discrete(3)]),
    "Dict": gym.Dict({"a": gym.Discrete(2)}),
    "Text": gym.Text(3),
    "a Box of size 0": box(0, 1, (0,)),
    "a bound that is NaN": nan_box(np.nan, 1),
}


@pytest.mark.parametrize("kind", REFUSED_ACTIONS)
def test_actions_that_no_network_gives_are_refused_in_one_line(kind):
    with pytest.raises(SettingError) as refused:
        made(box(-1, 1, (4,)), REFUSED_ACTIONS[kind])
    line = str(refused.value)
    assert line.startswith("--env shows/Shows-v") and "is expected" in line and "\n" not in line


@pytest.mark.parametrize("spaces, scale, offset", [("scaled", 50.0, 150.0), ("raw", 1.0, 0.0)])
def test_keywords_wrappers_and_the_choice_of_a_run_reach_each_environment(spaces, scale, offset):
    name = f"Told-{spaces}-v0"
    gymnasium.register(name, lambda width: Shows(pixels(40, width), box(100, 200, (1,))), disable_env_checker=True)
    config = Config(env=name, env_kwargs=("width=50",), wrappers=("FrameStackObservation:4",), spaces=spaces)
    environments = registry.make(config.env, 2, **config.env_options)
    bounds = {"low": (100.0,), "high": (200.0,), "action_scale": (scale,), "action_offset": (offset,)}
    assert environments.spaces == Spaces((4, 40, 50), True, None, (1,), **bounds)
    first = environments.reset(np.array([1, 2]))
    shown = [environment.unwrapped.shown[-1] for environment in environments.envs]
    assert np.array_equal(first, np.stack([[image] * 4 for image in shown]))
    environments.step(np.float32([[0.5], [0.5]]))
    assert environments.envs[1].unwrapped.arrived == [max(100, offset + 0.5 * scale)]


# Distributions over several choices


def test_several_choices_are_independent_categoricals():
    """Log-probability and entropy are sums over torch's own distributions."""
    torch.manual_seed(0)
    counts = (3, 2, 5)
    logits = torch.randn(4, 7, sum(counts), requires_grad=True)
    mine = Several.of(logits, counts)
    theirs = [torch.distributions.Categorical(logits=part) for part in logits.split(counts, -1)]
    actions = torch.stack([each.sample() for each in theirs], -1)
    log_prob = sum(each.log_prob(action) for each, action in zip(theirs, actions.unbind(-1)))
    torch.testing.assert_close(mine.log_prob(actions), log_prob)
    torch.testing.assert_close(mine.entropy(), sum(each.entropy() for each in theirs))
    assert torch.equal(mine.mode, torch.stack([part.argmax(-1) for part in logits.split(counts, -1)], -1))
    (mine.log_prob(actions) + mine.entropy()).sum().backward()
    got = logits.grad.clone()
    logits.grad = None
    (log_prob + sum(each.entropy() for each in theirs)).sum().backward()
    torch.testing.assert_close(got, logits.grad)


def test_where_everything_is_masked_no_action_that_is_none_is_drawn():
    """As in the last observation of an episode, whose policy nobody asks."""
    policy = Several.of(torch.full((1000, 5), NEVER), (3, 2))
    torch.testing.assert_close(policy.probs[0], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0]]))
    assert (policy.sample() <= torch.tensor([2, 1])).all() and torch.isfinite(policy.entropy()).all()


def test_several_choices_are_drawn_as_often_as_they_are_probable():
    torch.manual_seed(0)
    counts = (3, 2)
    logits = torch.randn(5)
    drawn = Several.of(logits.expand(40_000, 5), counts).sample()
    assert drawn.shape == (40_000, 2) and drawn.dtype == torch.int64
    for part, column, count in zip(logits.split(counts), drawn.unbind(-1), counts):
        found = torch.nn.functional.one_hot(column, count).float().mean(0)
        torch.testing.assert_close(found, part.softmax(-1), rtol=0, atol=0.01)
    joined = Several.joined([Several.of(logits[None].expand(2, 5), counts)] * 3, (3, 2))
    assert joined.logits.shape == (3, 2, 2, 3) and isinstance(joined, Several)


# Every kind of observation with every kind of action: which network, which policy, and that it learns from a rollout

ROWS = {
    "image of bytes, 36 pixels a side or more": (pixels(40, 50, 3), "gala"),
    "smaller image of bytes or truth values": (pixels(5, 6), "small"),
    "image of other numbers": (box(0, 1, (8, 9, 3)), "small"),
    "stack of images": (pixels(4, 40, 50, 3), "gala"),
    "vector, table or number (Box)": (box(-1, 1, (5, 6)), "mlp"),
    "Discrete": (gym.Discrete(5), "mlp"),
    "MultiDiscrete": (gym.MultiDiscrete([2, 3]), "mlp"),
    "MultiBinary": (gym.MultiBinary(3), "mlp"),
    "Tuple or Dict of these": (NESTED, "mlp"),
    "Dict with an image of 36 pixels a side or more": (SCREEN, "gala"),
    "Dict with a smaller image": (GRID, "small"),
}
COLUMNS = {
    "Discrete": (gym.Discrete(3, start=1), "one of n", Discrete),
    "MultiDiscrete": (gym.MultiDiscrete([2, 4]), "one of n each", Several),
    "MultiBinary": (gym.MultiBinary(3), "one of 2 each", Several),
    "Box of floats": (box(-2, 2, (2,)), "Gaussian", Gaussian),
    "Box of integers": (box(0, 9, (2,), np.int64), "Gaussian, rounded", Gaussian),
}


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, row by row, the names of its columns first."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def test_the_page_has_these_rows_and_columns():
    first, *rows = table("Observations × actions")
    assert first[1:] == list(COLUMNS) and [row[0] for row in rows] == list(ROWS)
    for name, *cells in rows:
        assert cells == [f"`{ROWS[name][1]}`, {how}" for _, how, _ in COLUMNS.values()]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
def test_each_cell_plays_and_learns(row, column):
    (observation, network), (action, _, policy) = ROWS[row], COLUMNS[column]
    torch.manual_seed(0)
    environments = made(observation, action)
    assert networks.default(environments.spaces.picture) == network
    learner = A2C(Network(network, environments.spaces).to(memory_format=torch.channels_last), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1, 2]), 5, 0.9, False, lambda: None, Clock())
    before = learner.flat.data.clone()
    for _ in range(2):
        batch, _ = collector.collect()
        assert isinstance(batch.behaviour, policy) and collector.fault is None
        now, values = batch.evaluate()
        torch.testing.assert_close(now.log_prob(batch.actions).detach(), batch.log_probs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values.detach(), batch.values, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(learner.gradient(batch)).all()
        assert learner.step(0.0).taken
    assert not torch.equal(before, learner.flat.data)
    for arrived in inside(environments).arrived:
        assert inside(environments).action_space.contains(arrived)


# An image among other observations: packed into one vector, the image first

EYE_PARTS = ("left", "right", "flags", "map", "speed")  # gymnasium sorts the keys of a Dict


def seen_by_eyes(x) -> np.ndarray:
    """Images of 8 × 9 pixels are one of three channels; others are numbers, bytes divided by their bounds."""
    image = [x["left"][None] / 255, (planes(2, 0, 1)(x["right"]) + 1) / 2]
    return np.concatenate([*map(np.ravel, image), x["flags"].ravel(), x["map"].ravel(), x["speed"]]).astype(np.float32)


def seen_on_the_grid(x) -> np.ndarray:
    return np.concatenate([planes(2, 0, 1)(x["image"]).ravel() / np.float32(10), np.eye(4)[x["direction"]]])


def seen_on_screen(x) -> np.ndarray:
    return np.concatenate([planes(2, 0, 1)(x["screen"]).ravel() / np.float32(255), x["speed"]])


PACKED = {
    "screen": (SCREEN, (3, 40, 50), 2, seen_on_screen),
    "grid": (GRID, (3, 7, 7), 4, seen_on_the_grid),
    "eyes": (EYES, (3, 8, 9), 24 + 1 + 4, seen_by_eyes),
    "Tuple": (gym.Tuple([gym.Discrete(2), pixels(5, 6)]), (1, 5, 6), 2, lambda x: [*x[1].ravel() / 255, *np.eye(2)[x[0]]]),
}


@pytest.mark.parametrize("kind", PACKED)
def test_an_image_among_others_is_packed_with_them(kind):
    space, image, numbers, expected = PACKED[kind]
    environments = made(space)
    seen = [environments.reset(np.array([3, 4])), *(environments.step(np.array([0, 1])) for _ in range(3))]
    spaces, size = environments.spaces, math.prod(image) + numbers
    assert (spaces.observation_shape, spaces.image_shape, spaces.image) == ((size,), image, False)
    assert spaces.observation_dtype == np.float32 and spaces.scale == 1 and not spaces.masked
    assert sum(part.size for part in spaces.parts) == size
    for i in range(2):
        shown = [np.asarray(expected(each), np.float32) for each in inside(environments, i).shown]
        np.testing.assert_allclose(seen[0][i], shown[0], rtol=3e-7, atol=3e-7)
        np.testing.assert_allclose(seen[3].final_observations[i], shown[3], rtol=3e-7, atol=3e-7)
        np.testing.assert_allclose(seen[3].observations[i], shown[4], rtol=3e-7, atol=3e-7)
    if kind == "eyes":
        assert tuple(part.name for part in spaces.parts) == tuple(f"observation[{name}]" for name in EYE_PARTS)


@pytest.mark.parametrize("name, kind", [("gala", "screen"), ("nature", "screen"), ("small", "grid"), ("small", "eyes")])
def test_convolutions_see_the_image_and_a_layer_sees_all(name, kind):
    """By the network of the image alone, and the layer written down."""
    torch.manual_seed(0)
    space, image, numbers, _ = PACKED[kind]
    environments = made(space)
    network = Network(name, environments.spaces)
    rows = torch.from_numpy(environments.reset(np.array([3, 4])))
    features = network.encoder.image(rows[:, : math.prod(image)].reshape(2, *image))
    joint = network.encoder.joint
    assert joint.weight.shape == (128, features.shape[1] + numbers)
    together = torch.nn.functional.linear(torch.cat([features, rows[:, -numbers:]], 1), joint.weight, joint.bias).relu()
    policy, values = network(rows)
    expected, expected_values = network.heads(together)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(policy.logits, expected.logits)
    assert not fits(network, A2C(network, A2CSettings(), 1e-3))
    alone = Network(name, Spaces(image, True, 2))
    shapes = [parameter.shape for parameter in alone.encoder.parameters()]
    assert [parameter.shape for parameter in network.encoder.image.parameters()] == shapes


def test_an_mlp_sees_all_numbers_as_one_vector():
    environments = made(EYES)
    network = Network("mlp", environments.spaces)
    assert network.encoder[0].weight.shape == (64, 3 * 8 * 9 + 29) and fits(network, A2C(network, A2CSettings(), 1e-3))


# Masks: which actions may be taken


class Masks(Shows):
    """Allows an action more at each step, from the last one on; says so in its observation or its info.

    Args:
        where: "observation" or "info".
        counts: of the actions of each choice.
        nothing: at which step nothing is allowed.
    """

    def __init__(self, space, action_space, where, counts, nothing=-1):
        super().__init__(space, action_space)
        self.inner, self.where, self.counts, self.nothing = self.observation_space, where, counts, nothing
        self.taken: list[bool] = []
        if where == "observation":
            mask = gym.MultiBinary(sum(counts))
            self.observation_space = gym.Dict({"action_mask": mask, "observation": self.inner})

    def mask(self) -> np.ndarray:
        allowed = [np.arange(count) >= count - 1 - self.t for count in self.counts]
        return np.concatenate(allowed).astype(np.int8) * (self.t != self.nothing)

    def _with_mask(self, observation):
        if self.where == "info":
            return observation, {"action_mask": self.mask()}
        return {"action_mask": self.mask(), "observation": observation}, {}

    def _show(self):
        sample = self.inner.sample()
        self.shown.append(copy.deepcopy(sample))
        return sample

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.inner.seed(seed)
        observation, _ = super().reset()
        return self._with_mask(observation)

    def step(self, action):
        parts = np.split(self.mask(), np.cumsum(self.counts)[:-1])
        chosen = np.ravel(action) - np.ravel(getattr(self.action_space, "start", 0))
        self.taken.append(all(part[one] for part, one in zip(parts, chosen, strict=True)))
        observation, *rest, _ = super().step(action)
        observation, info = self._with_mask(observation)
        return observation, *rest, info


MASKED = {
    "vector": (box(-1, 1, (4,)), gym.Discrete(5), (5,), "mlp"),
    "from 3": (gym.Discrete(6), gym.Discrete(4, start=3), (4,), "mlp"),
    "image": (pixels(40, 50, 3), gym.Discrete(5), (5,), "gala"),
    "small image": (pixels(5, 6), gym.Discrete(5), (5,), "small"),
    "image and numbers": (GRID, gym.Discrete(7), (7,), "small"),
    "choices": (box(-1, 1, (4,)), gym.MultiDiscrete([3, 5, 2]), (3, 5, 2), "mlp"),
    "switches": (box(-1, 1, (4,)), gym.MultiBinary(3), (2, 2, 2), "mlp"),
}
masked = pytest.mark.parametrize("kind", MASKED)
placed = pytest.mark.parametrize("where", ["observation", "info"])


def made_masked(kind: str, where: str, **options) -> GymEnvironments:
    space, action, counts, _ = MASKED[kind]
    return made(space, action, kind=Masks, where=where, counts=counts, **options)


@masked
@placed
def test_a_masked_action_is_never_taken_and_all_stays_finite(kind, where):
    torch.manual_seed(0)
    environments = made_masked(kind, where)
    *_, counts, name = MASKED[kind]
    spaces = environments.spaces
    assert spaces.masked and networks.default(spaces.picture) == name
    network = Network(name, spaces).to(memory_format=torch.channels_last)
    network.policy.bias.data = torch.linspace(30, -30, sum(counts))  # the first, masked longest, would be taken always
    learner = A2C(network, A2CSettings(), 1e-3)
    assert not fits(network, learner)
    collector = Collector(learner, [environments], np.array([1, 2]), 12, 0.9, False, lambda: None, Clock())
    for _ in range(3):
        batch, _ = collector.collect()
        now, values = batch.evaluate()
        for numbers in (now.log_prob(batch.actions), now.entropy(), values, batch.log_probs, batch.behaviour.entropy()):
            assert torch.isfinite(numbers).all()
        torch.testing.assert_close(now.log_prob(batch.actions).detach(), batch.log_probs, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(learner.gradient(batch)).all() and torch.isfinite(learner.flat.grad).all()
        assert learner.step(0.0).taken
    for i in range(2):
        assert all(inside(environments, i).taken) and len(inside(environments, i).taken) == 36
    with torch.no_grad():
        policy, _ = network(torch.from_numpy(environments.reset(np.array([3, 4]))))
    for count, logits in zip(counts, policy.logits[0].reshape(len(counts), -1)):
        probabilities = logits.softmax(-1)
        assert probabilities.argmax() == count - 1 and probabilities[count - 1] == 1  # the last of each choice alone is allowed
    assert policy.entropy().tolist() == [0, 0]


@masked
@placed
def test_masks_lie_behind_the_observation(kind, where):
    space, action, counts, _ = MASKED[kind]
    environments, plain = made_masked(kind, where), made(space, action)
    first, without = environments.reset(np.array([3, 4])), plain.reset(np.array([3, 4]))
    expected = without.reshape(2, -1) * (np.float32(plain.spaces.scale) if plain.spaces.image else 1)
    np.testing.assert_allclose(first[:, : -sum(counts)], expected, rtol=3e-7)
    only_the_last = np.concatenate([np.arange(count) == count - 1 for count in counts])
    assert np.array_equal(first[:, -sum(counts) :], [only_the_last] * 2)
    assert environments.spaces.picture == plain.spaces.picture
    assert Network("mlp", environments.spaces).description()["observations"]["mask"] == sum(counts)
    environments.rehearse()
    assert inside(environments).taken == [True]


@placed
def test_log_probabilities_and_entropies_under_a_mask_are_those_of_the_allowed_actions(where):
    torch.manual_seed(0)
    environments = made_masked("vector", where)
    environments.reset(np.array([1, 2]))
    rows = torch.from_numpy(environments.step(np.array([4, 4])).observations)  # allowed: the last two
    network = Network("mlp", environments.spaces)
    network.policy.weight.data.mul_(100)
    policy, _ = network(rows)
    allowed = torch.distributions.Categorical(logits=network.policy(network.encoder(rows[:, :4]))[:, 3:])
    for action in (3, 4):
        chosen = torch.tensor([action, action])
        torch.testing.assert_close(policy.log_prob(chosen), allowed.log_prob(chosen - 3))
    torch.testing.assert_close(policy.entropy(), allowed.entropy())
    torch.testing.assert_close(policy.probs[:, 3:], allowed.probs)
    assert not policy.probs[:, :3].any()
    policy.entropy().sum().backward()
    assert not network.policy.bias.grad[:3].any() and network.policy.bias.grad[3:].any()


@placed
def test_an_action_that_is_masked_is_not_drawn_from_a_noise_of_zero(where, monkeypatch):
    """−log 0 is infinite: it must not make up for the mask."""
    environments = made_masked("vector", where)
    network = Network("mlp", environments.spaces)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda noise, **_: noise.zero_())
    policy, _ = network(torch.from_numpy(environments.reset(np.array([1, 2]))))
    assert policy.sample().tolist() == [4, 4]


@placed
@pytest.mark.parametrize("kind", ["vector", "choices"])
def test_a_mask_that_allows_nothing_is_named(kind, where):
    environments = made_masked(kind, where, nothing=2)
    environments.reset(np.array([1, 2]))
    last = np.array([count - 1 for count in MASKED[kind][2]])
    actions = np.tile(last, (2, 1)) if kind == "choices" else np.repeat(last, 2)
    environments.step(actions)
    with pytest.raises(JobError) as error:
        environments.step(actions)
    said = f"--env {environments.name}: environment 0 returned at its step 2 a mask that allows no action"
    assert str(error.value).startswith(said)


@placed
def test_at_the_end_of_an_episode_a_mask_may_allow_nothing(where):
    environments = made_masked("vector", where, nothing=3)
    environments.reset(np.array([1, 2]))
    steps = [environments.step(np.array([4, 4])) for _ in range(6)]
    assert steps[2].truncated.all() and steps[5].terminated.all()
    with torch.no_grad():
        _, values = Network("mlp", environments.spaces)(torch.from_numpy(steps[2].final_observations))
    assert torch.isfinite(values).all()


def test_a_mask_of_another_size_is_refused():
    space = gym.Dict({"observation": box(-1, 1, (4,)), "action_mask": box(0, 1, (3,), np.int8)})
    with pytest.raises(SettingError, match=r"an action_mask of 2 numbers, one for each action, is expected"):
        made(space)
    assert made(space, box(-1, 1, (2,))).spaces.observation_shape == (7,)  # no discrete action: a part like others


def test_an_old_run_sees_no_masks_of_infos():
    environments = made(box(-1, 1, (4,)), kind=Masks, where="info", counts=(2,), raw=True)
    assert environments.spaces.observation_shape == (4,) and not environments.spaces.masked


def test_taxi_has_a_mask_at_every_step():
    """gymnasium's own, against its infos."""
    environments, alone = GymEnvironments("Taxi-v4", 1), gymnasium.make("Taxi-v4")
    assert environments.spaces.observation_shape == (500 + 6,) and environments.spaces.masked
    rows, (state, info) = environments.reset(np.array([3])), alone.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert np.array_equal(rows[0], [*np.eye(500)[state], *info["action_mask"]])
        action = environments.spaces.random_actions(rng, rows)
        rows = environments.step(action).observations
        state, _, terminated, truncated, info = alone.step(action[0])
        if terminated or truncated:
            state, info = alone.reset()


@pytest.mark.parametrize("observation", [pixels(40, 50, 3), pixels(5, 6), box(0, 1, (8, 9, 3))])
def test_images_are_flattened_for_an_mlp(observation):
    torch.manual_seed(0)
    environments = made(observation)
    network = Network("mlp", environments.spaces)
    assert not fits(network, A2C(network, A2CSettings(), 1e-3))
    images = environments.reset(np.array([1, 2]))
    weight, bias = network.encoder[1].weight, network.encoder[1].bias
    rows = torch.from_numpy(images.transpose(0, 2, 3, 1).reshape(2, -1).astype(np.float32)) * network.scale
    assert rows.min() >= 0 and rows.max() <= 1
    first = torch.nn.functional.linear(rows, weight, bias).tanh()
    _, values = network(torch.from_numpy(images))
    torch.testing.assert_close(values, network.heads(network.encoder[3:](first))[1])


def test_small_is_the_network_of_minatar():
    """Young & Tian 2019: a convolution of 16 channels, 3×3, stride 1; 128 units."""
    network = Network("small", Spaces((4, 10, 10), True, 6, scale=1.0))
    shapes = [tuple(parameter.shape) for name, parameter in network.encoder.named_parameters() if name.endswith("weight")]
    assert shapes == [(16, 4, 3, 3), (128, 16 * 8 * 8)]
    assert fits(network, A2C(network, A2CSettings(), 1e-3))


# What environments do wrong, or oddly


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


def test_the_largest_reward_that_is_learnt_from_does_not_overflow():
    environments = made(NUMBERS, num_envs=1, kind=Rewards, rewards=[0.99 * LARGEST_REWARD] * 10)
    torch.manual_seed(0)
    learner = A2C(Network("mlp", environments.spaces), A2CSettings(), 1e-3)
    collector = Collector(learner, [environments], np.array([1]), 5, 0.99, False, lambda: None, Clock())
    batch, _ = collector.collect()
    before = learner.flat.data.clone()
    assert collector.fault is None and torch.isfinite(learner.gradient(batch)).all()
    assert learner.step(0.0).taken and not torch.equal(before, learner.flat.data)


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


@pytest.mark.parametrize("kind", ["shape", "more", "scalar", "value", "key", "part"])
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
    with pytest.raises(SettingError, match="a wrapper that turns text into numbers is expected"):
        Observations("Grid-v0", Mission())
