"""A learner and its actors: parameters go one way, rollouts the other, each through the mailbox of who publishes them.

Parameters are messages of which the newest wins. Rollouts are a queue: each is taken once, in order, and none is written over
before it was. So an actor asks for room first. It has some as long as fewer than `depth` of its rollouts are not taken, which
it knows by the learner's receipts: words behind the header of the parameters, one for each actor. (In lock-step the word MIXED
is such a receipt; here every reader's is a word of its own, since each reads another writer.)

Nobody waits in here for anybody. What is waited for, by whom, and what else is done meanwhile is for their callers to say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from gala_mpi.mpi.mailbox import FINISHED, LATEST, TAKEN, Mailbox
from gala_mpi.mpi.readers import message_reader

LEARNER: int = 0  # its rank among its own
# What a learner's FINISHED says: it takes rollouts; none any more; all close their windows; each ends by itself, with status
# FINISHED - LEAVES. Actors answer by the same in their own.
TAKES, ENDS, CLOSES, LEAVES = range(4)


class Queues:
    """One rank's part: the two mailboxes. Collective to make and to close, by a learner and its actors.

    Args:
        crew: the learner, its rank 0, and its actors.
        parameters: P, how many float32 a learner publishes.
        rollout: R, how many float32 words a rollout takes.
        checksum: see Mailbox.
        survive: likewise.
        depth: of each actor's queue: how many of its rollouts are published and not yet taken, at most.

    Attributes:
        parameters, rollouts: the mailboxes.
    """

    def __init__(
        self,
        crew: MPI.Intracomm,
        parameters: int,
        rollout: int,
        checksum: bool = False,
        survive: bool = False,
        depth: int = 1,
    ):
        self.crew, self.depth = crew, depth
        learns = crew.rank == LEARNER
        trusted = {"checksum": checksum, "survive": survive}
        self.parameters = Mailbox(crew, parameters, **trusted, publishes=learns, receipts=crew.size)
        self.rollouts = Mailbox(crew, rollout, **trusted, publishes=not learns, slots=depth)

    def progress(self) -> None:
        """Make progress: let MPI serve the others. To be called often."""
        (self.parameters if self.crew.rank == LEARNER else self.rollouts).progress()

    def close(self) -> None:
        """Serve the others until all are here, then free the windows. Collective."""
        self.rollouts.close()
        self.parameters.close()


class LearnerQueues(Queues):
    """A learner's part.

    Attributes:
        taken: how many rollouts of each actor have been taken, by rank in `crew`; that of the learner itself is 0.
    """

    def __init__(self, crew: MPI.Intracomm, *arguments, **options):
        super().__init__(crew, *arguments, **options)
        actors = range(1, crew.size)
        self._inbox = {actor: message_reader(self.rollouts, actor) for actor in actors}
        self.taken = [0] * crew.size
        self._last: int = LEARNER  # whose rollout was taken last
        self.parameters.meet([])
        self.rollouts.meet(actors)

    @property
    def torn(self) -> int:
        """How often a rollout was thrown away and read again: it was rewritten meanwhile, or its checksum was wrong."""
        readers = self._inbox.values()
        return sum(reader.torn for reader in readers) + sum(reader.corrupt for reader in readers)

    def published(self, actor: int) -> int:
        """Return how many rollouts an actor has published, as far as this rank has seen."""
        return int(self._inbox[actor].header[LATEST])

    def ready(self) -> int | None:
        """Ask for the next rollout of each actor, and return an actor whose has come; None: none has. They take turns."""
        others = self.crew.size - 1
        for turn in range(others):
            actor = 1 + (self._last + turn) % others
            reader = self._inbox[actor]
            reader.start(self.taken[actor], self.taken[actor] + 1)
            if reader.advance():
                return actor
        return None

    def take(self, actor: int) -> tuple[np.ndarray, int]:
        """Return the rollout of an actor that is ready, float32 [R], and its number, from 1 on. It is to be copied, and then
        `keep` tells whether it was whole."""
        return self._inbox[actor].take()

    def keep(self, actor: int) -> bool:
        """Return whether the rollout taken last was whole, and count it if so; else it comes again."""
        if not self._inbox[actor].still_whole():
            return False
        self.taken[actor] += 1
        self._last = actor
        return True

    def acknowledge(self) -> None:
        """Let actors know what has been taken, so that they have room for more."""
        for actor in self._inbox:
            self.parameters.header[TAKEN + actor] = self.taken[actor]
        self.parameters.sync()

    @property
    def finished(self) -> int:
        """What was announced last of the end: see TAKES."""
        return int(self.parameters.header[FINISHED])

    def finish(self, how: int) -> None:
        """Announce that nothing more is taken, and how this ends: ENDS, CLOSES, or LEAVES and more."""
        self.parameters.post(FINISHED, how)

    def has_answered(self, actor: int) -> bool:
        """Return whether an actor has answered what was announced last, as far as is known; ask for its answer."""
        reader = self._inbox[actor]
        reader.start(sys.maxsize)
        reader.advance()
        return int(reader.header[FINISHED]) == self.finished


class ActorQueues(Queues):
    """An actor's part.

    Attributes:
        published: how many rollouts.
    """

    def __init__(self, crew: MPI.Intracomm, *arguments, **options):
        super().__init__(crew, *arguments, **options)
        self._reader = message_reader(self.parameters, LEARNER)
        self.published = 0
        self.parameters.meet([LEARNER])
        self.rollouts.meet([])

    def look(self) -> None:
        """Read the learner's header, without waiting for it."""
        self._reader.start(newer_than=sys.maxsize)
        self._reader.advance()

    def pull(self, newer_than: int, into: np.ndarray, wait: Callable[[Callable[[], bool]], None]) -> int:
        """Copy the newest parameters into a vector, float32 [P], if there are newer ones, and return their version.

        They are at least as new as those that were there when what this rank knows of the learner's header was written.

        Args:
            newer_than: the version of what the vector holds.
            wait: returns once a condition holds, which it asks again and again.
        """
        reader = self._reader
        wait(lambda: reader.advance() or reader.idle)  # for the look that may be on its way
        reader.start(newer_than)
        wait(lambda: reader.advance() or reader.idle)
        while reader.ready:
            message, newer_than = reader.take()
            into[:] = message
            reader.ready = not reader.still_whole()  # two versions were published meanwhile
        return newer_than

    @property
    def room(self) -> bool:
        """Whether one more rollout may be published, as far as is known."""
        return self.published - int(self._reader.header[TAKEN + self.crew.rank]) < self.depth

    @property
    def latest(self) -> int:
        """The newest version of the learner's parameters, as far as is known; 0: there is none yet."""
        return int(self._reader.header[LATEST])

    @property
    def finished(self) -> int:
        """What the learner says of the end, as far as is known: see TAKES."""
        return int(self._reader.header[FINISHED])

    def answer(self) -> None:
        """Let the learner know what this rank has heard of the end."""
        self.rollouts.post(FINISHED, self.finished)

    def begin(self) -> np.ndarray:
        """Return where the next rollout is to be written, float32 [R]. There must be room."""
        return self.rollouts.begin_write(self.published + 1)

    def publish(self) -> None:
        """Let the learner have the rollout that was written."""
        self.published += 1
        self.rollouts.end_write(self.published)
