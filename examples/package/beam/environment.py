"""The environment: keep a ball on a beam, which is tilted to the left or to the right."""

import math
from typing import Any

import gymnasium
import numpy as np

SECONDS = 0.05  # of a step
TILT = 0.02  # rad a step
STEEPEST = 0.4  # rad


class Beam(gymnasium.Env[np.ndarray, int]):
    """A ball rolls on a beam from -1 to 1, by its tilt and some wind. The reward is 1 for each step until it falls off.

    Observations are its place, its speed and the tilt. Actions tilt the beam to the left, not at all, and to the right.

    Args:
        gravity: m/s².
        wind: the standard deviation of a push at each step, m/s.
    """

    def __init__(self, gravity: float = 9.8, wind: float = 0.02):
        self.gravity, self.wind = gravity, wind
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.place = self.speed = self.tilt = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.uniform(-0.3, 0.3, 2).tolist()
        self.tilt = 0.0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.tilt = min(max(self.tilt + TILT * (int(action) - 1), -STEEPEST), STEEPEST)
        self.speed += SECONDS * 5 / 7 * self.gravity * math.sin(self.tilt)  # a ball that rolls
        self.speed += self.wind * float(self.np_random.normal())
        self.place += SECONDS * self.speed
        return self._observation(), 1.0, abs(self.place) > 1, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.speed, 5 * self.tilt], np.float32)
