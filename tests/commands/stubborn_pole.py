"""StubbornPole-v0 is CartPole of which rank 1's cannot be closed, and which calls sys.exit where LEAVES is set."""

import os
import sys

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class StubbornPole(CartPoleEnv):
    def step(self, action):
        if "LEAVES" in os.environ:
            sys.exit(0)
        return super().step(action)

    def close(self):
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            raise RuntimeError("the pole stays")


gymnasium.register("StubbornPole-v0", StubbornPole, max_episode_steps=20)
