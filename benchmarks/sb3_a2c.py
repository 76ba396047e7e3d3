"""Train Stable-Baselines3's A2C on Pong or CartPole and print its steps/s. against_sb3.py starts it in its own environment."""

import argparse
import time

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

gymnasium.register_envs(ale_py)
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="pong")
parser.add_argument("--num-envs", type=int, default=16)
parser.add_argument("--updates", type=int, default=60)
parser.add_argument("--warm-up", type=int, default=10)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()

torch.set_num_threads(options.threads)
if options.env == "pong":
    simulators = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=options.num_envs, seed=0), n_stack=4)
else:
    simulators = make_vec_env(options.env, n_envs=options.num_envs, seed=0)
model = A2C(
    "CnnPolicy" if options.env == "pong" else "MlpPolicy",
    simulators,
    ent_coef=0.01,
    vf_coef=0.5,
    n_steps=5,
    device="cpu",
    verbose=0,
)
steps_per_update = model.n_steps * options.num_envs
model.learn(options.warm_up * steps_per_update)
began = time.perf_counter()
model.learn(options.updates * steps_per_update)
print(options.updates * steps_per_update / (time.perf_counter() - began))
