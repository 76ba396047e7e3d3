"""`not_finite.py flags...`: train, with two more environments and a learner in which some numbers of rank 1 are not finite.

SickPole-v0 is CartPole whose first environment there has one at each of the steps of SICK_STEPS. LostPole-v0 is lost for good
once LOST names a run that has a checkpoint. The learner `overflowing` is A2C whose gradient overflows at one update.
"""

import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

from gala_mpi.lazy import Member
from gala_mpi.learners import LEARNERS

NAN, INF = np.nan, np.inf
# Step → what, and the number. The fifth of an update of 5 steps is seen by the next one as well.
SICK_STEPS = {33: ("reward", NAN), 63: ("reward", INF), 93: ("reward", -INF)}
SICK_STEPS |= {123: ("observation", NAN), 153: ("observation", INF), 180: ("observation", -INF)}


def rank() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank


class SickPole(CartPoleEnv):
    made = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.moves, self.sick = 0, rank() == 1 and SickPole.made == 0
        SickPole.made += 1

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.moves += 1
        if self.sick and self.moves in SICK_STEPS:
            what, number = SICK_STEPS[self.moves]
            terminated = False  # an observation at the end of an episode concerns nobody
            if what == "reward":
                reward = number
            else:
                observation = np.array([*observation[:3], number], np.float32)
        return observation, reward, terminated, truncated, info


class LostPole(CartPoleEnv):
    def step(self, action):
        from gala_mpi.run import checkpoints

        if rank() == 1 and "LOST" in os.environ and checkpoints.complete(Path(os.environ["LOST"])):
            self.state = np.full(4, np.nan)  # no angle that it compares ends the episode
        return super().step(action)


gymnasium.register("SickPole-v0", SickPole)
gymnasium.register("LostPole-v0", LostPole)

if __name__ == "__main__":
    LEARNERS |= {"overflowing": Member("overflowing:Overflowing", "A2C whose gradient overflows once")}
    from gala_mpi import train

    train.main(sys.argv[1:])
