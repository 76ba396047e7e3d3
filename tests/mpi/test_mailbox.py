"""The RMA transport: no message is ever seen half written, and a publisher that breaks the protocol is caught."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing

import numpy as np
import pytest
from mpi4py import MPI

from gala_mpi.mpi.live_board import LiveBoard
from gala_mpi.mpi.mailbox import BEGUN, DIRECT, LATEST, MIXED, REMOTE, Mailbox
from gala_mpi.mpi.readers import CopyReader, DirectReader, HeaderReader, MessageReader, message_reader

MESSAGES = int(os.environ.get("MAILBOX_MESSAGES", 40_000))  # received and checked in the stress test, over all ranks
LENGTH = 1 << 14  # float32: 64 KiB a message; it is written in pieces, so that it can be caught half written
# Against hangs, and stresses that show nothing; how fast messages are is no matter here.
SECONDS = 400.0
# malloc.h
MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


@pytest.fixture(autouse=True)
def somebody_to_read(comm):
    if comm.size == 1:
        pytest.skip("needs 2 ranks or more")


@pytest.fixture
def view(comm) -> Callable[[Mailbox, int], DirectReader]:
    """Reads a peer's messages where they lie."""
    with closing(Mailbox(comm, 1)) as mailbox:
        if None in [mailbox.shared_view(peer) for peer in range(comm.size) if peer != comm.rank]:
            pytest.skip("Open MPI, Intel MPI and networks do not show others' memory; MPICH does")
    return lambda mailbox, peer: DirectReader(mailbox, peer, *mailbox.shared_view(peer))


@pytest.fixture(params=["copy", "view"])
def reader(request) -> Callable[[Mailbox, int], MessageReader]:
    return CopyReader if request.param == "copy" else request.getfixturevalue("view")


class Slot:
    """A slot that is written in pieces, with random delays and calls into MPI between them, as by a thread of the library.

    Over TCP a get is served by its target, inside MPI: without such calls nobody could see a slot half written.
    """

    def __init__(self, row: np.ndarray, mailbox: Mailbox):
        self._pieces, self._mailbox = np.array_split(row, 4), mailbox
        self._random = np.random.default_rng(mailbox.comm.rank)

    def __getitem__(self, everything: slice) -> Slot:
        return self

    def __setitem__(self, everything: slice, vector: np.ndarray) -> None:
        for piece in self._pieces:
            piece[:] = vector
            self._mailbox.progress()
            time.sleep(self._random.exponential(1e-5))


class Disturbed(Mailbox):
    """The transport, disturbed while it writes."""

    def __init__(self, comm: MPI.Intracomm, length: int):
        super().__init__(comm, length)
        self.slots = [Slot(row, self) for row in self.slots]


class TooEarly(Disturbed):
    """A planted fault: says that a version is complete before its payload is there."""

    def publish(self, vector: np.ndarray, version: int) -> None:
        self.header[BEGUN + version % self.reach.slots] = version
        self.post(LATEST, version)
        self.slots[version % self.reach.slots][:] = vector
        self._window.sync()


class TooLate(Disturbed):
    """A planted fault: says that a slot is being rewritten only when it has been."""

    def publish(self, vector: np.ndarray, version: int) -> None:
        self.slots[version % self.reach.slots][:] = vector
        self._window.sync()
        self.header[BEGUN + version % self.reach.slots] = version
        self.post(LATEST, version)


def credulous(reader: Callable[[Mailbox, int], MessageReader]) -> Callable[[Mailbox, int], MessageReader]:
    """A planted fault: a reader that takes no second look."""

    def make(mailbox: Mailbox, peer: int) -> MessageReader:
        made = reader(mailbox, peer)
        made._whole = lambda: True
        return made

    return make


