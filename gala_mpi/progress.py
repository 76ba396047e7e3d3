"""From what each rank does to what rank 0 shows: every rank posts a row on the board, rank 0 reads and draws them."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from gala_mpi import envs
from gala_mpi.config import Config
from gala_mpi.display import Display, recent_score
from gala_mpi.envs import Episode
from gala_mpi.exchange import Counters
from gala_mpi.exchange.board import COLUMNS, Board
from gala_mpi.learner import A2C
from gala_mpi.world import World

RECENT = 100  # episodes, over all agents


class Progress:
    """A context manager around the training loop. Collective to make and to close.

    Attributes:
        score: mean of the last 100 scores, over all agents on rank 0 and over my own elsewhere; NaN before the first.
    """

    def __init__(self, world: World, config: Config, steps_before: int):
        self._board = Board(world.comm)
        self._recent: deque[float] = deque(maxlen=math.ceil(RECENT / world.size))
        self._episodes = 0
        self._age = math.nan
        self._display = None
        if world.root:
            atari = envs.resolve(config.env)[0] == "atari"
            self._display = Display(config, steps_before * world.size, atari)

    def __enter__(self) -> Progress:
        if self._display:
            self._display.open()
        return self

    def hide(self) -> None:
        """Show nothing more."""
        if self._display:
            self._display.close()

    def __exit__(self, kind, error, trace) -> None:
        self.hide()
        if kind is None:
            self._board.close()

    @property
    def score(self) -> float:
        if self._display:
            return recent_score(dict(zip(COLUMNS, self._board.rows.T)))
        return float(np.mean(self._recent)) if self._recent else math.nan

    def update(self, learner: A2C, episodes: list[Episode], counters: Counters) -> None:
        """After every update: post my row; on rank 0, read the others' and draw them now and then."""
        self._episodes += len(episodes)
        self._recent.extend(episode.score for episode in episodes)
        if counters.mixes:
            self._age = learner.updates - sum(mix.version for mix in counters.mixes) / len(counters.mixes)
        self._board.post(
            updates=learner.updates,
            steps=learner.steps,
            episodes=self._episodes,
            recent_score=float(np.mean(self._recent)) if self._recent else 0.0,
            recent_episodes=len(self._recent),
            age=self._age,
            staleness=counters.staleness,
        )
        if self._display:
            self._board.poll()
            if self._display.due():
                self._display.show(self._board.rows)
