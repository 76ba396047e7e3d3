"""MovingPole-v0 is CartPole that changes the working directory, as it is made and at every step. Registered when imported."""

import os
import tempfile

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class MovingPole(CartPoleEnv):
    def __init__(self, **options):
        super().__init__(**options)
        os.chdir(tempfile.gettempdir())

    def step(self, action):
        os.chdir("/")
        return super().step(action)


gymnasium.register("MovingPole-v0", MovingPole, max_episode_steps=20)
