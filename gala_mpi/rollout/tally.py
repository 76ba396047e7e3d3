"""What a rollout adds to the running statistics of a network: counted on the host, in float64, beside the rollout.

The statistics themselves change with the parameters, between updates, so that a rollout is played and learnt from by the same.
"""

from __future__ import annotations

import numpy as np
import torch

from gala_mpi.networks.policy import Network
from gala_mpi.networks.statistics import LARGEST, Sums

AT_ONCE = 32  # steps that are summed at once: few, so that no rollout is kept twice
MEMORY = 1_000_000  # rows: once so many are counted, older ones weigh less and less, and the sums keep room for new ones


class Counter:
    """Counts the rows of numbers of one rollout.

    Args:
        sums: to which they will be added.
    """

    def __init__(self, sums: Sums):
        self._sums = sums

    def begin(self) -> None:
        """Begin a rollout, from the sums as they are now."""
        before = torch.cat(list(self._sums.parameters())).cpu().numpy().astype(np.float64)
        self._before = before[:1], *np.split(before[1:], 3)
        size = len(self._before[1])
        self._count, self._sum, self._squares = 0, np.zeros(size), np.zeros(size)
        self._rows: list[np.ndarray] = []  # that are not in the sums yet

    def count(self, rows: np.ndarray) -> None:
        """Count finite numbers, [N, size]. They are copied, and summed some at once: a call takes longer than a sum."""
        self._rows.append(rows.copy())
        if len(self._rows) == AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        if self._rows:
            numbers = np.clip(np.concatenate(self._rows) - self._before[1], -LARGEST, LARGEST)
            self._rows = []
            self._count += len(numbers)
            self._sum += numbers.sum(0)
            self._squares += np.square(numbers).sum(0)

    def additions(self) -> np.ndarray:
        """Return what is to be added to the parameters of the sums, behind each other: float32 [1 + 3 · size].

        Less a share of what is there where that is MEMORY already.
        """
        self._sum_up()
        count, _, total, squares = self._before
        forgotten = np.clip((count + self._count - MEMORY) / np.maximum(count, 1), 0, 1)
        return np.concatenate(
            [
                self._count - forgotten * count,
                np.zeros_like(total),
                self._sum - forgotten * total,
                self._squares - forgotten * squares,
            ],
            dtype=np.float32,
            casting="same_kind",
        )


class Tally:
    """Counts the observations and the returns of rollouts, and scales rewards, as far as a network keeps statistics of them.

    Args:
        network: whose statistics.
        num_envs: N.
        discount: γ.
    """

    def __init__(self, network: Network, num_envs: int, discount: float):
        self._network, self._discount = network, discount
        seen, returned = network.observation_sums, network.return_sums
        self._observed = Counter(seen) if seen is not None else None
        self._returned = Counter(returned) if returned is not None else None
        self._returns = np.zeros(num_envs)  # discounted sums of the rewards so far, of each environment's episode

    def reset(self) -> None:
        """Begin new episodes."""
        self._returns[:] = 0

    def begin(self) -> None:
        """Begin a rollout: from here on rewards are scaled by what is known now."""
        if self._observed:
            self._observed.begin()
        if self._returned and (sums := self._network.return_sums) is not None:
            self._returned.begin()
            scaling = sums.scaling()
            self._factor, self._bound = float(scaling.factor), float(scaling.bound)

    def see(self, observations: np.ndarray) -> None:
        """Count observations that are acted on, [n, ...]."""
        if self._observed:
            self._observed.count(observations[:, self._network.spaces.numbers])

    def scaled(self, rewards: np.ndarray, over: np.ndarray, first: int) -> np.ndarray:
        """Count the returns of a step of some environments, and return its rewards as they are learnt from, float32 [n].

        Args:
            rewards: finite, float32 [n].
            over: whether the episode has ended, bool [n].
            first: which environment the first one is.
        """
        if not self._returned:
            return rewards
        returns = self._returns[first : first + len(rewards)]
        returns *= self._discount
        returns += rewards
        self._returned.count(returns[:, None])
        returns[over] = 0
        return np.minimum(np.maximum(rewards * self._factor, -self._bound), self._bound, dtype=np.float32)

    def additions(self) -> np.ndarray | None:
        """Return what the rollout adds to the network's parameters without gradient, float32; None: it has none."""
        counters = [counter for counter in (self._observed, self._returned) if counter]
        return np.concatenate([counter.additions() for counter in counters]) if counters else None
