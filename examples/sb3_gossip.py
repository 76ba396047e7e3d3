"""Stable-Baselines3's PPO, made GALA by a callback: after every time that the model has learnt, its policy gossips.

    mpirun -n 2 python -m mpi4py examples/sb3_gossip.py
    mpirun -n 4 python -m mpi4py examples/sb3_gossip.py --topology exponential --steps 20000

Every rank has a model and environments of its own, and none waits for another. One rank alone is the model as it is. The extra
`examples` has what it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import tyro
from mpi4py import MPI
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import gala_mpi


@dataclass(frozen=True)
class Options:
    """Train CartPole, or another task of gymnasium's."""

    env: str = "CartPole-v1"
    """An id of gymnasium."""
    topology: str = "ring"
    """Who reads whom (docs/graphs.md)."""
    steps: int = 30_000
    """Of each rank."""
    seed: int = 0


class GossipCallback(BaseCallback):
    """For any model of Stable-Baselines3: before each rollout, which is after learning from the last one, and at the end."""

    def __init__(self, topology: str):
        super().__init__()
        self._topology = topology

    def _on_training_start(self) -> None:
        self.gossip = gala_mpi.Gossip(self.model.policy, topology=self._topology)  # all begin with the parameters of rank 0

    def _on_rollout_start(self) -> None:
        self.gossip.mix()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.gossip.mix()
        self.gossip.close()


def main(options: Options) -> None:
    rank = MPI.COMM_WORLD.rank
    torch.set_num_threads(1)
    seed = options.seed + 1000 * rank
    environments = make_vec_env(options.env, 8, seed=seed)
    model = PPO("MlpPolicy", environments, n_steps=64, batch_size=128, learning_rate=1e-3, seed=seed, device="cpu")
    callback = GossipCallback(options.topology)
    model.learn(options.steps, callback=callback)
    scores = [episode["r"] for episode in model.ep_info_buffer]  # of the last 100 episodes
    print(f"rank {rank}: {np.mean(scores):.1f} in the last {len(scores)} episodes, {callback.gossip.calls} mixes", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
