"""What PPO is told for each task, by both sides of the comparison (`against_sb3.py --learner ppo`). Plain Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One line of TASKS. All else is what SB3's PPO and gala_mpi's do by default, which is the same: Adam with ε = 1e-5,
    gradients of length 0.5 at most, half of the value error, advantages of each minibatch normalised.

    Attributes:
        steps: of a training run.
        num_envs: environments of all processes together.
        length: steps of a rollout in each environment.
        minibatches: into which a rollout of all environments is divided.
        normalise: whether observations and rewards are (VecNormalize).
        images: whether it is an Atari game.
    """

    steps: int
    num_envs: int
    length: int
    minibatches: int
    epochs: int
    lr: float
    decay_lr: bool
    clip: float
    discount: float = 0.99
    gae_lambda: float = 0.95
    entropy: float = 0.0
    normalise: bool = False
    images: bool = False


ATARI = Task(2_000_000, 8, 128, 4, 4, 2.5e-4, True, 0.1, entropy=0.01, images=True)
# rl-baselines3-zoo, hyperparams/ppo.yml (LunarLander-v2 there). HalfCheetah: its mujoco-defaults, which are SB3's own with
# VecNormalize; the 2,048 steps of a rollout are those of two environments, since two ranks share them. Where the zoo lets the
# clipping fall with the learning rate (CartPole, Atari), here it stays. Atari's runs are shorter than its 10 million steps.
TASKS = {
    "CartPole-v1": Task(100_000, 8, 32, 1, 20, 1e-3, True, 0.2, discount=0.98, gae_lambda=0.8),
    "LunarLander-v3": Task(1_000_000, 16, 1024, 256, 4, 3e-4, False, 0.2, discount=0.999, gae_lambda=0.98, entropy=0.01),
    "HalfCheetah-v5": Task(1_000_000, 2, 1024, 32, 10, 3e-4, False, 0.2, normalise=True),
    "pong": ATARI,
    "breakout": ATARI,
}

# What gala_mpi is told besides, where agents learn from their own shares. In other tasks they take as many steps of the
# optimiser as SB3, from minibatches that are smaller by as much, and mix once a rollout.
OWN = {
    ("CartPole-v1", "gossip"): {"rollout_length": 64},  # two agents: minibatches as large as SB3's, half as many steps
    ("LunarLander-v3", "gossip"): {"mix_steps": 4},
    ("HalfCheetah-v5", "gossip"): {"ppo.minibatches": 16},  # likewise
}
