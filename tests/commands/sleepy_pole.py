"""`sleepy_pole.py HOW flags...`: train with SleepyPole-v0, CartPole that never comes back from its 50th step on rank 1.

HOW is where it stays: "python", or "c", which keeps Python's lock.
"""

import ctypes
import sys
import time

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

from gala_mpi import train

how, *flags = sys.argv[1:]


class SleepyPole(CartPoleEnv):
    moves = 0

    def step(self, action):
        from mpi4py import MPI

        self.moves += 1
        while MPI.COMM_WORLD.rank == 1 and self.moves == 50:
            time.sleep(1000) if how == "python" else ctypes.PyDLL(None).sleep(1000)
        return super().step(action)


if __name__ == "__main__":
    from gala_mpi.mpi import roll

    roll.SECONDS_BETWEEN_WARNINGS = 2.0
    gymnasium.register("SleepyPole-v0", SleepyPole)
    train.main(flags)