def stress(
    comm: MPI.Intracomm,
    quota: int,
    seconds: float,
    transport: Callable[[MPI.Intracomm, int], Mailbox] = Disturbed,
    reader: Callable[[Mailbox, int], MessageReader] = message_reader,
) -> tuple[int, int, int]:
    """Every rank publishes and reads all others, with random delays, until each has read `quota` messages or time is over.

    A rank publishes so often that about a quarter of what it reads itself is torn: over a slow network, too, some messages
    then arrive whole, and over a fast one some do not.

    Every element of version v is v. Returns how many messages were received, how many of them were not whole (or came
    again, or had a wrong checksum), and how many were torn and thrown away; each over all ranks.
    """
    mailbox = transport(comm, LENGTH)
    pulls = [reader(mailbox, peer) for peer in range(comm.size) if peer != comm.rank]
    newest = dict.fromkeys(pulls, 0)
    random = np.random.default_rng(comm.rank)
    version = received = broken = 0
    pace, torn = 1.0, 0  # versions that are published between two looks at the others' windows
    deadline = time.monotonic() + seconds
    everybody = None
    while everybody is None or not everybody.Test():
        for _ in range(random.poisson(pace)):
            version += 1
            mailbox.publish(np.float32(version), version)
        if random.random() < 0.05:
            time.sleep(1e-3 * random.random())
        for pull in pulls:
            pull.start(newest[pull])
            if pull.advance():
                payload, seen = pull.take()
                wrong = bool((payload != seen).any() or seen <= newest[pull])
                if pull.still_whole():
                    received += 1
                    broken += wrong
                    newest[pull] = seen
                    pace = min(1.03 * pace, 4.0)
            else:
                os.sched_yield()  # with fewer cores than ranks, its publisher may need this one
        mailbox.progress()
        torn, before = sum(pull.torn for pull in pulls), torn
        pace = max(0.9 ** (torn - before) * pace, 0.01)
        if everybody is None and (received >= quota or time.monotonic() > deadline):
            everybody = comm.Ibarrier()
    mailbox.close()
    broken += sum(pull.corrupt for pull in pulls)
    counts = np.array([received, broken, torn])
    return tuple(int(count) for count in comm.allreduce(counts))


