"""`faulty.py KIND RANK STEP flags...`: train on FaultyPole-v0, CartPole in which something happens to a rank at a step.

The file named by FAULT appears when it has happened.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

kind, rank, step, *flags = sys.argv[1:]


class FaultyPole(CartPoleEnv):
    made = 0

    def __init__(self, *arguments, **options):
        from mpi4py import MPI

        super().__init__(*arguments, **options)
        self.moves, self.faulty = 0, MPI.COMM_WORLD.rank == int(rank) and FaultyPole.made == 1  # 0: of the plan, on rank 0
        FaultyPole.made += 1

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.moves += 1
        if self.faulty and self.moves >= int(step) and not terminated:  # what a finished episode shows last, nobody looks at
            self.faulty = False
            Path(os.environ["FAULT"]).touch()
            observation, reward = happen(observation, reward)
        return observation, reward, terminated, truncated, info


def happen(observation, reward):
    if kind == "nan":
        return observation, np.nan
    if kind == "inf":
        return np.full_like(observation, -np.inf), reward
    if kind == "exception":
        raise ArithmeticError("the pole has broken")
    if kind == "exit":
        sys.exit(3)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "disk":  # files that may not grow fail as those on a full disk do
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))
    return observation, reward  # of the other kinds the test sees to what happens


gymnasium.register("FaultyPole-v0", FaultyPole)

if __name__ == "__main__":
    from gala_mpi import train

    train.main(flags)
