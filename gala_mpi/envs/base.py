"""The interface of environments: N of them, stepped together.

A step returns the next observations (of the next episode where one ended), rewards that are not clipped, and for every
environment whether its return ends here (`terminated`) or was cut off (`truncated`, with the last observation before that).
Scores and lengths are those of whole episodes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

MASK = "action_mask"  # the key of a mask in a Dict (as in PettingZoo and RLlib) or an info (as in gymnasium)


@dataclass(frozen=True)
class Part:
    """A piece of an observation that is packed into a vector."""

    name: str
    space: str  # what it was read from, as gymnasium writes it
    size: int  # how many numbers it is


@dataclass(frozen=True)
class Spaces:
    """The observation and action spaces of one environment, as a network sees them.

    Actions are one of `actions` discrete ones (int64 []); or `choices` of several at once (int64 [k]); or, where both are
    empty, a box of numbers (float32 `action_shape`), of which offset + scale · number is played, clipped to the bounds.
    """

    observation_shape: tuple[int, ...]  # images: [channels, height, width]
    image: bool  # pixels; otherwise float32 numbers
    actions: int | None  # how many discrete actions; None: `choices`, or a box of `action_shape`
    action_shape: tuple[int, ...] = ()
    low: tuple[float, ...] | None = None  # the bounds of a box, flattened; actions beyond them are clipped
    high: tuple[float, ...] | None = None
    choices: tuple[int, ...] = ()  # of how many each of k choices is (k is `action_shape`)
    action_scale: tuple[float, ...] = ()  # of a box, flattened; if not given 1
    action_offset: tuple[float, ...] = ()  # likewise; if not given 0
    dtype: str = ""  # of observations; if not given uint8 for images, else float32
    scale: float = 0.0  # what a network multiplies observations by; if not given 1/255 for images, else 1
    image_shape: tuple[int, int, int] | None = None  # of the image with which a packed observation begins; None: it has none
    masked: bool = False  # an observation's last `outputs` numbers are 1 for each action that may be taken, 0 for others
    parts: tuple[Part, ...] = field(default=(), compare=False)  # of a packed observation, in their order

    def __post_init__(self):
        """Fill in what was not given, so that the same spaces are equal however they were written."""
        boxes = 0 if self.discrete else math.prod(self.action_shape)
        for name, value in (
            ("dtype", self.dtype or ("uint8" if self.image else "float32")),
            ("scale", self.scale or (1 / 255 if self.image else 1.0)),
            ("action_scale", self.action_scale or (1.0,) * boxes),
            ("action_offset", self.action_offset or (0.0,) * boxes),
        ):
            object.__setattr__(self, name, value)

    @property
    def discrete(self) -> bool:
        return self.actions is not None or bool(self.choices)

    @property
    def unmasked(self) -> Spaces:
        """Those of observations without their masks."""
        shape = (self.observation_shape[0] - self.outputs,) if self.masked else self.observation_shape
        return replace(self, observation_shape=shape, masked=False)

    @property
    def picture(self) -> tuple[int, ...] | None:
        """The shape of the image that observations are or begin with, [channels, height, width]; None: there is none."""
        return self.observation_shape if self.image else self.image_shape

    @property
    def numbers(self) -> slice:
        """Where in an observation the numbers are, behind the image that it begins with and before its mask; empty: it has none
        but pixels."""
        if self.image or len(self.observation_shape) != 1:
            return slice(0, 0)
        end = self.observation_shape[0] - self.outputs * self.masked
        return slice(math.prod(self.image_shape) if self.image_shape else 0, end)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for an action: a logit for each discrete one, or the means of a box."""
        if self.actions is not None:
            return self.actions
        return sum(self.choices) if self.choices else math.prod(self.action_shape)

    @property
    def observation_dtype(self) -> np.dtype:
        return np.dtype(self.dtype)

    def random_actions(self, rng: np.random.Generator, observations: np.ndarray) -> np.ndarray:
        """Draw an action for each of N observations, [N, ...]; of discrete ones all that may be taken are equally probable."""
        if not self.discrete:
            return rng.normal(size=(len(observations), *self.action_shape)).astype(np.float32)
        drawn = 1 - rng.random((len(observations), self.outputs))  # above 0
        if self.masked:
            drawn *= observations[:, -self.outputs :]
        if self.actions is not None:
            return drawn.argmax(1)
        return np.stack([part.argmax(1) for part in np.split(drawn, np.cumsum(self.choices)[:-1], axis=1)], axis=1)


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
        advice: what a user should know of them before the run, in one line each.
    """

    num_envs: int
    spaces: Spaces

    @property
    def advice(self) -> Sequence[str]:
        return ()

    @abstractmethod
    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begin N episodes from N seeds (int64 [N]); return their first observations, [N, ...]."""

    @abstractmethod
    def send(self, actions: np.ndarray) -> None:
        """Begin a step with one action for each environment (int64 [N] or [N, k], or float32 [N, *action_shape])."""

    @abstractmethod
    def receive(self) -> Step:
        """Wait for the step begun by `send`, and return its result."""

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in each environment, and return the result."""
        self.send(actions)
        return self.receive()

    def rehearse(self) -> None:
        """Take a step, which shows whether the environments do as they have declared.

        Raises:
            JobError: they do not; the message is one line.
        """
        first = self.reset(np.arange(self.num_envs))
        self.step(self.spaces.random_actions(np.random.default_rng(0), first))

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
