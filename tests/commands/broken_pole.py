"""BrokenPole-v0 is CartPole that raises an error on its 50th step on rank 1."""

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class BrokenPole(CartPoleEnv):
    moves = 0

    def step(self, action):
        from mpi4py import MPI

        self.moves += 1
        if MPI.COMM_WORLD.rank == 1 and self.moves == 50:
            raise ArithmeticError("the pole has broken")
        return super().step(action)


gymnasium.register("BrokenPole-v0", BrokenPole)
