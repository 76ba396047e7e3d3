"""The contract of environments: N of them, stepped together.

A step returns the next observations (of the next episode where one ended), real unclipped rewards, and for every environment
whether its return ends here (`terminated`) or was cut (`truncated`, with the observation that was cut off). Scores and lengths
are of whole episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Spaces:
    """What one simulator gives and takes."""

    observation_shape: tuple[int, ...]  # images are [channels, height, width]
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
    """A finished game: which simulator played it, its real score and its length in steps."""

    simulator: int
    score: float
    length: int


@dataclass
class Step:
    """What one action in each of N environments brought."""

    observations: np.ndarray  # [N, ...], of the next game where one ended
    rewards: np.ndarray  # [N] float32, unclipped
    terminated: np.ndarray  # [N] bool: the return ends (a life or the game was lost)
    truncated: np.ndarray  # [N] bool: the game was cut off
    final_observations: np.ndarray | None  # [N, ...]; rows where `truncated` hold what was cut off, others mean nothing
    episodes: list[Episode] = field(default_factory=list)


class Environments(Protocol):
    """N environments stepped together. Those that run in threads of their own (Atari) do so between `send` and `receive`."""

    num_envs: int
    spaces: Spaces

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begin N games from N seeds (int64 [N]); their first observations, [N, ...]."""

    def send(self, actions: np.ndarray) -> None:
        """Take one action in each (int64 [N], or float32 [N, *action_shape])."""

    def receive(self) -> Step:
        """What came of it."""

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in each, and wait for what comes of it."""
        self.send(actions)
        return self.receive()

    def close(self) -> None: ...


class Scores:
    """Running score and length of each simulator's game."""

    def __init__(self, num_envs: int):
        self._scores = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)

    def add(self, rewards: np.ndarray, over: np.ndarray) -> list[Episode]:
        """Count one step; the games that it ended (`over`, bool [N])."""
        self._scores += rewards
        self._lengths += 1
        if not over.any():
            return []
        episodes = [Episode(int(i), float(self._scores[i]), int(self._lengths[i])) for i in np.flatnonzero(over)]
        self._scores[over] = 0
        self._lengths[over] = 0
        return episodes
