"""Who is there at the end of a run that outlives a rank, agreed upon by files: no collective of MPI returns without the dead.

Every rank has one file in the run directory, and whoever creates it first decides how that rank's part ended: the rank
itself, when all that live have left the training loop, or the one that misses it first. It never changes, so all see the same.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gala_mpi.mpi.world import World
from gala_mpi.run import files, layout

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SAVE = 120.0


@dataclass(frozen=True)
class End:
    """How a rank's part of the run ended."""

    rank: int
    host: str
    lost: bool
    update: int  # its last one, as far as is known
    number: int = 0  # of its last checkpoint; 0: none, or not known


class Membership:
    """The ends of all ranks.

    Args:
        run: the run directory, which all hosts see.
        world: all ranks.

    Attributes:
        ends: those of all ranks, in their order; empty before the end.
    """

    def __init__(self, run: Path, world: World):
        self._run, self._world = run, world
        self._missed: set[int] = set()
        self._looked = 0.0
        self.ends: list[End] = []

    @property
    def lost(self) -> list[End]:
        return [end for end in self.ends if end.lost]

    @property
    def spokesman(self) -> bool:
        """Whether I am the first rank of those that are left."""
        return self._world.rank == min(end.rank for end in self.ends if not end.lost or end.rank == self._world.rank)

    def miss(self, lost: dict[int, int]) -> None:
        """Ranks that I have lost, and their last versions. Who misses a rank first tells."""
        for rank in lost.keys() - self._missed:
            if self._decide(End(rank, self._world.hosts[rank], True, lost[rank])):
                self._say(
                    f"rank {rank} on {self._world.hosts[rank]} is lost, last seen at update {lost[rank]}; the others go on"
                )
        for rank in self._missed - lost.keys():
            self._say(f"rank {rank} on {self._world.hosts[rank]} is back; the end does not wait for it")
        self._missed = set(lost)

    def leave(self) -> None:
        """I have left the training loop; I may still be missed while others are in it."""
        files.first(layout.left_file(self._run, self._world.rank), "")

    def all_out(self, lost: dict[int, int]) -> bool:
        """Whether every rank has left the training loop, or is lost. To be asked until so, with those that I have lost."""
        if not self._due():
            return False
        self.miss(lost)
        ranks = range(self._world.size)
        return all(layout.left_file(self._run, rank).exists() or layout.end_file(self._run, rank).exists() for rank in ranks)

    def answer(self, update: int, number: int) -> None:
        """All have left the training loop, I after this update and checkpoint."""
        self._decide(End(self._world.rank, self._world.host, False, update, number))

    def complete(self, lost: dict[int, int]) -> bool:
        """Whether every rank's part has ended. To be asked until it has, with those that I have lost."""
        if not self._due():
            return False
        self.miss(lost)
        files = [layout.end_file(self._run, rank) for rank in range(self._world.size)]
        if all(file.exists() for file in files):
            self.ends = [End(**json.loads(file.read_text())) for file in files]
        return bool(self.ends)

    def _due(self) -> bool:
        """Whether it is time to look at the files again."""
        due = time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS
        self._looked = time.monotonic() if due else self._looked
        return due

    def wait_for_checkpoints(self, number: int) -> None:
        """Until all that are left have saved their last one, or long enough: launchers end all with the first that leaves."""
        left = [end.rank for end in self.ends if not end.lost]
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while time.monotonic() < deadline:
            if all(layout.checkpoint_file(self._run, number, rank).exists() for rank in left):
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _decide(self, end: End) -> bool:
        return files.first(layout.end_file(self._run, end.rank), json.dumps(asdict(end)))

    def _say(self, what: str) -> None:
        print(f"gala_mpi: {what}", file=sys.stderr, flush=True)
