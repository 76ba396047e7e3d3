"""Environments that can also return their screen, for videos."""

from __future__ import annotations

import numpy as np

from gala_mpi.envs.atari import FRAMES_PER_STEP, AtariEnvironments
from gala_mpi.envs.base import Step
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.registry import resolve
from gala_mpi.errors import SettingError


def make_filmed(env: str, sticky: float = 0.0) -> FilmedAtari | FilmedGym:
    """Make one environment of `env` that can also return its screen.

    Raises:
        SettingError: there is no such environment, or it cannot be rendered.
    """
    kind, name = resolve(env)
    return FilmedAtari(name, sticky) if kind == "atari" else FilmedGym(name)


class FilmedAtari(AtariEnvironments):
    """One Atari game with its colour screen, taken from a second emulator with the same seed and the same actions."""

    frames_per_second = 60 / FRAMES_PER_STEP

    def __init__(self, game: str, sticky: float = 0.0):
        super().__init__(game, 1, sticky=sticky)
        self._twin = AtariEnvironments(game, 1, sticky=sticky, grayscale=False, stack_num=1, img_height=210, img_width=160)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        self._screen = self._twin.reset(seeds)
        return super().reset(seeds)

    def step(self, actions: np.ndarray) -> Step:
        self._screen = self._twin.step(actions).observations
        return super().step(actions)

    def screen(self) -> np.ndarray:
        """Return the screen, uint8 [420, 640, 3]: the console's pixels are twice as wide as high."""
        return self._screen[0, 0].repeat(2, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        self._twin.close()
        super().close()


class FilmedGym(GymEnvironments):
    """One gymnasium environment with its rendered screen."""

    def __init__(self, name: str):
        try:
            super().__init__(name, 1, render_mode="rgb_array")
            self._envs.envs[0].reset(seed=0)
            self.screen()
        except Exception as error:  # for example, the renderer is not installed
            raise SettingError(f"--video: {name} cannot be filmed ({error})") from None
        self.frames_per_second = self._envs.envs[0].metadata.get("render_fps", 30)

    def screen(self) -> np.ndarray:
        """Return the screen, uint8 [height, width, 3]."""
        return self._envs.envs[0].render()
