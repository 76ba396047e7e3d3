"""Environments that can also return their screen, for videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gala_mpi.envs.atari import AtariEnvironments
from gala_mpi.envs.base import Step
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.modules import in_a_line
from gala_mpi.envs.registry import gymnasium_options, resolve
from gala_mpi.envs.settings import AS_NAMED, PAPER, AtariSettings
from gala_mpi.errors import SettingError


def make_filmed(
    env: str, *, atari: AtariSettings = AS_NAMED, kwargs: Sequence[str] = (), wrappers: Sequence[str] = (), raw: bool = False
) -> FilmedAtari | FilmedGym:
    """Make one environment of `env` that can also return its screen.

    Args:
        atari, kwargs, wrappers, raw: as for `registry.make`.

    Raises:
        SettingError: there is no such environment, or it cannot be rendered.
    """
    found = resolve(env)
    if found.kind == "atari":
        return FilmedAtari(found.name, atari.over(found.says))
    if found.kind == "envpool":  # where it cannot, as without a screen MuJoCo, it ends the whole process
        raise SettingError(f"--env {env}: it cannot be filmed; a run of an environment of gymnasium or of Atari is expected")
    return FilmedGym(found.name, raw=raw, **gymnasium_options(env, kwargs, wrappers))


class FilmedAtari(AtariEnvironments):
    """One Atari game with its colour screen, taken from a second emulator with the same seed and the same actions."""

    def __init__(self, game: str, settings: AtariSettings = PAPER):
        super().__init__(game, 1, settings=settings)
        screen = {"grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}
        self._twin = AtariEnvironments(game, 1, settings=settings, **screen)
        self.frames_per_second = 60 / self.frame_skip

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

    def __init__(self, name: str, *, kwargs: Mapping[str, Any], **options: Any):
        try:
            super().__init__(name, 1, kwargs={**kwargs, "render_mode": "rgb_array"}, **options)
            self.envs[0].reset(seed=0)
            screen = self.screen()
            if not isinstance(screen, np.ndarray) or screen.ndim != 3 or screen.dtype != np.uint8:
                kind = f"{screen.dtype} {screen.shape}" if isinstance(screen, np.ndarray) else type(screen).__name__
                raise TypeError(f"it renders {kind}; uint8 [height, width, 3] is expected")
        except NotImplementedError:  # by an environment without render()
            raise SettingError(
                f"--env {name}: it cannot be filmed; a render() for rgb_array, which its metadata lists, is expected"
            ) from None
        except (Exception, SystemExit) as error:  # for example, the renderer is not installed
            raise SettingError(f"--env {name}: it cannot be filmed ({in_a_line(error)})") from None
        self.frames_per_second = self.envs[0].metadata.get("render_fps", 30)

    def screen(self) -> np.ndarray:
        """Return the screen, uint8 [height, width, 3]."""
        return self.envs[0].render()
