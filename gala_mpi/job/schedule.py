"""When to save a checkpoint, and which of them to keep."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path

from gala_mpi.config import Config
from gala_mpi.exchange.base import Order
from gala_mpi.run import checkpoints, layout
from gala_mpi.run.checkpoints import State


class Checkpoints:
    """When to save, where, and what to keep.

    Args:
        run: the run directory.
        rank: whose files.
        config: how often, and how many of the newest complete checkpoints stay; the one with the best score stays as well, and
            the last of every rank that has died.
        number: the newest checkpoint number in use.

    Attributes:
        slowest: the longest that a checkpoint has taken, s.
    """

    def __init__(self, run: Path, rank: int, config: Config, number: int):
        self._run, self._rank, self._config = run, rank, config
        self.number = number
        self.slowest = 0.0
        self._seconds = 60 * min(config.checkpoint_minutes, config.evaluate_minutes or math.inf)
        self._due = time.monotonic() + self._seconds

    def due(self) -> bool:
        """Whether it is time by this rank's clock. Exact runs do not go by it."""
        return not self._config.exact_resume and time.monotonic() >= self._due

    def heed(self, order: Order, update: int) -> Order:
        """What to do after `update`: what was agreed on. Exact runs save at every N-th update, and stop nowhere else; a replay
        stops where the record does."""
        if not self._config.exact_resume:
            return order
        mark = update % self._config.exact_updates == 0
        return dataclasses.replace(order, save=mark, stop=order.stop and (mark or self._config.replay is not None))

    def save(self, state: State, number: int | None = None) -> None:
        """Write the next number (or `number`); the first rank that lives also deletes what need not be kept.

        By the schedule, not by now: numbers then fall at about the same time on all ranks. A rank that was suspended and
        has missed some leaves them out. Where all ranks save at the same update, they count together whatever their clocks say.
        """
        began = time.monotonic()
        missed = int(max(0.0, began - self._due) // self._seconds)
        self._due += (1 + missed) * self._seconds
        self.number = number or self.number + 1 + (0 if self._config.in_step else missed)
        checkpoints.write(self._run, self.number, self._rank, state)
        lost = layout.lost(self._run)
        if self._rank == min({*range(state.agents)} - lost, default=0):
            self._prune(lost)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _prune(self, lost: set[int]) -> None:
        """Every rank saves in the order of the numbers: what is incomplete when a later one is complete stays so, unless a rank
        that was taken for dead is still writing."""
        done = checkpoints.complete(self._run)
        kept = {*done[-self._config.keep_checkpoints :], checkpoints.best(self._run)}
        kept |= {checkpoints.newest_of(self._run, rank) for rank in lost}
        for number in checkpoints.numbers(self._run):
            folder = layout.checkpoint_file(self._run, number, 0).parent
            if done and number < done[-1] and number not in kept and not any(folder.glob(".*.tmp")):
                shutil.rmtree(folder, ignore_errors=True)