def test_no_message_is_torn(comm, reader):
    wanted = MESSAGES if comm.size == 4 else MESSAGES // 5
    began, seconds = time.monotonic(), SECONDS * max(1, MESSAGES / 100_000)
    received, broken, thrown_away = stress(comm, -(-wanted // comm.size), seconds, reader=reader)
    if comm.rank == 0:
        print(
            f"{received:,} messages, {broken} broken, {thrown_away:,} torn ones thrown away, {time.monotonic() - began:.0f} s"
        )
    assert broken == 0
    assert received >= wanted, "too slow to have tested anything"
    assert thrown_away > 0, "no slot was ever rewritten while it was read: the stress is too soft"


@pytest.mark.parametrize("fault", [TooEarly, TooLate, credulous])
def test_stress_catches_whoever_breaks_the_order(comm, reader, fault):
    faulty = {"reader": credulous(reader)} if fault is credulous else {"reader": reader, "transport": fault}
    deadline = time.monotonic() + SECONDS
    broken, late = 0, False
    while not broken and not late:
        _, broken, _ = stress(comm, 1000, 5, **faulty)
        late = comm.bcast(time.monotonic() > deadline)
    assert broken > 0


@pytest.mark.parametrize("checksum, accepted", [(True, False), (False, True)])
def test_a_checksum_finds_a_payload_that_was_changed_on_its_way(comm, checksum, accepted):
    with closing(Mailbox(comm, 1000, checksum)) as mailbox:
        mailbox.publish(np.arange(1000, dtype=np.float32), 1)
        mailbox.slots[1][500] = -1
        mailbox._window.sync()
        comm.Barrier()
        pull = CopyReader(mailbox, (comm.rank - 1) % comm.size)
        for attempts in (1, 2):
            pull.start(newer_than=0)
            wait_for(lambda: pull.advance() or pull.idle)
            assert pull.ready is accepted
            assert pull.corrupt == (0 if accepted else attempts)
            assert pull.torn == 0
        comm.Barrier()
        mailbox.publish(np.arange(1000, dtype=np.float32), 2)
        comm.Barrier()
        if checksum:
            pull.start(newer_than=0)
            wait_for(pull.advance)
            assert pull.take()[1] == 2


def test_no_sound_message_has_a_wrong_checksum(comm):
    def checked(comm: MPI.Intracomm, length: int) -> Mailbox:
        return Mailbox(comm, length, checksum=True)

    received, broken, _ = stress(comm, 1000, SECONDS, checked)
    assert received >= 1000 and broken == 0


def test_reach(comm, monkeypatch):
    """What a get from the next rank shows is agreed upon by all; and both kinds deliver."""
    with closing(Mailbox(comm, 3)) as mailbox:
        assert comm.allgather(mailbox.reach) == [mailbox.reach] * comm.size
        if os.environ.get("MPIR_CVAR_NOLOCAL"):
            assert mailbox.reach == REMOTE
    for reach in (DIRECT, REMOTE):
        monkeypatch.setattr("gala_mpi.mpi.mailbox.probe", lambda comm, progress: reach)
        received, broken, _ = stress(comm, 200, SECONDS / 2)
        assert received >= 200 and broken == 0


def test_newest_message_wins(comm, reader):
    with closing(Mailbox(comm, 3)) as mailbox:
        peer = (comm.rank - 1) % comm.size
        for version in (1, 2, 3):
            mailbox.publish(np.full(3, 10 * comm.rank + version, np.float32), version)
        comm.Barrier()
        pull = reader(mailbox, peer)
        pull.start(newer_than=0)
        wait_for(pull.advance)
        payload, version = pull.take()
        assert version == 3 and payload.tolist() == [10 * peer + 3] * 3


def test_nothing_comes_that_is_not_newer(comm, reader):
    with closing(Mailbox(comm, 3)) as mailbox:
        mailbox.publish(np.zeros(3, np.float32), 7)
        comm.Barrier()
        pull = reader(mailbox, (comm.rank - 1) % comm.size)
        for _ in range(10):
            pull.start(newer_than=7)
            wait_for(lambda: pull.advance() or pull.idle)
            assert not pull.ready
        assert pull.header[LATEST] == 7


def test_what_was_taken_does_not_come_again(comm, reader):
    """Neither with the header that was on its way when it was taken."""
    with closing(Mailbox(comm, 3)) as mailbox:
        mailbox.publish(np.zeros(3, np.float32), 7)
        comm.Barrier()
        pull = reader(mailbox, (comm.rank - 1) % comm.size)
        pull.start(newer_than=0)
        wait_for(pull.advance)
        pull.start(newer_than=0)
        assert pull.take()[1] == 7
        wait_for(lambda: pull.advance() or pull.idle)
        assert not pull.ready


def test_exactly_the_version_asked_for(comm, reader):
    with closing(Mailbox(comm, 3)) as mailbox:
        for version in (1, 2):
            mailbox.publish(np.full(3, version, np.float32), version)
        comm.Barrier()
        pull = reader(mailbox, (comm.rank - 1) % comm.size)
        for version in (1, 2):
            pull.start(newer_than=0, exactly=version)
            wait_for(pull.advance)
            payload, seen = pull.take()
            assert seen == version and payload.tolist() == [version] * 3
        pull.start(newer_than=2, exactly=3)
        wait_for(lambda: pull.advance() or pull.idle)
        assert not pull.ready, "version 3 has not been published"


@pytest.mark.parametrize("whole", [True, False])
def test_a_slot_rewritten_while_it_was_read_is_thrown_away(comm, whole):
    """Rank 1 publishes on while rank 0 reads version 1: after as many versions as there are slots, its slot is rewritten."""
    with closing(Mailbox(comm, 3)) as mailbox:
        rewrites = mailbox.reach.slots - whole
        rank_1_publishes(mailbox, [1])
        if comm.rank == 0:
            begin = mailbox.get_payload

            def get_payload(*arguments) -> MPI.Request:
                begin(*arguments).Wait()
                if pull.version == 1:
                    comm.Barrier()  # the payload is here; now rank 1 rewrites
                    comm.Barrier()
                return MPI.REQUEST_NULL

            mailbox.get_payload = get_payload
            pull = CopyReader(mailbox, 1)
            pull.start(newer_than=0)
            wait_for(pull.advance)
            payload, version = pull.take()
            assert pull.torn == (0 if whole else 1)
            assert version == (1 if whole else 1 + rewrites)
            assert payload.tolist() == [version] * 3
        else:
            comm.Barrier()
            rank_1_publishes(mailbox, range(2, 2 + rewrites))


@pytest.mark.parametrize("whole", [True, False])
def test_a_message_rewritten_while_it_was_used_is_not_whole(comm, view, whole):
    """Rank 1 publishes on while rank 0 uses version 1 where it lies; then rank 0 takes what is the newest by now."""
    with closing(Mailbox(comm, 3)) as mailbox:
        rewrites = mailbox.reach.slots - whole
        rank_1_publishes(mailbox, [1])
        if comm.rank == 0:
            reader = view(mailbox, 1)
            reader.start(newer_than=0)
            wait_for(reader.advance)
            assert reader.take()[1] == 1
        comm.Barrier()
        rank_1_publishes(mailbox, range(2, 2 + rewrites))
        if comm.rank == 0:
            assert reader.still_whole() is whole
            assert reader.torn == (not whole)
            payload, version = reader.take()
            assert version == 1 + rewrites and payload.tolist() == [version] * 3
            assert reader.still_whole()
            reader.start(newer_than=version)
            wait_for(lambda: reader.idle or reader.advance())
            assert not reader.ready


def test_a_version_asked_for_stays_that_one(comm, view):
    """In lock-step: also where a newer one is there when it is taken."""
    with closing(Mailbox(comm, 3)) as mailbox:
        reader = view(mailbox, (comm.rank - 1) % comm.size)
        mailbox.publish(np.full(3, 1, np.float32), 1)
        comm.Barrier()
        reader.start(newer_than=0, exactly=1)
        wait_for(reader.advance)
        mailbox.publish(np.full(3, 2, np.float32), 2)
        comm.Barrier()
        payload, version = reader.take()
        assert version == 1 and payload.tolist() == [1] * 3 and reader.still_whole()
        comm.Barrier()


def test_who_has_no_checksum_reads_where_messages_lie(comm):
    peer = (comm.rank - 1) % comm.size
    for checksum in (False, True):
        with closing(Mailbox(comm, 3, checksum)) as mailbox:
            shown = mailbox.shared_view(peer) is not None
            assert isinstance(message_reader(mailbox, peer), DirectReader) is (shown and not checksum)
            if MPI.Get_library_version().startswith("MPICH"):
                assert shown is not bool(os.environ.get("MPIR_CVAR_NOLOCAL"))


def test_a_header_shows_what_was_posted(comm):
    with closing(Mailbox(comm, 1)) as mailbox:
        mailbox.post(MIXED, 100 + comm.rank)
        comm.Barrier()
        for peer in range(comm.size):
            header_reader = HeaderReader(mailbox, peer)
            header_reader.start()
            wait_for(header_reader.advance)
            assert header_reader.header[MIXED] == 100 + peer


def test_a_read_on_its_way_does_not_keep_the_window_from_closing(comm, reader):
    for advances in (0, 1, 10):
        with closing(Mailbox(comm, LENGTH)) as mailbox:
            mailbox.publish(np.ones(LENGTH, np.float32), 1)
            comm.Barrier()
            pull = reader(mailbox, (comm.rank - 1) % comm.size)
            pull.start(newer_than=0)
            for _ in range(advances):
                pull.advance()


def test_mpi_keeps_nothing_of_what_was_read(comm, reader):
    """MPICH keeps 48 bytes of every get within a host until it is flushed: they would fill the heap with holes."""
    others = [peer for peer in range(comm.size) if peer != comm.rank]
    with closing(Mailbox(comm, 10)) as mailbox, closing(LiveBoard(comm)) as board:
        mailbox.publish(np.ones(10, np.float32), 1)
        mailbox.meet(others)
        pulls = [reader(mailbox, peer) for peer in others]

        def read(times: int) -> None:
            for _ in range(times):
                for pull in pulls:
                    pull.start(newer_than=0)
                    wait_for(pull.advance)
                    pull.take()
                board.poll()
                wait_for(lambda: board._collect() or not board._asked)

        read(100)
        before = allocated()
        read(300)
        per_message = (allocated() - before) / 300 / len(others)
    assert per_message < 10, f"{per_message:.0f} bytes are left of every message that was read"


def allocated() -> int:
    """Bytes that this process has got from malloc and not given back."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("this C library does not tell")
    mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in MALLINFO2]})
    return mallinfo2().uordblks


def rank_1_publishes(mailbox: Mailbox, versions: Iterable[int]) -> None:
    """Every element of a version is its number. Then all meet."""
    for version in versions if mailbox.comm.rank == 1 else ():
        mailbox.publish(np.full(mailbox.length, version, np.float32), version)
    mailbox.comm.Barrier()


def wait_for(condition, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"has not come true within {seconds} s"
        MPI.COMM_WORLD.Iprobe()
