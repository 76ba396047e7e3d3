"""DiaryPole-v0 is CartPole with large numbers in its observations, which writes down what it shows and what it pays.

Each environment appends to a file of its own in `folder`, a row of float64 for each step: the observation that was acted on,
the reward, and whether the pole fell.
"""

import os
import uuid
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from mpi4py import MPI


class DiaryPole(gymnasium.Env):
    def __init__(self, folder):
        self.pole = CartPoleEnv()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = self.pole.action_space
        rank = MPI.COMM_WORLD.rank if MPI.Is_initialized() else 0
        name = f"{rank}-{os.getpid()}-{uuid.uuid4().hex}.rows"
        self.diary = open(Path(folder) / name, "ab", buffering=0)

    def _show(self, observation):
        self.shown = observation * np.float32([1, 1, 30, 0.1]) + np.float32([100, 0, -3, 0])
        return self.shown

    def reset(self, *, seed=None, options=None):
        observation, info = self.pole.reset(seed=seed)
        return self._show(observation), info

    def step(self, action):
        observation, _, over, _, info = self.pole.step(action)
        reward = float(3 + 50 * observation[2])
        self.diary.write(np.array([*self.shown, reward, over], np.float64).tobytes())
        return self._show(observation), reward, over, False, info


gymnasium.register("DiaryPole-v0", DiaryPole, max_episode_steps=40)


def diaries(folder: Path, rank: int) -> np.ndarray:
    """What the environments of a rank wrote down, [steps, N, 6], without the one that was only tried out, for a step."""
    rows = [np.fromfile(path).reshape(-1, 6) for path in folder.glob(f"{rank}-*.rows")]
    return np.stack([each for each in rows if len(each) > 1], axis=1)
