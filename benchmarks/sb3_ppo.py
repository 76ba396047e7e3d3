"""Train Stable-Baselines3's PPO on a task, play its final policy, and print scores as JSON.

against_sb3.py starts it in SB3's own environment.
"""

import time

BEGAN = time.perf_counter()

import argparse
import json
import sys

import ale_py
import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from ppo_tasks import TASKS

SECONDS_BETWEEN_LINES = 10.0
GAMES = {"pong": "PongNoFrameskip-v4", "breakout": "BreakoutNoFrameskip-v4"}


class Told(BaseCallback):
    """Say now and then how far training is."""

    def __init__(self, steps: int):
        super().__init__()
        self._steps, self._said = steps, time.monotonic()

    def _on_step(self) -> bool:
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            scores = [episode["r"] for episode in self.model.ep_info_buffer] or [float("nan")]
            mean = sum(scores) / len(scores)
            print(f"SB3: {self.num_timesteps:,} of {self._steps:,} steps, score {mean:.1f}", file=sys.stderr, flush=True)
        return True


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", choices=TASKS, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--games", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
options = parser.parse_args()
task = TASKS[options.env]
gymnasium.register_envs(ale_py)
torch.set_num_threads(options.threads)


def make(number: int, seed: int):
    if task.images:
        return VecFrameStack(make_atari_env(GAMES[options.env], n_envs=number, seed=seed), n_stack=4)
    return make_vec_env(options.env, n_envs=number, seed=seed)


environments = make(task.num_envs, options.seed)
if task.normalise:
    environments = VecNormalize(environments, gamma=task.discount)
model = PPO(
    "CnnPolicy" if task.images else "MlpPolicy",
    environments,
    n_steps=task.length,
    batch_size=task.num_envs * task.length // task.minibatches,
    n_epochs=task.epochs,
    learning_rate=(lambda left: task.lr * left) if task.decay_lr else task.lr,
    clip_range=task.clip,
    gamma=task.discount,
    gae_lambda=task.gae_lambda,
    ent_coef=task.entropy,
    seed=options.seed,
    device="cpu",
    verbose=0,
)
model.learn(options.steps, callback=Told(options.steps))
seconds = time.perf_counter() - BEGAN
training = [float(episode["r"]) for episode in model.ep_info_buffer]  # the last 100
played = make(1, options.seed + 1000)
if task.normalise:
    played = VecNormalize(played, training=False, norm_reward=False)
    played.obs_rms = environments.obs_rms
scores, _ = evaluate_policy(model, played, options.games, deterministic=True, return_episode_rewards=True)
print(json.dumps({"training": training, "played": [float(score) for score in scores], "seconds": seconds}))
