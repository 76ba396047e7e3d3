"""Atari games in ale-py's own vector environment.

They are preprocessed as in the GALA authors' code (Mnih et al. 2015): up to 30 no-ops, FIRE after a reset of the game, frame
skip 4 with the maximum of the last two frames, 84×84 grey, 4 frames stacked. A lost life ends the return, not the episode: the
next life continues where the last one ended, without another FIRE. `AtariSettings` says otherwise where something is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gala_mpi.envs.base import Environments, Scores, Spaces, Step
from gala_mpi.envs.settings import PAPER, AtariSettings


class AtariEnvironments(Environments):
    """Atari games in ale-py's vector environment (C++ threads)."""

    def __init__(self, game: str, num_envs: int, threads: int = 1, settings: AtariSettings = PAPER, **view: Any):
        """Make `num_envs` environments of one game.

        Args:
            game: ale-py's name of the game, in snake_case.
            num_envs: N.
            threads: how many emulators run at the same time.
            settings: the protocol. None stands for what a game's plain name means.
            view: options of AtariVectorEnv for how the screen is shown (`img_height`, `grayscale`, ...).
        """
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        protocol: Any = settings.over(PAPER)  # in which nothing is None
        self.frame_skip: int = protocol.frame_skip
        self._envs: Any = AtariVectorEnv(
            game,
            num_envs,
            num_threads=min(threads, num_envs),
            repeat_action_probability=protocol.sticky,
            autoreset_mode=AutoresetMode.SAME_STEP,
            noop_max=protocol.no_ops,
            frameskip=protocol.frame_skip,
            use_fire_reset=protocol.fire,
            full_action_space=protocol.full_actions,
            max_num_frames_per_episode=protocol.frame_limit,
            reward_clipping=False,
            # Not episodic_life: it resets the whole game at every lost life.
            life_loss_info=protocol.life_loss,
            **view,
        )
        self.num_envs = num_envs
        self.spaces = Spaces(self._envs.single_observation_space.shape, True, int(self._envs.single_action_space.n))

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, info = self._envs.reset(seed=np.asarray(seeds))
        self._scores = Scores(self.num_envs)
        self._count_frames(info)
        return observations

    def send(self, actions: np.ndarray) -> None:
        self._envs.send(actions)

    def receive(self) -> Step:
        observations, rewards, terminated, truncated, info = self._envs.recv()
        # `terminated` is also set at a lost life, and `lives` is already the next episode's. The end of an episode shows only
        # in its frame counter, which begins anew then.
        begun = self._begun
        self._count_frames(info)
        over = self._begun != begun
        rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, over)
        return Step(observations, rewards, terminated, truncated, info.get("final_obs"), episodes)

    def _count_frames(self, info: dict[str, np.ndarray]) -> None:
        """Take down how many frames each emulator has shown in its present episode, and how many before that one."""
        self._frames = info["episode_frame_number"].copy()
        self._begun = info["frame_number"] - self._frames

    def close(self) -> None:
        self._envs.close()
