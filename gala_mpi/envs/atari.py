"""Atari games in ale-py's own vector environment.

They are preprocessed as in the GALA authors' code (Mnih et al. 2015): up to 30 no-ops, FIRE after a reset of the game, frame
skip 4 with the maximum of the last two frames, 84×84 grey, 4 frames stacked. A lost life ends the return, not the episode: the
next life continues where the last one ended, without another FIRE.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gala_mpi.envs.base import Environments, Scores, Spaces, Step

FRAMES_PER_STEP = 4
NO_OPS = 30


class AtariEnvironments(Environments):
    """Atari games in ale-py's vector environment (C++ threads)."""

    def __init__(self, game: str, num_envs: int, threads: int = 1, sticky: float = 0.0, **view: Any):
        """Make `num_envs` environments of one game.

        Args:
            game: ale-py's name of the game, in snake_case.
            num_envs: N.
            threads: how many emulators run at the same time.
            sticky: probability that an emulator repeats the last action, per frame (Machado et al. 2018).
            view: options of AtariVectorEnv for how the screen is shown (`img_height`, `grayscale`, ...).
        """
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        self._envs: Any = AtariVectorEnv(
            game,
            num_envs,
            num_threads=min(threads, num_envs),
            repeat_action_probability=sticky,
            autoreset_mode=AutoresetMode.SAME_STEP,
            noop_max=NO_OPS,
            frameskip=FRAMES_PER_STEP,
            use_fire_reset=True,
            reward_clipping=False,
            # Not episodic_life: it resets the whole game at every lost life.
            life_loss_info=True,
            **view,
        )
        self.num_envs = num_envs
        self.spaces = Spaces(self._envs.single_observation_space.shape, True, int(self._envs.single_action_space.n))

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, info = self._envs.reset(seed=np.asarray(seeds))
        self._scores = Scores(self.num_envs)
        self._frames = info["episode_frame_number"].copy()
        return observations

    def send(self, actions: np.ndarray) -> None:
        self._envs.send(actions)

    def receive(self) -> Step:
        observations, rewards, terminated, truncated, info = self._envs.recv()
        # `terminated` is also set at a lost life, and `lives` is already the next episode's. The end of an episode shows only
        # in its frame counter, which then does not continue from its last value.
        frames = info["episode_frame_number"]
        over = (frames <= self._frames) | (frames > self._frames + FRAMES_PER_STEP)
        self._frames = frames.copy()
        rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, over)
        return Step(observations, rewards, terminated, truncated, info.get("final_obs"), episodes)

    def close(self) -> None:
        self._envs.close()
