"""One environment by gymnasium's interface, with the observations, rewards and actions of training."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gym

from gala_mpi.envs.base import Environments, Spaces
from gala_mpi.errors import SettingError


class SingleEnvironment(gymnasium.Env):
    """One environment, which ends episodes where scores do: a lost life does not end an episode of an Atari game.

    Observations and actions are those that the network sees and gives. Rewards are never clipped. The info of a step has
    `return_over`: whether the return that is learnt from ends here, and so what a memory holds (`Policy.reset`): with the
    episode, or a lost life (--atari.life-loss). With the last step of an episode it has `episode`: its score `r` and its
    length `l`. Of an episode that terminates the last observation is not kept, as in training: a first one of the next comes
    in its place.

    Args:
        environments: one.
        render_mode: "rgb_array": they can return their screen (`envs.film`).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, environments: Environments, render_mode: str | None = None):
        self._environments: Any = environments
        self.render_mode = render_mode
        self.observation_space, self.action_space = _observations(environments.spaces), _actions(environments.spaces)
        self._begun: np.ndarray | None = None  # the first observation of an episode that has begun by itself

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: by a seed, the same one each time; without one, another one each time."""
        super().reset(seed=seed)
        if seed is None and self._begun is not None:
            observation, self._begun = self._begun, None
            return observation, {}
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        self._begun = None
        return self._environments.reset(np.array([chosen]))[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action, as `Policy.act` gives it.

        Raises:
            SettingError: it is none of the action space's shape.
        """
        spaces: Spaces = self._environments.spaces
        actions = np.asarray(action, np.int64 if spaces.discrete else np.float32)[None]
        if actions.shape != (1, *spaces.action_shape):
            raise SettingError(f"action of shape {list(actions.shape[1:])}: {list(spaces.action_shape)} is expected")
        step = self._environments.step(actions)
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        info: dict[str, Any] = {"return_over": terminated or truncated}
        observation = step.observations[0]
        if step.episodes:
            self._begun = observation
            info["episode"] = {"r": step.episodes[0].score, "l": step.episodes[0].length}
            if truncated:
                observation = step.final_observations[0]
        over = bool(step.episodes)
        return observation, float(step.rewards[0]), over and not truncated, over and truncated, info

    def render(self) -> np.ndarray | None:
        """Return the screen, uint8 [height, width, 3]; None without a `render_mode`."""
        return self._environments.screen() if self.render_mode else None

    def close(self) -> None:
        self._environments.close()


def _observations(spaces: Spaces) -> gym.Box:
    low, high = (0, 255) if spaces.observation_dtype == np.uint8 else (-np.inf, np.inf)
    return gym.Box(low, high, spaces.observation_shape, spaces.observation_dtype.type)


def _actions(spaces: Spaces) -> gym.Space[Any]:
    if spaces.actions is not None:
        return gym.Discrete(spaces.actions)
    if spaces.choices:
        return gym.MultiDiscrete(list(spaces.choices))
    return gym.Box(-np.inf, np.inf, spaces.action_shape, np.float32)
