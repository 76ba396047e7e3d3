"""The collector: T steps of N environments become a batch that still carries the graph of its forward passes (`kept.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from gala_mpi.clock import Clock
from gala_mpi.device import Upload, cuda_graph
from gala_mpi.envs.base import Environments, Episode
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch
from gala_mpi.rollout.cached import Cached


class Collector:
    """Steps an agent's environments with its network's policy.

    Args:
        network: the policy and its value.
        environments: vectors of as many environments each, [N / G] of N. They take turns: while some play on, the network
            chooses actions for the next (--overlap). One vector waits for the network, and the network for it.
        seeds: int64 [N], one a simulator.
        length: T.
        discount: γ.
        clip_rewards: show the learner only the sign of a reward. Scores stay real.
        progress: called at every step, while environments run, and between the layers of the backward pass, so that MPI can
            move messages (progress is everybody's duty).
        clock: where the time goes.

    Attributes:
        steps: of a rollout, T · N.
    """

    def __init__(
        self,
        network: Network,
        environments: Sequence[Environments],
        seeds: np.ndarray,
        length: int,
        discount: float,
        clip_rewards: bool,
        progress: Callable[[], None],
        clock: Clock,
    ):
        self.network, self.environments, self.clock, self.progress = network, environments, clock, progress
        self.length, self.discount, self.clip_rewards = length, discount, clip_rewards
        self.num_envs = sum(each.num_envs for each in environments)
        self.steps = length * self.num_envs
        self.device = next(network.parameters()).device
        # While others play, the network leaves them half of the cores: with all of them, both wait for each other's threads.
        self.threads = max(1, torch.get_num_threads() // len(environments))
        self._uploads = [Upload(self.device) for _ in environments]
        self._upload_rewards, self._upload_discounts = Upload(self.device), Upload(self.device)
        self.reset(seeds)
        # For a GPU, torch runs the backward pass in a thread of its own, which must not call MPI.
        between = {"between": lambda: self.progress()} if self.device.type == "cpu" else {}
        self.cached = Cached(network, length, self.observations[0], turns=len(environments), **between)
        self._load_parameters = cuda_graph(self.cached.load_parameters, self.device)
        passes = range((length + 1) * len(environments))
        self._passes = [cuda_graph(partial(self._pass, number), self.device) for number in passes]

    def reset(self, seeds: np.ndarray) -> None:
        """Begin new games in all environments, from int64 [N]."""
        shares = np.split(seeds, len(self.environments))
        first = [each.reset(share) for each, share in zip(self.environments, shares)]
        self.observations = [upload(each) for upload, each in zip(self._uploads, first)]

    def close(self) -> None:
        for environments in self.environments:
            environments.close()

    def collect(self) -> list[Episode]:
        """T steps, which `batch` then holds. The episodes that ended in them."""
        record = self._record = _Record()
        self._load_parameters()
        with _threads(self.threads):
            for t in range(self.length + 1):
                for turn in range(len(self.environments)):
                    if t:
                        self._finish(turn)
                    self._act(t, turn)
                self.progress()
        self._rewards = self._upload_rewards(np.concatenate(record.rewards, dtype=np.float32))
        self._discounts = self._upload_discounts(np.concatenate(record.discounts, dtype=np.float32))
        return record.episodes

    def _act(self, t: int, turn: int) -> None:
        """Run a pass over the observations at hand and send its actions, but for the last one, which bootstraps."""
        with self.clock("act"):
            value, action = self._passes[t * len(self.environments) + turn]()
            self._record.values.append(value)
            if action is None:
                return
            self._record.actions.append(action)
            chosen = action.cpu().numpy()
        with self.clock("simulate"):
            self.environments[turn].send(chosen)

    @torch.no_grad()
    def _pass(self, number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pass `number` of the rollout: values [N / G] and, unless it bootstraps, actions of the observations at hand."""
        t, turn = divmod(number, len(self.environments))
        policy, value = self.network.heads(self.cached.forward(number, self.observations[turn]).float())
        return value, policy.sample() if t < self.length else None

    def _finish(self, turn: int) -> None:
        """Wait for the step that these environments have begun, and write down what it brought."""
        with self.clock("simulate"):
            step = self.environments[turn].receive()
            self.observations[turn] = self._uploads[turn](step.observations)
            reward = np.sign(step.rewards) if self.clip_rewards else step.rewards
            if step.truncated.any():
                reward = reward + self.discount * self._cut_off_values(step.final_observations, step.truncated)
            record = self._record
            record.rewards.append(reward)
            record.discounts.append(self.discount * ~(step.terminated | step.truncated))
            first = sum(each.num_envs for each in self.environments[:turn])
            record.episodes += [replace(episode, environment=first + episode.environment) for episode in step.episodes]

    def batch(self) -> Batch:
        """The rollout that was collected last. Operations on the device alone, so that they can be replayed."""
        record, grid = self._record, (self.length, self.num_envs)
        policy, values = self.network.heads(self.cached.features())  # of T · N rows, with gradient
        return Batch(
            log_probs=policy.log_prob(torch.cat(record.actions)).view(grid),
            entropies=policy.entropy().view(grid),
            values=values.view(grid),
            rewards=self._rewards.view(grid),
            discounts=self._discounts.view(grid),
            next_values=torch.cat(record.values[len(self.environments) :]).view(grid),
            written=self.cached.written,
        )

    def _cut_off_values(self, final: np.ndarray, truncated: np.ndarray) -> np.ndarray:
        """V of the observations that truncation cut off, 0 elsewhere. [N / G] float32."""
        values = np.zeros(len(truncated), np.float32)
        with torch.no_grad():
            values[truncated] = self.network(torch.from_numpy(final[truncated]).to(self.device))[1].cpu().numpy()
        return values


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@dataclass
class _Record:
    """A rollout as it comes, in the order of the passes: step by step, turn by turn, [N / G] each."""

    actions: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    discounts: list[np.ndarray] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
