"""Environments of gymnasium, in this process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gala_mpi.envs.base import Environments, Scores, Spaces, Step
from gala_mpi.errors import SettingError


class GymEnvironments(Environments):
    """Environments of any gymnasium id. Images are uint8 boxes of rank 3, channels first or last; other boxes are flattened.

    Args:
        name: the gymnasium id.
        num_envs: N.
        options: for `gymnasium.make_vec`, for example `render_mode`.

    Raises:
        SettingError: the observations are not a Box, or the actions neither Discrete nor a Box.
    """

    def __init__(self, name: str, num_envs: int, **options: Any):
        import gymnasium
        from gymnasium.spaces import Box, Discrete
        from gymnasium.vector import AutoresetMode

        self._envs: Any = gymnasium.make_vec(
            name, num_envs, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, **options
        )
        self.num_envs = num_envs
        observation, action = self._envs.single_observation_space, self._envs.single_action_space
        if not isinstance(observation, Box):
            raise SettingError(f"--env {name}: observations are {observation}; a Box is expected")
        image = observation.dtype == np.uint8 and len(observation.shape) == 3
        self._channels_last = image and observation.shape[-1] < observation.shape[0]
        shape = observation.shape if image else (math.prod(observation.shape),)
        if self._channels_last:
            shape = shape[-1:] + shape[:-1]
        if isinstance(action, Discrete):
            self.spaces = Spaces(shape, image, int(action.n))
            self._first_action = int(action.start)
        elif isinstance(action, Box):
            self._low, self._high = action.low, action.high
            bounds = (tuple(bound.ravel().tolist()) for bound in (action.low, action.high))
            self.spaces = Spaces(shape, image, None, action.shape, *bounds)
        else:
            raise SettingError(f"--env {name}: actions are {action}; Discrete or Box is expected")

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, _ = self._envs.reset(seed=[int(seed) for seed in seeds])
        self._scores = Scores(self.num_envs)
        return self._arrange(observations)

    def send(self, actions: np.ndarray) -> None:
        self._actions = actions + self._first_action if self.spaces.discrete else np.clip(actions, self._low, self._high)

    def receive(self) -> Step:
        observations, rewards, terminated, truncated, info = self._envs.step(self._actions)
        truncated = truncated & ~terminated
        rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, terminated | truncated)
        observations = self._arrange(observations)
        final = None
        if truncated.any():
            final = np.zeros_like(observations)
            for i in np.flatnonzero(truncated):
                final[i] = self._arrange(info["final_obs"][i][None])[0]
        return Step(observations, rewards, terminated, truncated, final, episodes)

    def _arrange(self, observations: np.ndarray) -> np.ndarray:
        """Return a copy of the observations in the shape and dtype of `spaces`: [N, *observation_shape]."""
        if self._channels_last:
            observations = np.moveaxis(observations, -1, 1)
        rows = observations.reshape(-1, *self.spaces.observation_shape)
        return rows.astype(self.spaces.observation_dtype, copy=True)

    def close(self) -> None:
        self._envs.close()
