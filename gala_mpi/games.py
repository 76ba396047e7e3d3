"""Games that a policy plays to their ends, one in each of several environments, from seeds that say how each begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from gala_mpi.envs.base import Environments, Episode
from gala_mpi.errors import JobError
from gala_mpi.networks.acting import Acting
from gala_mpi.networks.policy import Network


def game_seeds(seed: int, games: Iterable[int]) -> np.ndarray:
    """One seed per episode, int64: the same for every policy and any number of ranks."""
    sequences = (np.random.SeedSequence(seed, spawn_key=(game,)) for game in games)
    return np.array([sequence.generate_state(1)[0] >> 1 for sequence in sequences], np.int64)


class Games:
    """One episode in each of N environments.

    Args:
        seeds: of the episodes, int64 [N].
        max_steps: after which an episode is cut off.

    Attributes:
        steps: that have been taken in each.
        cut: how many episodes were cut off.
    """

    def __init__(self, environments: Environments, seeds: np.ndarray, max_steps: int):
        self._environments, self._max_steps = environments, max_steps
        self._observations, self.steps, self.cut = environments.reset(seeds), 0, 0
        self._scores = np.zeros(environments.num_envs)  # so far
        self._played: dict[int, Episode] = {}  # by the environment

    def play(
        self, network: Network, generator: torch.Generator | None, count: Callable[[int], None] = lambda games: None
    ) -> list[Episode]:
        """Play them to their ends; return the first episode of each environment, in the order of the seeds.

        Args:
            generator: what actions are drawn from; None: the most probable ones are taken.
            count: told of the number of games that have ended, at every step.

        Raises:
            JobError: an environment gave a number that is not finite, whose score nobody could trust.
        """
        environments = self._environments
        acting = Acting(network, environments.num_envs)
        while len(self._played) < environments.num_envs:
            self._require_finite("an observation", self._observations)
            step = environments.step(acting.choose(self._observations, generator))
            self._observations, self.steps, before = step.observations, self.steps + 1, len(self._played)
            self._require_finite("a reward", step.rewards)
            self._scores += step.rewards
            acting.forget(step.terminated | step.truncated)
            for episode in step.episodes:
                self._played.setdefault(episode.environment, episode)
            if self.steps == self._max_steps:
                self._cut_off()
            count(len(self._played) - before)
        return [self._played[i] for i in range(environments.num_envs)]

    def _cut_off(self) -> None:
        for i in set(range(self._environments.num_envs)) - self._played.keys():
            self._played[i] = Episode(i, float(self._scores[i]), self.steps)
            self.cut += 1

    def _require_finite(self, what: str, rows: np.ndarray) -> None:
        """Refuse to go on with [N, ...] of environments that play, of which not all are finite."""
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            for i in set(range(len(rows))) - self._played.keys():
                if not np.isfinite(rows[i]).all():
                    value = rows[i][~np.isfinite(rows[i])].flat[0] if rows[i].ndim else rows[i]
                    raise JobError(
                        f"environment {i} gave {what} of {value} at its step {self.steps}: its score would mean nothing"
                    )
