"""Train Stable-Baselines3's PPO on a task, play its final policy, and print scores as JSON.

against_sb3.py starts it in SB3's own environment. Now and then what was learnt is kept in a file, from which another call goes
on; games begin anew then, and no time is taken.
"""

import time

BEGAN = time.perf_counter()

import argparse
import io
import json
import os
import pickle
import sys
from pathlib import Path

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
SECONDS_BETWEEN_FILES = 300.0
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


class Begun(BaseCallback):
    """Keep the model in a file now and then, between an update and the next rollout: a kill leaves the old file or the new."""

    def __init__(self, path: Path):
        super().__init__()
        self._path, self._kept = path, time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if time.monotonic() - self._kept > SECONDS_BETWEEN_FILES:
            self._kept = time.monotonic()
            model, normalising = io.BytesIO(), self.model.get_vec_normalize_env()
            self.model.save(model)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(pickle.dumps((task, model.getvalue(), normalising)))
            os.replace(temporary, self._path)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", choices=TASKS, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--games", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--begun", type=Path, required=True)
options = parser.parse_args()
task = TASKS[options.env]
gymnasium.register_envs(ale_py)
torch.set_num_threads(options.threads)


def make(number: int, seed: int):
    if task.images:
        return VecFrameStack(make_atari_env(GAMES[options.env], n_envs=number, seed=seed), n_stack=4)
    return make_vec_env(options.env, n_envs=number, seed=seed)


def begin() -> PPO:
    """Return the model of a new run."""
    environments = make(task.num_envs, options.seed)
    if task.normalise:
        environments = VecNormalize(environments, gamma=task.discount)
    return PPO(
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


def go_on(kept: bytes, normalising: VecNormalize | None) -> PPO:
    """Return the model that was kept."""
    environments = make(task.num_envs, options.seed)
    if normalising is not None:
        normalising.set_venv(environments)
        environments = normalising
    model = PPO.load(io.BytesIO(kept), environments, device="cpu")
    model.set_random_seed(options.seed + model.num_timesteps)  # no game is that of the run's beginning once more
    return model


told, *begun = pickle.loads(options.begun.read_bytes()) if options.begun.exists() else [None]
resumed = told == task
model = go_on(*begun) if resumed else begin()
left = options.steps - model.num_timesteps
model.learn(left, callback=[Told(options.steps), Begun(options.begun)], reset_num_timesteps=False)
seconds = None if resumed else time.perf_counter() - BEGAN
training = [float(episode["r"]) for episode in model.ep_info_buffer]  # the last 100
played = make(1, options.seed + 1000)
if task.normalise:
    played = VecNormalize(played, training=False, norm_reward=False)
    played.obs_rms = model.get_vec_normalize_env().obs_rms
scores, _ = evaluate_policy(model, played, options.games, deterministic=True, return_episode_rewards=True)
print(json.dumps({"training": training, "played": [float(score) for score in scores], "seconds": seconds}))
