"""The collector: T steps of N simulators become a batch that still carries the graph of its forward passes (`kept.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gala_mpi.clock import Clock
from gala_mpi.envs import Episode, Simulators
from gala_mpi.kept import Kept
from gala_mpi.model import Network, Policy


@dataclass
class Batch:
    """A rollout. Tensors are [T, N] float32."""

    log_probs: torch.Tensor  # log π(a_t | s_t), with gradient
    entropies: torch.Tensor  # H(π(· | s_t)), with gradient
    values: torch.Tensor  # V(s_t), with gradient
    rewards: torch.Tensor  # r_t as the learner sees them; γ V(cut-off observation) added where an episode was truncated
    discounts: torch.Tensor  # γ, or 0 where the return ends
    next_values: torch.Tensor  # V(s_{t+1}), without gradient
    steps: int  # T · N


class Collector:
    """Steps an agent's simulators with its network's policy.

    Args:
        network: the policy and its value.
        simulators: the vector of environments.
        seeds: int64 [N], one a simulator.
        length: T.
        discount: γ.
        clip_rewards: show the learner only the sign of a reward. Scores stay real.
        poke: called after every simulator step and between the layers of the backward pass, so that MPI can move messages
            (progress is everybody's duty).
        clock: where the time goes.
    """

    def __init__(
        self,
        network: Network,
        simulators: Simulators,
        seeds: np.ndarray,
        length: int,
        discount: float,
        clip_rewards: bool,
        poke: Callable[[], None],
        clock: Clock,
    ):
        self.network, self.simulators, self.clock, self.poke = network, simulators, clock, poke
        self.length, self.discount, self.clip_rewards = length, discount, clip_rewards
        self.device = next(network.parameters()).device
        self.reset(seeds)
        # For a GPU, torch runs the backward pass in a thread of its own, which must not call MPI.
        between = {"between": lambda: self.poke()} if self.device.type == "cpu" else {}
        self.kept = Kept(network, length, self.observations, **between)

    def reset(self, seeds: np.ndarray) -> None:
        """Begin new games in all simulators, from int64 [N]."""
        self.observations = self._to_device(self.simulators.reset(seeds))

    def collect(self) -> tuple[Batch, list[Episode]]:
        """T steps, and the episodes that ended in them."""
        actions, rewards, discounts, next_values = [], [], [], []
        episodes: list[Episode] = []
        self.kept.begin()
        for t in range(self.length):
            with self.clock("act"), torch.no_grad():
                policy, value = self._forward(t)
                action = policy.sample()
            with self.clock("simulate"):
                step = self.simulators.step(action.cpu().numpy())
                self.observations = self._to_device(step.observations)
                reward = np.sign(step.rewards) if self.clip_rewards else step.rewards
                if step.truncated.any():
                    reward = reward + self.discount * self._cut_off_values(step.final_observations, step.truncated)
                episodes += step.episodes
            actions.append(action)
            rewards.append(reward)
            discounts.append(self.discount * ~(step.terminated | step.truncated))
            if t:
                next_values.append(value)
            self.poke()
        with self.clock("act"), torch.no_grad():
            next_values.append(self._forward(self.length)[1])
        with self.clock("learn"):
            batch = self._batch(actions, rewards, discounts, next_values)
        return batch, episodes

    def _forward(self, t: int) -> tuple[Policy, torch.Tensor]:
        """Pass `t` over the observations at hand, kept."""
        return self.network.heads(self.kept.forward(t, self.observations).float())

    def _batch(self, actions: list, rewards: list, discounts: list, next_values: list) -> Batch:
        policy, values = self.network.heads(self.kept.features())  # of T · N rows, with gradient
        grid = (self.length, self.simulators.num_envs)
        return Batch(
            log_probs=policy.log_prob(torch.cat(actions)).view(grid),
            entropies=policy.entropy().view(grid),
            values=values.view(grid),
            rewards=torch.as_tensor(np.stack(rewards), dtype=torch.float32, device=self.device),
            discounts=torch.as_tensor(np.stack(discounts), dtype=torch.float32, device=self.device),
            next_values=torch.stack(next_values),
            steps=self.length * self.simulators.num_envs,
        )

    def _cut_off_values(self, final: np.ndarray, truncated: np.ndarray) -> np.ndarray:
        """V of the observations that truncation cut off, 0 elsewhere. [N] float32."""
        values = np.zeros(len(truncated), np.float32)
        with torch.no_grad():
            values[truncated] = self.network(self._to_device(final[truncated]))[1].cpu().numpy()
        return values

    def _to_device(self, observations: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(observations).to(self.device)
