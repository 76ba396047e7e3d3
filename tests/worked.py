"""Environments for worker processes, which find them as worked:ID. Registered when imported."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces as gym
from gymnasium.envs.classic_control import CartPoleEnv


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_beside_a_child():
    """The child keeps what is open, the worker's end of its pipe too."""
    subprocess.Popen(["sleep", "30"], close_fds=False)
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def break_down():
    raise RuntimeError("the pole has broken")


WAYS = {
    "raise": break_down,
    "exit": lambda: sys.exit(3),
    "crash": crash,
    "crash beside a child": crash_beside_a_child,
    "sleep": lambda: time.sleep(1000),
    "wrong": lambda: None,
}


class Worked(CartPoleEnv):
    """CartPole in which something happens at a step (0: as it is made); of several those whose seed is odd."""

    def __init__(self, how="", at=1):
        super().__init__()
        self.how, self.at, self.steps, self.odd = how, at, 0, False
        if how and at == 0:
            WAYS[how]()

    def reset(self, *, seed=None, options=None):
        self.odd = seed % 2 == 1 if seed is not None else self.odd
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        result = super().step(action)
        if self.odd and self.steps == self.at:
            WAYS[self.how]()
            if self.how == "wrong":
                return (np.zeros(5, np.float32), *result[1:])
        return result


class Nested(gymnasium.Env):
    """A Dict with an image, numbers, a choice and a mask; lost after 7 steps, or cut off after as many as the seed says."""

    def __init__(self):
        self.action_space = gym.Discrete(3)
        self.observation_space = gym.Dict(
            {
                "image": gym.Box(0, 255, (5, 4, 3), np.uint8),
                "numbers": gym.Box(-9, 9, (2,)),
                "choice": gym.Discrete(4),
                "action_mask": gym.MultiBinary(3),
            }
        )

    def _observe(self):
        mask = np.zeros(3, np.int8)
        mask[self.np_random.integers(3)] = 1
        image = self.np_random.integers(0, 256, (5, 4, 3), np.uint8)
        choice = self.np_random.integers(4)
        return {"image": image, "numbers": np.float32(self.np_random.random(2)), "choice": choice, "action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.limit = 0, int(self.np_random.integers(2, 9))
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action) + self.np_random.random(), self.steps == 7, self.steps == self.limit, {}


class Drawing(CartPoleEnv):
    """CartPole that is seen through noise of the global streams, and has drawn as it was made."""

    def __init__(self):
        super().__init__()
        self.scale = np.random.rand()

    def step(self, action):
        observation, *rest = super().step(action)
        return observation + np.float32(self.scale * (np.random.rand() + random.random())), *rest


class Gated(CartPoleEnv):
    """CartPole that says in a folder that it takes a step, and takes it once there is a `go`."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)

    def step(self, action):
        (self.folder / str(os.getpid())).touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return super().step(action)


class Telling(CartPoleEnv):
    """CartPole whose rewards tell of its process: which one it is, and whether it has torch (+0.5)."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        foreign = any(name in sys.modules for name in ("torch", "mpi4py", "h5py"))
        return observation, os.getpid() + 0.5 * foreign, *rest


for made in (Worked, Nested, Drawing, Gated, Telling):
    gymnasium.register(f"{made.__name__}-v0", made, max_episode_steps=500, disable_env_checker=True)
