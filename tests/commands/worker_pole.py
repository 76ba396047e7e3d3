"""WorkerPole-v0 is CartPole in a process of its own, which is told to end by terminate(). Registered when imported.

`worker_pole.py flags...` trains, and does so in every process that imports it as the main program: it lacks its guard.
"""

import multiprocessing
import sys

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


def work(pipe):
    pole = CartPoleEnv()
    while True:
        method, value = pipe.recv()
        pipe.send(pole.reset(seed=value) if method == "reset" else pole.step(value))


class WorkerPole(gymnasium.Env):
    def __init__(self, method="fork"):
        one = CartPoleEnv()
        self.observation_space, self.action_space = one.observation_space, one.action_space
        context = multiprocessing.get_context(method)
        self.pipe, other = context.Pipe()
        self.worker = context.Process(target=work, args=(other,))
        self.worker.start()
        other.close()  # or there is no end of file when the worker dies

    def reset(self, *, seed=None, options=None):
        self.pipe.send(("reset", seed))
        return self.pipe.recv()

    def step(self, action):
        self.pipe.send(("step", action))
        return self.pipe.recv()

    def close(self):
        self.worker.terminate()
        self.worker.join()


if "WorkerPole-v0" not in gymnasium.registry:
    gymnasium.register("WorkerPole-v0", WorkerPole)

if sys.argv[0] == __file__:
    from gala_mpi import train

    train.main(sys.argv[1:])
