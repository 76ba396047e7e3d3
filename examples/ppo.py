"""PPO in one file, as many write it, made GALA by three lines: those with `gossip` at their beginning.

    mpirun -n 2 python -m mpi4py examples/ppo.py
    mpirun -n 4 python -m mpi4py examples/ppo.py --topology exponential --steps 40000

Every rank plays environments of its own, and none waits for another. One rank alone is plain PPO (Schulman et al. 2017).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
import tyro
from mpi4py import MPI
from torch import nn
from torch.distributions import Categorical

import gala_mpi


@dataclass(frozen=True)
class Options:
    """Train CartPole, or what has a vector of numbers and discrete actions like it."""

    env: str = "CartPole-v1"
    """An id of gymnasium."""
    topology: str = "ring"
    """Who reads whom (docs/graphs.md)."""
    steps: int = 60_000
    """Of each rank."""
    num_envs: int = 8
    """Environments of each rank."""
    length: int = 64
    """Steps of a rollout in each."""
    epochs: int = 6
    minibatches: int = 4
    lr: float = 1e-3
    """Of Adam; it falls to 0."""
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    seed: int = 0


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


class Agent(nn.Module):
    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.policy, self.value = mlp(observations, actions), mlp(observations, 1)

    def forward(self, observations: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        return Categorical(logits=self.policy(observations)), self.value(observations).squeeze(-1)


def main(options: Options) -> None:
    o, rank = options, MPI.COMM_WORLD.rank
    torch.set_num_threads(1)
    torch.manual_seed(o.seed + rank)
    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec(o.env, o.num_envs, vectorization_mode="sync", vector_kwargs=same_step)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    optimiser = torch.optim.Adam(agent.parameters(), lr=o.lr, eps=1e-5)
    scores: deque[float] = deque(maxlen=50)
    observation, _ = envs.reset(seed=o.seed + 1000 * rank)
    updates = max(1, o.steps // (o.num_envs * o.length))

    gossip = gala_mpi.Gossip(agent, topology=o.topology)  # all begin with the parameters of rank 0
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = o.lr * (1 - update / updates)
        rows = []
        for _ in range(o.length):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            with torch.no_grad():
                policy, value = agent(seen)
            action = policy.sample()
            observation, reward, terminated, truncated, info = envs.step(action.numpy())
            over = terminated | truncated
            reward = torch.as_tensor(reward, dtype=torch.float32)
            if truncated.any():  # what would have come is worth what the network says
                last = np.stack([info["final_obs"][i] for i in np.flatnonzero(truncated)])
                with torch.no_grad():
                    reward[torch.from_numpy(truncated)] += o.discount * agent(torch.as_tensor(last, dtype=torch.float32))[1]
            if over.any():
                scores.extend(info["episode"]["r"][over])
            rows.append((seen, action, policy.log_prob(action), value, reward, torch.as_tensor(~over, dtype=torch.float32)))
        seen, action, log_prob, value, reward, goes_on = map(torch.stack, zip(*rows))
        with torch.no_grad():
            following = agent(torch.as_tensor(observation, dtype=torch.float32))[1]
        advantage, running = torch.zeros_like(reward), torch.zeros(o.num_envs)
        for t in reversed(range(o.length)):
            error = reward[t] + o.discount * goes_on[t] * following - value[t]
            running = error + o.discount * o.gae_lambda * goes_on[t] * running
            advantage[t], following = running, value[t]
        whole = [x.flatten(0, 1) for x in (seen, action, log_prob, advantage, advantage + value)]
        for _ in range(o.epochs):
            for chosen in torch.randperm(len(whole[0])).chunk(o.minibatches):
                learn(agent, optimiser, o.clip, *(x[chosen] for x in whole))
        gossip.mix()
    gossip.close()

    score = np.mean(scores) if scores else float("nan")
    print(f"rank {rank}: {score:.1f} in the last {len(scores)} episodes of training, {gossip.calls} mixes", flush=True)
    envs.close()


def learn(agent: Agent, optimiser: torch.optim.Optimizer, clip: float, seen, action, log_prob, advantage, target) -> None:
    policy, value = agent(seen)
    ratio = (policy.log_prob(action) - log_prob).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    optimiser.zero_grad()
    (0.5 * (value - target).square().mean() - gain).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimiser.step()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
