"""Environments that show samples of any space, and keep what came and went: for test_spaces.py and those beside it."""

from __future__ import annotations

import copy
import functools

import gymnasium
import numpy as np
from gymnasium import spaces as gym
from gymnasium.spaces.utils import flatten

from gala_mpi.envs.gym import GymEnvironments

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


def box(low, high, shape, dtype=np.float32) -> gym.Box:
    return gym.Box(low, high, shape, dtype)


def pixels(*shape: int) -> gym.Box:
    return box(0, 255, shape, np.uint8)


def planes(*axes: int):
    """Turn the axes of an image."""
    return lambda image: np.transpose(image, axes)


def flat(space):
    return lambda observation: np.asarray(flatten(space, observation), np.float32)


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
