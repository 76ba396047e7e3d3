"""Which ranks are left at the end of a run that survives losses, agreed upon by files.

MPI's collective calls cannot be used for this: they never return once a rank has died. Instead, every rank has one file in the
run directory, and the rank that creates it first decides how that rank's part ended: the rank itself, when all live ones have
left the training loop, or the first rank that loses it. The file never changes, so that all ranks see the same.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gala_mpi.mpi.world import World
from gala_mpi.run import files, layout

SECONDS_BETWEEN_CHECKS = 0.2
SECONDS_TO_SAVE = 120.0


@dataclass(frozen=True)
class End:
    """How a rank's part of the run ended."""

    rank: int
    host: str
    lost: bool
    update: int  # its last one that is known
    number: int = 0  # of its last checkpoint; 0: none, or not known


class Membership:
    """How the parts of all ranks end.

    Args:
        run: the run directory, which all hosts see.
        world: all ranks.

    Attributes:
        ends: those of all ranks, in their order; empty until all have ended.
    """

    def __init__(self, run: Path, world: World):
        self._run, self._world = run, world
        self._reported: set[int] = set()
        self._last_check = 0.0
        self.ends: list[End] = []

    @property
    def lost(self) -> list[End]:
        """The ends of the ranks that were lost."""
        return [end for end in self.ends if end.lost]

    @property
    def first_survivor(self) -> bool:
        """Whether this rank is the first of those that are left."""
        return self._world.rank == min(end.rank for end in self.ends if not end.lost or end.rank == self._world.rank)

    def report_lost(self, lost: dict[int, int]) -> None:
        """Record the ranks that this rank has lost, and print a line for each that no other rank has recorded before.

        Args:
            lost: rank → the last version seen of it.
        """
        for rank in lost.keys() - self._reported:
            if self._decide(End(rank, self._world.hosts[rank], True, lost[rank])):
                self._print(
                    f"rank {rank} on {self._world.hosts[rank]} is lost, last seen at update {lost[rank]}; the others go on"
                )
        for rank in self._reported - lost.keys():
            self._print(f"rank {rank} on {self._world.hosts[rank]} is back; the end does not wait for it")
        self._reported = set(lost)

    def leave(self) -> None:
        """Record that this rank has left the training loop. It may still be lost while others are in it."""
        files.first(layout.left_file(self._run, self._world.rank), "")

    def all_left(self, lost: dict[int, int]) -> bool:
        """Return whether every rank has left the training loop or is lost. To be called until then.

        Args:
            lost: as for `report_lost`.
        """
        if not self._due():
            return False
        self.report_lost(lost)
        ranks = range(self._world.size)
        return all(layout.left_file(self._run, rank).exists() or layout.end_file(self._run, rank).exists() for rank in ranks)

    def record_end(self, update: int, number: int) -> None:
        """Record this rank's end, once all have left the training loop.

        Args:
            update: its last update.
            number: that of its last checkpoint; 0: none.
        """
        self._decide(End(self._world.rank, self._world.host, False, update, number))

    def complete(self, lost: dict[int, int]) -> bool:
        """Return whether every rank's part has ended, and set `ends`. To be called until then.

        Args:
            lost: as for `report_lost`.
        """
        if not self._due():
            return False
        self.report_lost(lost)
        files = [layout.end_file(self._run, rank) for rank in range(self._world.size)]
        if all(file.exists() for file in files):
            self.ends = [End(**json.loads(file.read_text())) for file in files]
        return bool(self.ends)

    def _due(self) -> bool:
        """Return whether it is time to check the files again."""
        due = time.monotonic() - self._last_check >= SECONDS_BETWEEN_CHECKS
        self._last_check = time.monotonic() if due else self._last_check
        return due

    def wait_for_checkpoints(self, number: int) -> None:
        """Wait until all survivors have saved checkpoint `number`, but no longer than SECONDS_TO_SAVE.

        Launchers end all ranks with the first that exits.
        """
        survivors = [end.rank for end in self.ends if not end.lost]
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while time.monotonic() < deadline:
            if all(layout.checkpoint_file(self._run, number, rank).exists() for rank in survivors):
                return
            time.sleep(SECONDS_BETWEEN_CHECKS)

    def _decide(self, end: End) -> bool:
        """Record an end unless one is recorded already, and return whether it was."""
        return files.first(layout.end_file(self._run, end.rank), json.dumps(asdict(end)))

    def _print(self, text: str) -> None:
        print(f"gala_mpi: {text}", file=sys.stderr, flush=True)
