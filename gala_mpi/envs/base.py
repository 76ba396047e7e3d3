"""The interface of environments: N of them, stepped together.

A step returns the next observations (of the next episode where one ended), rewards that are not clipped, and for every
environment whether its return ends here (`terminated`) or was cut off (`truncated`, with the last observation before that).
Scores and lengths are those of whole episodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Spaces:
    """The observation and action spaces of one environment."""

    observation_shape: tuple[int, ...]  # images: [channels, height, width]
    image: bool  # uint8 pixels; otherwise float32 numbers
    actions: int | None  # how many discrete actions; None: a box of `action_shape`
    action_shape: tuple[int, ...] = ()
    low: tuple[float, ...] | None = None  # the bounds of a box, flattened; actions beyond them are clipped
    high: tuple[float, ...] | None = None

    @property
    def discrete(self) -> bool:
        return self.actions is not None

    @property
    def observation_dtype(self) -> type:
        return np.uint8 if self.image else np.float32


@dataclass(frozen=True)
class Episode:
    """A finished episode."""

    environment: int  # which one it was played in, 0 to N - 1
    score: float  # sum of its rewards, unclipped
    length: int  # steps


@dataclass
class Step:
    """The result of one action in each of N environments."""

    observations: np.ndarray  # [N, ...], of the next episode where one ended
    rewards: np.ndarray  # [N] float32, unclipped
    terminated: np.ndarray  # [N] bool: the return ends (the episode has ended, or a life was lost)
    truncated: np.ndarray  # [N] bool: the episode was cut off
    final_observations: np.ndarray | None  # [N, ...]; where `truncated`, the last of the episode, elsewhere undefined
    episodes: list[Episode] = field(default_factory=list)


class Environments(ABC):
    """N environments stepped together. Those that run in threads of their own (Atari) compute between `send` and `receive`.

    Attributes:
        num_envs: N.
        spaces: those of each environment.
    """

    num_envs: int
    spaces: Spaces

    @abstractmethod
    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begin N episodes from N seeds (int64 [N]); return their first observations, [N, ...]."""

    @abstractmethod
    def send(self, actions: np.ndarray) -> None:
        """Begin a step with one action for each environment (int64 [N], or float32 [N, *action_shape])."""

    @abstractmethod
    def receive(self) -> Step:
        """Wait for the step begun by `send`, and return its result."""

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in each environment, and return the result."""
        self.send(actions)
        return self.receive()

    @abstractmethod
    def close(self) -> None:
        """Free the environments."""


class Scores:
    """Score and length so far of each environment's episode."""

    def __init__(self, num_envs: int):
        self._scores = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)

    def add(self, rewards: np.ndarray, over: np.ndarray) -> list[Episode]:
        """Count one step, and return the episodes that it ended.

        Args:
            rewards: float32 [N].
            over: which episodes it ended, bool [N].
        """
        self._scores += rewards
        self._lengths += 1
        if not over.any():
            return []
        episodes = [Episode(int(i), float(self._scores[i]), int(self._lengths[i])) for i in np.flatnonzero(over)]
        self._scores[over] = 0
        self._lengths[over] = 0
        return episodes
